"""What is in directories, for clients that read them in parts: each part begins at a place that the last one named."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from ring3.dom0.p9.credentials import Credentials, Look

_NR_KEPT_MAX: Final = 16
"""Listings in memory; who reads more directories at once has one read anew."""


class Listings:
    """The names of directories that are being read, sorted: a listing made anew goes on where the old one did."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._names: OrderedDict[int, list[bytes]] = OrderedDict()

    def after(self, number: int, fd: int, place: int) -> Iterator[tuple[bytes, Look, int]]:
        """Yields name, kind and place of the entries after a place of the directory that a fid has open."""
        if place == 0 or number not in self._names:
            self._names[number] = [b".", b"..", *sorted(map(os.fsencode, os.listdir(fd)))]
            if len(self._names) > _NR_KEPT_MAX:
                self._names.popitem(last=False)
        self._names.move_to_end(number)
        names = self._names[number]
        for at in range(place, len(names)):
            with suppress(OSError):  # gone meanwhile
                yield names[at], self._look(fd, names[at]), at + 1

    def drop(self, number: int) -> None:
        """Forgets the listing of a fid."""
        self._names.pop(number, None)

    def _look(self, fd: int, name: bytes) -> Look:
        if name in (b".", b".."):  # what is above a shared directory is not the client's
            return self._credentials.look(fd)
        entry = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            return self._credentials.look(entry)
        finally:
            os.close(entry)

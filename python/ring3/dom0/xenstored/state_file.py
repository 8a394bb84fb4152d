"""The file in which xenstored's state survives xenstored: an image, and batches of changes after it.

It need not survive the host, so nothing is synced: the pages that a killed process has written are the kernel's.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ring3.dom0.xenstored.image import Image
from ring3.errors import StreamError

_log = logging.getLogger(__name__)
_CHANGES_BYTES_MIN: Final = 1 << 20
"""Fewer bytes of changes than this never make a new image worth its while."""

_RETRY_S: Final = 10.0
"""How long a state that could not be written is not tried again."""


class StateFile:
    """The file at `path`. A disk that is full costs the safety of a restart, not the service."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._nr_image_bytes = 0
        self._nr_change_bytes = 0
        self._retry_at = 0.0

    def load(self) -> Image | None:
        """Returns what a predecessor has left, or None. What cannot be read is moved out of the way."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return Image.decode(data)
        except StreamError as error:
            _log.error("%s: %s; the store begins empty", self._path, error)
            self._path.replace(self._path.with_name(self._path.name + ".bad"))
            return None

    def append(self, batch: bytes, make_image: Callable[[], Image]) -> None:
        """Writes changes that nobody has been told of yet; a new image instead, where none could be written before."""
        if self._fd < 0:
            if time.monotonic() >= self._retry_at:
                self.write_image(make_image())
            return
        try:
            _write_all(self._fd, batch)
        except OSError as error:
            _log.warning("%s: %s; a restart would lose what happens now", self._path, error.strerror)
            self._give_up()
            return
        self._nr_change_bytes += len(batch)

    def wants_image(self) -> bool:
        """Returns whether the changes have outgrown the image."""
        return self._nr_change_bytes > max(_CHANGES_BYTES_MIN, 4 * self._nr_image_bytes)

    def write_image(self, image: Image) -> None:
        """Takes the place of all that the file holds, at once."""
        data = image.encode()
        temporary = self._path.with_name(self._path.name + ".new")
        fd = -1
        try:
            fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
            _write_all(fd, data)
            temporary.replace(self._path)
        except OSError as error:
            _log.warning("%s: %s; a restart would lose what happens now", temporary, error.strerror)
            if fd >= 0:
                os.close(fd)
            self._give_up()
            return
        self.close()
        self._fd = fd
        self._nr_image_bytes, self._nr_change_bytes = len(data), 0

    def close(self) -> None:
        """Closes the file and leaves it where it is."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _give_up(self) -> None:
        """Removes a state that is no longer true: it would be worse than none."""
        self.close()
        self._retry_at = time.monotonic() + _RETRY_S
        with contextlib.suppress(OSError):
            self._path.unlink()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]

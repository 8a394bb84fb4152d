"""What a queue's back end leaves to a successor, should it be killed: the requests that it has taken out of the ring.

A file of the state directory, mapped: what was stored in it is there when the process is not. It begins with the
identity of the ring, so that it serves no other one. The ring itself does not suffice: a response is written over its
request before rsp_prod tells of it, and a guest could change a request meanwhile.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path
from typing import Final

_HEADER_BYTES: Final = 64
_IDENTITY_BYTES: Final = 32
_REQ_CONS_WORD: Final = 8
"""The first 32-bit word after the identity."""


class Journal:
    """Copies of requests by their slots, and the index after the last that was taken."""

    def __init__(self, path: Path, identity: str, nr_slots: int, slot_bytes: int) -> None:
        """Goes on with the file, if it is of this ring. Raises OSError."""
        self._path = path
        self._slot_bytes = slot_bytes
        size = _HEADER_BYTES + nr_slots * slot_bytes
        digest = hashlib.blake2b(f"{identity} {size}".encode(), digest_size=_IDENTITY_BYTES).digest()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self.is_continued = os.fstat(fd).st_size == size and os.pread(fd, _IDENTITY_BYTES, 0) == digest
            if not self.is_continued:
                os.ftruncate(fd, 0)
                os.ftruncate(fd, size)
            self._map = mmap.mmap(fd, size)
        finally:
            os.close(fd)
        self._view = memoryview(self._map)
        self._words = self._view[:_HEADER_BYTES].cast("I")
        self._digest = digest

    @property
    def view(self) -> memoryview:
        """The file's contents, for the quick path, which keeps the journal itself."""
        return self._view

    @property
    def req_cons(self) -> int:
        """The index after the last request that was taken."""
        return self._words[_REQ_CONS_WORD]

    @req_cons.setter
    def req_cons(self, index: int) -> None:
        self._words[_REQ_CONS_WORD] = index

    def begin(self) -> None:
        """Says that this is the journal of the ring: all in it is valid now."""
        self._view[:_IDENTITY_BYTES] = self._digest

    def read(self, slot: int) -> bytes:
        """Returns the request of a slot."""
        start = _HEADER_BYTES + slot * self._slot_bytes
        return self._view[start : start + self._slot_bytes].tobytes()

    def write(self, slot: int, raw: bytes) -> None:
        """Stores the request of a slot."""
        start = _HEADER_BYTES + slot * self._slot_bytes
        self._view[start : start + self._slot_bytes] = raw

    def close(self, *, keep: bool) -> None:
        """Ends; the file stays for a successor, or goes."""
        self._words.release()
        self._view.release()
        self._map.close()
        if not keep:
            self._path.unlink(missing_ok=True)

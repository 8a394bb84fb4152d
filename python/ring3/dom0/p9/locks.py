"""Byte-range locks: the kernel's, of the open file, so that programs of the host and other domains are held off too."""

from __future__ import annotations

import fcntl
import os
import struct
from errno import EINVAL
from typing import Final

_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK: Final = struct.Struct("<hhxxxxqqixxxx")
_TYPES: Final = (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK)
"""Those of 9P2000.L are Linux's on x86-64."""
_OFFSET_MAX: Final = (1 << 63) - 1


def set_lock(fd: int, kind: int, start: int, length: int) -> bool:
    """Locks or unlocks; returns False if somebody else's lock is in the way. Raises OSError."""
    try:
        fcntl.fcntl(fd, _F_OFD_SETLK, _packed(kind, start, length))
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES says the same
        return False
    return True


def get_lock(fd: int, kind: int, start: int, length: int) -> tuple[int, int, int]:
    """Returns type, start and length of a lock that is in the way, or F_UNLCK for the type. Raises OSError."""
    found = fcntl.fcntl(fd, _F_OFD_GETLK, _packed(kind, start, length))
    kind, _whence, start, length, _pid = _FLOCK.unpack(found)
    return kind, start, length


def _packed(kind: int, start: int, length: int) -> bytes:
    if kind not in _TYPES or max(start, length) > _OFFSET_MAX:
        raise OSError(EINVAL, "no lock")
    return _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)

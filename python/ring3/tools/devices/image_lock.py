"""Locks on disk images, as QEMU sets them, so that QEMU's programs and Ring3 refuse what the other one uses.

An open file description takes a shared lock on one byte for each thing it does to the image, and on another for each
thing that nobody else may do. Who finds the opposite byte locked stops. The locks go with the description: they last
while anybody has the descriptor.

Source: QEMU, block/file-posix.c, "RAW_LOCK_PERM_BASE" (behaviour); fcntl(2), open file description locks.
"""

from __future__ import annotations

import fcntl
import struct
from typing import Final

_DOES_BASE: Final = 100
_FORBIDS_BASE: Final = 200
_CONSISTENT_READ, _WRITE, _RESIZE = 0, 1, 3
_F_OFD_GETLK: Final = 36
_F_OFD_SETLK: Final = 37
_FLOCK: Final = struct.Struct("hhxxxxqqixxxx")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""


class ImageBusyError(Exception):
    """Somebody else uses the image in a way that excludes ours."""


def lock(fd: int, *, is_read_only: bool) -> None:
    """Locks an open image. Readers exclude writers only. Raises ImageBusyError; OSError where there are no locks."""
    does = [_CONSISTENT_READ] if is_read_only else [_CONSISTENT_READ, _WRITE, _RESIZE]
    forbids = [_WRITE, _RESIZE]
    for byte in (*(_DOES_BASE + bit for bit in does), *(_FORBIDS_BASE + bit for bit in forbids)):
        fcntl.fcntl(fd, _F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))
    for byte in (*(_FORBIDS_BASE + bit for bit in does), *(_DOES_BASE + bit for bit in forbids)):
        answer = fcntl.fcntl(fd, _F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            raise ImageBusyError

"""The log files of a console, for who writes them and for who reads what is left of a console that has ended.

Output is counted from the console's beginning. Of the two files `path`.1 holds the older part; a small state file says
where in the output one of them begins, and their sizes say the rest.
"""

from __future__ import annotations

import contextlib
import os
import struct
from pathlib import Path
from typing import Final

_STATE: Final = struct.Struct("<QQ")
"""Inode of a log file, and the offset in the output of its first byte."""
OFFSET: Final = struct.Struct("<Q")
"""What a stream of console output begins with, either way: the offset of the first byte that is wanted, or sent."""


def older(path: Path) -> Path:
    """Returns where the older part of a log is."""
    return path.with_name(path.name + ".1")


def save_state(state_path: Path, inode: int, first: int) -> None:
    """Says where in the output a log file begins. A state that cannot be written stays as it was."""
    with contextlib.suppress(OSError):
        fd = os.open(state_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, _STATE.pack(inode, first), 0)
        finally:
            os.close(fd)


def nr_logged(path: Path, state_path: Path) -> int | None:
    """Returns how much output there has been; None if the files do not say, or belong to no one state."""
    try:
        inode, first = _STATE.unpack(state_path.read_bytes())
        begin = int(first)
        newest = path.stat() if path.exists() else None
        if newest is not None and newest.st_ino == inode:
            return begin + newest.st_size
        second = older(path).stat()
    except (OSError, struct.error):
        return None
    if second.st_ino != inode:
        return None
    return begin + second.st_size + (newest.st_size if newest is not None else 0)


def tail(path: Path, nr_bytes: int) -> bytes:
    """Returns the last output, as far as it is there."""
    found = b""
    for part in (path, older(path)):
        with contextlib.suppress(OSError):
            found = part.read_bytes()[-(nr_bytes - len(found)) :] + found
        if len(found) >= nr_bytes:
            break
    return found[-nr_bytes:] if nr_bytes else b""


def output_from(path: Path, state_path: Path, offset: int) -> bytes:
    """Returns the output from an offset on, as far as it is there."""
    total = nr_logged(path, state_path)
    return tail(path, total - offset) if total is not None and offset < total else b""

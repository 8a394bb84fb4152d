"""The bounded log file of one console, and the recent output that a new reader gets first.

The files say at any moment how much has been logged (`libs.console_log`): a daemon that is killed can be started again,
and no byte is logged twice or never.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from ring3.libs import console_log

FILE_BYTES_MAX: Final = 1 << 20
BACKLOG_BYTES_MAX: Final = 64 << 10


class ConsoleLog:
    """Writes `path`; what is over 1 MiB moves to `path`.1, so that at most 2 MiB are kept. A full disk loses output.

    `total` is how many bytes there have been, and `begin` where the output begins. With `goes_on`, what a predecessor
    has logged counts; where it left nothing, the log begins anew.
    """

    def __init__(self, path: Path, state_path: Path, *, begin: int = 0, goes_on: bool = False) -> None:
        self._path = path
        self._state_path = state_path
        self._fd = -1
        self._size = 0
        self.backlog = bytearray()
        self.total = begin
        found = console_log.nr_logged(path, state_path) if goes_on else None
        if found is None:
            for left in (path, console_log.older(path)):
                left.unlink(missing_ok=True)
            self._open()
        else:
            self.total = found
            self._open()
            self.backlog += console_log.tail(path, BACKLOG_BYTES_MAX)
        self._save()

    @property
    def backlog_begin(self) -> int:
        """Offset of the first byte of the backlog."""
        return self.total - len(self.backlog)

    def append(self, data: bytes) -> None:
        """Adds output."""
        self.backlog += data
        if len(self.backlog) > 2 * BACKLOG_BYTES_MAX:
            # Cut rarely, and at a line, so that a reader does not begin in the middle of one.
            start = len(self.backlog) - BACKLOG_BYTES_MAX
            del self.backlog[: self.backlog.find(b"\n", start) + 1 or start]
        if self._size + len(data) > FILE_BYTES_MAX:
            self._rotate()
        try:
            nr_written = os.write(self._fd, data) if self._fd >= 0 else 0
        except OSError:
            nr_written = 0
        self.total += len(data)
        self._size += nr_written
        if nr_written < len(data):
            self._save()  # the sizes no longer say how much there has been

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError:
            self._fd = -1
            self._size = 0

    def _rotate(self) -> None:
        """Moves the file away; the state names the old one until the new one is there."""
        self.close()
        with contextlib.suppress(OSError):
            self._path.replace(console_log.older(self._path))
        self._open()
        self._save()

    def _save(self) -> None:
        inode = os.fstat(self._fd).st_ino if self._fd >= 0 else 0
        console_log.save_state(self._state_path, inode, self.total - self._size)

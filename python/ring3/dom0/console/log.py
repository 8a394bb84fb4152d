"""The bounded log file of one domain's console, and the recent output that a new reader gets first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

FILE_BYTES_MAX: Final = 1 << 20
BACKLOG_BYTES_MAX: Final = 64 << 10


class ConsoleLog:
    """Writes `path`; what is over 1 MiB moves to `path`.1, so that at most 2 MiB are kept. A full disk loses output."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1
        self._size = 0
        self.backlog = bytearray()
        self._open()

    def append(self, data: bytes) -> None:
        """Adds output."""
        self.backlog += data
        if len(self.backlog) > 2 * BACKLOG_BYTES_MAX:
            # Cut rarely, and at a line, so that a reader does not begin in the middle of one.
            start = len(self.backlog) - BACKLOG_BYTES_MAX
            del self.backlog[: self.backlog.find(b"\n", start) + 1 or start]
        if self._fd < 0:
            return
        if self._size + len(data) > FILE_BYTES_MAX:
            self._rotate()
        try:
            self._size += os.write(self._fd, data)
        except OSError:
            return

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError:
            self._fd = -1
        self._size = 0

    def _rotate(self) -> None:
        self.close()
        try:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        except OSError:
            return
        self._open()

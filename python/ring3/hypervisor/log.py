"""Where ring3d's log lines go: the hypervisor's console ring, as Xen's do, and a file or standard error."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ring3._core import Hypervisor

FILE_BYTES_MAX: Final = 1 << 20


class _ConsoleRingHandler(logging.Handler):
    """Writes to the ring that `ring3 dmesg` shows."""

    def __init__(self, core: Hypervisor) -> None:
        super().__init__(logging.INFO)
        self._core = core

    def emit(self, record: logging.LogRecord) -> None:
        """Appends one record."""
        try:
            self._core.dmesg_write(f"(XEN) {record.getMessage()}\n")
        except Exception:
            self.handleError(record)


class _FileHandler(logging.Handler):
    """Writes to `path`; when that is full, its contents go to `path`.1. Opens both at once: later it could not."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(path, flags | os.O_APPEND, 0o600)
        self._old_fd = os.open(path.with_name(path.name + ".1"), flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def emit(self, record: logging.LogRecord) -> None:
        """Appends one record. A full disk loses it."""
        try:
            line = f"{self.format(record)}\n".encode(errors="replace")[:FILE_BYTES_MAX]
            if self._size + len(line) > FILE_BYTES_MAX:
                self._turn_over()
            self._size += os.write(self._fd, line)
        except OSError:
            return
        except Exception:
            self.handleError(record)

    def _turn_over(self) -> None:
        os.ftruncate(self._old_fd, 0)
        os.pwrite(self._old_fd, os.pread(self._fd, FILE_BYTES_MAX, 0), 0)
        os.ftruncate(self._fd, 0)
        self._size = 0


def set_up(path: Path | None) -> None:
    """Logs from now on to `path` (at most two files of 1 MiB) or standard error (warnings). Raises OSError."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    other: logging.Handler
    if path is not None:
        other = _FileHandler(path)
        other.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    else:
        other = logging.StreamHandler(sys.stderr)
        other.setLevel(logging.WARNING)
    root.addHandler(other)


def add_console_ring(core: Hypervisor) -> None:
    """Logs to the ring of `ring3 dmesg`, too."""
    logging.getLogger().addHandler(_ConsoleRingHandler(core))

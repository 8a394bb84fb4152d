"""Where ring3d's log lines go: the hypervisor's console ring, as Xen's do, and a file or standard error."""

from __future__ import annotations

import logging
import sys
from logging.handlers import RotatingFileHandler
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


def set_up(core: Hypervisor, path: Path | None) -> None:
    """Logs to the ring from now on, and to `path` (at most two files of 1 MiB) or standard error (warnings)."""
    root = logging.getLogger()
    root.setLevel(logging.INFO)
    root.addHandler(_ConsoleRingHandler(core))
    other: logging.Handler
    if path is not None:
        other = RotatingFileHandler(path, maxBytes=FILE_BYTES_MAX, backupCount=1)
        other.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    else:
        other = logging.StreamHandler(sys.stderr)
        other.setLevel(logging.WARNING)
    root.addHandler(other)

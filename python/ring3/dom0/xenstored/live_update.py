"""CONTROL live-update: the running program makes room for another, and nobody who is connected notices.

What it knew is in the state file; the connections of the socket go to the successor by way of the supervisor, which
starts it. Domains' event channels are bound again.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TextIO

from ring3.dom0.keeper import Keeper

_log = logging.getLogger(__name__)


class LiveUpdate:
    """What the administrator wants of the process (`control.Daemon`)."""

    def __init__(self, keeper: Keeper | None = None, directory: Path = Path()) -> None:
        """`directory` is what the names of files are relative to, and where the service may write them."""
        self._keeper = keeper
        self._directory = directory
        self._log_file: TextIO | None = None
        self._program = sys.executable
        self.is_due = False
        self.is_tracing = False

    def set_tracing(self, *, enabled: bool) -> None:
        """Logs each request, or no longer."""
        self.is_tracing = enabled

    def trace(self, text: str) -> None:
        """Writes what tracing says."""
        if self._log_file is not None:
            print(text, file=self._log_file, flush=True)
        else:
            _log.info("%s", text)

    def log_to(self, path: str) -> None:
        """Has trace() write to a file from now on. Raises OSError."""
        fd = os.open(self._directory / path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._log_file is not None:
            self._log_file.close()
        self._log_file = os.fdopen(fd, "a")

    def report(self, path: str, text: str) -> None:
        """Writes a text to a file. Raises OSError."""
        (self._directory / path).write_text(text)

    def note(self, text: str) -> None:
        """Writes to the log."""
        _log.info("%s", text)

    def live_update(self, arguments: list[str]) -> str:
        """Carries out the steps that xenstore-control takes: -f PROGRAM, then -s. Returns "OK", or why not."""
        if self._keeper is None:
            return "there is no supervisor that could start the successor"
        match arguments:
            case ["-f", program]:
                if not _is_program(Path(program)):
                    return f"{program} is no Python interpreter in a place where this service may look"
                self._program = program
            case ["-c", ""] | ["-a"]:
                self._program = sys.executable
            case ["-s", *_options]:
                # Open transactions need not be waited for: their end is refused with EAGAIN, and they begin again.
                self.is_due = True
            case _:
                return "unknown parameter: -f PROGRAM, -s and -a are what there is"
        return "OK"

    def hand_over(self, fds: list[int]) -> None:
        """Leaves the connections to the successor, which is started when this process ends."""
        if self._keeper is not None:
            self._keeper.replace(self._program, fds)


def _is_program(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.X_OK)
    except OSError:
        return False

"""CONTROL live-update: the running program makes room for another, and nobody who is connected notices.

The process stays; its program is executed anew, by the interpreter that is asked for. What it knew is in the state
file, with the connections of the socket, whose descriptors stay open. Domains' event channels are bound again.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

_log = logging.getLogger(__name__)


class LiveUpdate:
    """What the administrator wants of the process (`control.Daemon`)."""

    def __init__(self, *, has_happened: bool = False) -> None:
        self.has_happened = has_happened
        """Whether this process was xenstored already when its program started."""
        self.is_due = False
        self.is_tracing = False
        self.program = sys.executable

    def set_tracing(self, *, enabled: bool) -> None:
        """Logs each request, or no longer."""
        self.is_tracing = enabled

    def note(self, text: str) -> None:
        """Writes to the log."""
        _log.info("%s", text)

    def live_update(self, arguments: list[str]) -> str:
        """Carries out the steps that xenstore-control takes: -f PROGRAM, then -s. Returns "OK", or why not."""
        match arguments:
            case ["-f", program]:
                if not (Path(program).is_file() and os.access(program, os.X_OK)):
                    return f"{program} is no program: a Python interpreter is wanted"
                self.program = program
            case ["-c", ""] | ["-a"]:
                self.program = sys.executable
            case ["-s", *_options]:
                # Open transactions need not be waited for: their end is refused with EAGAIN, and they begin again.
                self.is_due = True
            case _:
                return "unknown parameter: -f PROGRAM, -s and -a are what there is"
        return "OK"

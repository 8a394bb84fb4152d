"""Where the files of a console are."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class ConsolePlace(NamedTuple):
    """The files of console `number` (0: the one that every domain has) of a domain, in the console directory."""

    directory: Path
    domid: int
    number: int = 0

    @property
    def name(self) -> str:
        """What the supervisor knows the pseudo-terminal by."""
        return f"{self.domid}-{self.number}"

    def _path(self, suffix: str) -> Path:
        return self.directory / (f"{self.domid}{suffix}" if self.number == 0 else f"{self.domid}-{self.number}{suffix}")

    @property
    def sock(self) -> Path:
        """Unix socket: the recent output, then what follows; input the other way."""
        return self._path(".sock")

    @property
    def stream(self) -> Path:
        """Unix socket for readers that count (`reader.StreamReader`)."""
        return self._path(".stream")

    @property
    def log(self) -> Path:
        """What the domain has printed."""
        return self._path(".log")

    @property
    def state(self) -> Path:
        """What a restarted daemon has to know of the log."""
        return self._path(".state")

    @property
    def owner(self) -> Path:
        """Which domain it was: the domain's handle, and the frame of the ring."""
        return self._path(".owner")

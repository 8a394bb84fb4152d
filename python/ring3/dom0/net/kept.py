"""What a front end has ordered by its rings, and a successor could not find there: multicast filter and hash.

A file of the service's directory, written before the front end is told that its order is carried out.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ring3.dom0.net.hashing import Hashing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Kept:
    """The file of one device."""

    path: Path

    def save(self, hashing: Hashing, multicast: Iterable[bytes]) -> None:
        """Writes it, in place of the former one at once."""
        state = {"hashing": hashing.state(), "multicast": [address.hex() for address in multicast]}
        partial = self.path.with_suffix(".part")
        try:
            partial.write_text(json.dumps(state))
            partial.replace(self.path)
        except OSError as error:
            _log.warning("%s: %s: a successor will not know what was ordered", self.path.name, error.strerror)

    def load(self) -> tuple[Hashing, set[bytes]]:
        """Returns what was ordered: of a predecessor's file, or nothing."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            state = json.loads(self.path.read_text())
            return Hashing.from_state(state["hashing"]), {bytes.fromhex(text) for text in state["multicast"]}
        return Hashing(), set()

    def clear(self) -> None:
        """Removes it."""
        with contextlib.suppress(OSError):
            self.path.unlink()

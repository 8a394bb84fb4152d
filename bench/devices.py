"""The tables of `make bench` about disks, networks and xenstore: each measured in turns, in the same run."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import disk
import network
import xenstore_rates
from contest import ContestError


@dataclass(frozen=True)
class Table:
    """What one of them gave: text in Markdown, or why there is none."""

    text: str
    failure: str = ""


def measure(cache: Path, rounds: int) -> list[Table]:
    """Returns the tables."""
    kinds: dict[str, Callable[[], str]] = {
        "disk": lambda: disk.table(disk.measure(rounds, 2.0)),
        "network": lambda: network.table(network.measure(cache, rounds, 4)),
        "xenstore": lambda: xenstore_rates.table(xenstore_rates.measure(cache)),
    }
    return [_one(name, make) for name, make in kinds.items()]


def _one(name: str, make: Callable[[], str]) -> Table:
    try:
        return Table(make())
    except (ContestError, OSError, subprocess.SubprocessError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return Table("", f"{name}: {error}")

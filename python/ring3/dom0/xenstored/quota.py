"""Limits of what one unprivileged domain may make xenstored hold. Plain values, no I/O.

Names and defaults are those of Xen's daemon (`xenstore-control quota`). A limit of 0 is no limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

DEFAULTS: Final = {
    "nodes": 1000,
    "watches": 128,
    "transactions": 10,
    "outstanding": 20,
    "transaction-nodes": 1024,
    "memory": 2560 << 10,
    "node-size": 2048,
    "path-max": 2048,
    "permissions": 5,
}
SOFT_DEFAULTS: Final = {"memory": 2048 << 10}
"""Who has more than this is named in the log, once (`xenstore-control quota-soft`)."""
_TEXTS: Final = {
    "nodes": "Nodes per domain",
    "watches": "Watches per domain",
    "transactions": "Transactions per domain",
    "outstanding": "Outstanding requests per domain",
    "transaction-nodes": "Max. number of accessed nodes per transaction",
    "memory": "Total Xenstore memory per domain in bytes",
    "node-size": "Max. size of a node",
    "path-max": "Max. length of a node path",
    "permissions": "Max. number of permissions per node",
}
SOFT: Final = "soft-"
"""What the names of soft quotas begin with in records."""
VALUE_MAX: Final = 0xFFFFFFFF


class Quotas:
    """The limits in force, by name."""

    def __init__(self, defaults: Mapping[str, int] = DEFAULTS) -> None:
        self._values = dict(defaults)

    def __getitem__(self, name: str) -> int:
        return self._values[name]

    def allows(self, name: str, wanted: int) -> bool:
        """Returns whether a domain may have that many."""
        limit = self._values[name]
        return limit == 0 or wanted <= limit

    def set(self, name: str, value: int) -> bool:
        """Changes a limit; False if there is none of that name, or the value is none."""
        if name not in self._values or not 0 <= value <= VALUE_MAX:
            return False
        self._values[name] = value
        return True

    def items(self) -> list[tuple[str, int]]:
        """Returns every name with its limit."""
        return list(self._values.items())

    def report(self) -> str:
        """Returns a line for each limit."""
        return "\n".join(f"{name:<17}: {value:>8} {_TEXTS[name]}" for name, value in self._values.items())

"""How fast a vif may send: so many bytes in so long, as Linux' back end counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

_BYTES_MIN = 131072
"""A packet of the largest size must pass at some time. Source: Linux, tx_add_credit()."""


@dataclass(slots=True)
class Credit:
    """Bytes in each period."""

    nr_bytes: int
    period_s: float
    left: float = 0.0
    renewed_at: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads the node `rate`: bytes, comma, microseconds. None if there is no limit in it."""
        nr_bytes, comma, period = text.partition(",")
        if not (comma and nr_bytes.isdecimal() and period.isdecimal()) or int(nr_bytes) == 0 or int(period) == 0:
            return None
        return cls(int(nr_bytes), int(period) / 1e6)

    def renew(self, now: float) -> float:
        """Returns the seconds until something may be sent again; 0 if now."""
        if now - self.renewed_at >= self.period_s:
            self.renewed_at = now
            self.left = min(self.left + self.nr_bytes, float(max(self.nr_bytes, _BYTES_MIN)))
        return 0.0 if self.left > 0 else max(self.renewed_at + self.period_s - now, 0.001)

    def spend(self, nr_bytes: int) -> None:
        """A packet was sent; what it was too long for is missing in the next period."""
        self.left -= nr_bytes

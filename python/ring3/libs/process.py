"""What processes of domain 0 ask of the host's kernel about each other."""

from __future__ import annotations

import ctypes
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""Source: Linux, linux/prctl.h."""


def die_with_parent(signal_number: int) -> None:
    """Has the kernel send this process a signal when its parent ends; a parent that is killed leaves nothing behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)

"""What processes of domain 0 ask of the host's kernel about each other, and of the C library about themselves."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
"""Source: Linux, linux/prctl.h."""


def die_with_parent(signal_number: int) -> None:
    """Has the kernel send this process a signal when its parent ends; a parent that is killed leaves nothing behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number)


def settle() -> None:
    """For a process that has what it needs for long, or is about to fork. Gives freed memory back, and has the garbage
    collector leave alone what there is: it writes to what it visits, and so copies pages that are shared.
    """
    gc.freeze()
    with contextlib.suppress(AttributeError):  # a C library without it
        ctypes.CDLL(None).malloc_trim(0)

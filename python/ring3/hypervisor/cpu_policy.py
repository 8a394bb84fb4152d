"""CPU policies as hypercalls copy them: arrays of xen_cpuid_leaf and xen_msr_entry. What they mean is the core's."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from ring3.abi.arch_x86 import xen_cpuid_leaf, xen_msr_entry
from ring3.abi.errno import ENOBUFS
from ring3.errors import HypercallError

if TYPE_CHECKING:
    from ring3._core import HypercallContext

LEAF_BYTES: Final = ctypes.sizeof(xen_cpuid_leaf)
MSR_BYTES: Final = ctypes.sizeof(xen_msr_entry)
NR_LEAVES_MAX: Final = 14 + (2 - 1) + (6 - 1) + (2 - 1) + (63 - 1) + 2 + 0x22
"""Leaves and subleaves that a policy can have: basic, of leaves 7, 4, 0xb, 0xd, the hypervisor's limits, extended."""
NR_MSRS_MAX: Final = 2


def write(ctx: HypercallContext, handle: int, nr_entries: int, packed: bytes, entry_bytes: int, nr_max: int) -> int:
    """Copies an array out and returns how many entries it has; nr_max if there is no handle.

    Raises HypercallError(ENOBUFS) if the caller has room for fewer: those are copied.
    """
    if handle == 0:
        return nr_max
    nr_given = len(packed) // entry_bytes
    ctx.write(handle, packed[: nr_entries * entry_bytes])
    if nr_entries < nr_given:
        raise HypercallError(ENOBUFS)
    return nr_given

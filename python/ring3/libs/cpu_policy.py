"""CPU policies: what a domain's CPUs show by CPUID. The hypercalls of Xen 4.17."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Final, TypeAlias

from ring3.abi.arch_x86 import XEN_CPUID_NO_SUBLEAF, xen_cpuid_leaf
from ring3.abi.domctl import (
    XEN_DOMCTL_INTERFACE_VERSION,
    XEN_DOMCTL_get_cpu_policy,
    XEN_DOMCTL_set_cpu_policy,
    xen_domctl,
)
from ring3.abi.sysctl import XEN_SYSCTL_INTERFACE_VERSION, XEN_SYSCTL_get_cpu_policy, xen_sysctl
from ring3.abi.xen import __HYPERVISOR_domctl as DOMCTL
from ring3.abi.xen import __HYPERVISOR_sysctl as SYSCTL
from ring3.libs.connection import Connection

Leaves: TypeAlias = dict[tuple[int, int], tuple[int, int, int, int]]
"""EAX, EBX, ECX, EDX by leaf and subleaf; NO_SUBLEAF where a leaf has none."""
NO_SUBLEAF: Final = XEN_CPUID_NO_SUBLEAF
_LEAF_BYTES: Final = ctypes.sizeof(xen_cpuid_leaf)
_NR_LEAVES_MAX: Final = 256


def of_domain(conn: Connection, domid: int) -> Leaves:
    """Returns what a domain's CPUs show. Raises HypercallError."""
    op = xen_domctl(cmd=XEN_DOMCTL_get_cpu_policy, interface_version=XEN_DOMCTL_INTERFACE_VERSION, domain=domid)
    with conn.arena() as arena:
        slot = arena.put(bytes(_NR_LEAVES_MAX * _LEAF_BYTES))
        op.u.cpu_policy.nr_leaves = _NR_LEAVES_MAX
        op.u.cpu_policy.leaves = slot.handle
        conn.call(DOMCTL, None, op, subop=op.cmd)
        return _unpack(slot.bytes(), op.u.cpu_policy.nr_leaves)


def of_machine(conn: Connection, index: int) -> Leaves:
    """Returns the policy XEN_SYSCTL_cpu_policy_*. Raises HypercallError."""
    op = xen_sysctl(cmd=XEN_SYSCTL_get_cpu_policy, interface_version=XEN_SYSCTL_INTERFACE_VERSION)
    with conn.arena() as arena:
        slot = arena.put(bytes(_NR_LEAVES_MAX * _LEAF_BYTES))
        op.u.cpu_policy.index = index
        op.u.cpu_policy.nr_leaves = _NR_LEAVES_MAX
        op.u.cpu_policy.leaves = slot.handle
        conn.call(SYSCTL, None, op, subop=op.cmd)
        return _unpack(slot.bytes(), op.u.cpu_policy.nr_leaves)


def set_of_domain(conn: Connection, domid: int, leaves: Mapping[tuple[int, int], tuple[int, int, int, int]]) -> None:
    """Changes leaves of a domain that has not run. What the machine does not have is cut off. Raises HypercallError."""
    packed = b"".join(bytes(xen_cpuid_leaf(*key, *values)) for key, values in sorted(leaves.items()))
    op = xen_domctl(cmd=XEN_DOMCTL_set_cpu_policy, interface_version=XEN_DOMCTL_INTERFACE_VERSION, domain=domid)
    with conn.arena() as arena:
        op.u.cpu_policy.nr_leaves = len(leaves)
        op.u.cpu_policy.leaves = arena.put(packed).handle if packed else 0
        conn.call(DOMCTL, None, op, subop=op.cmd)


def _unpack(raw: bytes, nr_leaves: int) -> Leaves:
    entries = (xen_cpuid_leaf.from_buffer_copy(raw, index * _LEAF_BYTES) for index in range(nr_leaves))
    return {(entry.leaf, entry.subleaf): (entry.a, entry.b, entry.c, entry.d) for entry in entries}

"""Sysctls about CPUs' features: get_cpu_policy, get_cpu_featureset, get_cpu_levelling_caps."""

from __future__ import annotations

import ctypes
from struct import Struct
from typing import TYPE_CHECKING, Final, TypeVar

from ring3.abi.arch_x86 import XEN_CPUID_NO_SUBLEAF, xen_cpuid_leaf, xen_msr_entry
from ring3.abi.errno import EINVAL, ENOBUFS, EOPNOTSUPP
from ring3.abi.sysctl import (
    XEN_SYSCTL_CPU_LEVELCAP_faulting,
    XEN_SYSCTL_cpu_policy_host,
    XEN_SYSCTL_cpu_policy_hvm_default,
    XEN_SYSCTL_cpu_policy_hvm_max,
    XEN_SYSCTL_cpu_policy_raw,
    XEN_SYSCTL_get_cpu_featureset,
    XEN_SYSCTL_get_cpu_levelling_caps,
    XEN_SYSCTL_get_cpu_policy,
    xen_sysctl,
)
from ring3.errors import HypercallError
from ring3.hypervisor import cpu_policy
from ring3.hypervisor.registry import Coverage
from ring3.hypervisor.sysctl import SYSCTL

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

EntryT = TypeVar("EntryT", bound=ctypes.Structure)
_NONE: Final = XEN_CPUID_NO_SUBLEAF
_WORDS: Final = (
    *((1, _NONE, "d"), (1, _NONE, "c"), (0x80000001, _NONE, "d"), (0x80000001, _NONE, "c"), (0xD, 1, "a")),
    *((7, 0, "b"), (7, 0, "c"), (0x80000007, _NONE, "d"), (0x80000008, _NONE, "b"), (7, 0, "d"), (7, 1, "a")),
    *((0x80000021, _NONE, "a"), (7, 1, "b"), (7, 2, "d"), (7, 1, "c"), (7, 1, "d")),
    *((0x10A, 0, "low"), (0x10A, 0, "high"), (0x80000021, _NONE, "c")),
)
"""Where each word of a featureset comes from. Source: arch-x86/cpufeatureset.h."""
_WORD: Final = Struct("<I")
_FEATURESET_OF_POLICY: Final = {0: 0, 1: 1, 2: 4, 3: 5, 4: 2, 5: 3}
"""Featuresets and policies are numbered otherwise: (pv, hvm, pv_max, hvm_max), (pv_max, hvm_max, pv_default, ...)."""


def _policy(xen: Xen, index: int) -> tuple[bytes, bytes]:
    """Returns leaves and MSRs by XEN_SYSCTL_cpu_policy_*. Raises HypercallError(EINVAL; EOPNOTSUPP: HVM)."""
    if index in (XEN_SYSCTL_cpu_policy_hvm_max, XEN_SYSCTL_cpu_policy_hvm_default):
        raise HypercallError(EOPNOTSUPP)
    if index > XEN_SYSCTL_cpu_policy_hvm_default:
        raise HypercallError(EINVAL)
    is_host = index in (XEN_SYSCTL_cpu_policy_raw, XEN_SYSCTL_cpu_policy_host)
    return xen.core.machine_cpu_policy(greatest=not is_host)


@SYSCTL.subop(XEN_SYSCTL_get_cpu_policy, "get_cpu_policy", Coverage.FULL, "no HVM: -EOPNOTSUPP")
def get_cpu_policy(xen: Xen, ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Copies out what the host's CPUs show, or what domains' can show: at most, and unless told otherwise, the same."""
    arg = op.u.cpu_policy
    if arg._rsvd:
        raise HypercallError(EINVAL, "sysctl", op.cmd)
    leaves, msrs = _policy(xen, arg.index)
    arg.nr_leaves = cpu_policy.write(
        ctx, arg.leaves, arg.nr_leaves, leaves, cpu_policy.LEAF_BYTES, cpu_policy.NR_LEAVES_MAX
    )
    arg.nr_msrs = cpu_policy.write(ctx, arg.msrs, arg.nr_msrs, msrs, cpu_policy.MSR_BYTES, cpu_policy.NR_MSRS_MAX)
    return True


def featureset(policy: tuple[bytes, bytes]) -> list[int]:
    """Returns the words of a policy's featureset."""
    packed_leaves, packed_msrs = policy
    leaves = {(leaf.leaf, leaf.subleaf): leaf for leaf in _entries(xen_cpuid_leaf, packed_leaves)}
    msrs = {entry.idx: entry.val for entry in _entries(xen_msr_entry, packed_msrs)}
    words = []
    for leaf, subleaf, register in _WORDS:
        if register in ("low", "high"):
            words.append(msrs.get(leaf, 0) >> (32 if register == "high" else 0) & 0xFFFFFFFF)
        else:
            found = leaves.get((leaf, subleaf))
            words.append(getattr(found, register) if found is not None else 0)
    return words


def _entries(kind: type[EntryT], packed: bytes) -> list[EntryT]:
    size = ctypes.sizeof(kind)
    return [kind.from_buffer_copy(packed, at) for at in range(0, len(packed), size)]


@SYSCTL.subop(XEN_SYSCTL_get_cpu_featureset, "get_cpu_featureset", Coverage.FULL, "no HVM: -EOPNOTSUPP")
def get_cpu_featureset(xen: Xen, ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Copies out features as bits, or says how many words they are."""
    arg = op.u.cpu_featureset
    if arg.features == 0:
        arg.nr_features = len(_WORDS)
        return True
    if arg.index not in _FEATURESET_OF_POLICY:
        raise HypercallError(EINVAL, "sysctl", op.cmd)
    words = featureset(_policy(xen, _FEATURESET_OF_POLICY[arg.index]))
    given = words[: arg.nr_features]
    if given:
        ctx.write(arg.features, b"".join(_WORD.pack(word) for word in given))
    if len(given) < len(words):
        raise HypercallError(ENOBUFS, "sysctl", op.cmd)
    arg.nr_features = len(given)
    return True


@SYSCTL.subop(XEN_SYSCTL_get_cpu_levelling_caps, "get_cpu_levelling_caps", Coverage.FULL)
def get_cpu_levelling_caps(_xen: Xen, _ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Says that `cpuid` of guests' users is caught, as by CPUID faulting."""
    op.u.cpu_levelling_caps.caps = XEN_SYSCTL_CPU_LEVELCAP_faulting
    return True

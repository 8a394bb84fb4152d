"""Domctls of CPU state that is in no vcpu_guest_context: get_cpu_policy, set_cpu_policy, extended state, MSRs."""

from __future__ import annotations

import ctypes
from struct import Struct
from typing import TYPE_CHECKING, Final

from ring3._core import CoreError
from ring3.abi.domctl import (
    XEN_DOMCTL_get_cpu_policy,
    XEN_DOMCTL_get_vcpu_msrs,
    XEN_DOMCTL_getvcpuextstate,
    XEN_DOMCTL_set_cpu_policy,
    XEN_DOMCTL_set_vcpu_msrs,
    XEN_DOMCTL_setvcpuextstate,
    xen_domctl,
    xen_domctl_vcpu_msr,
)
from ring3.abi.errno import EINVAL, ENOBUFS, ERANGE, ESRCH
from ring3.errors import HypercallError
from ring3.hypervisor import cpu_policy
from ring3.hypervisor.domctl import DOMCTL, other_target, target
from ring3.hypervisor.registry import Coverage
from ring3.hypervisor.state import DOM0
from ring3.hypervisor.subops import RefusedWithResultsError

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

_XCR0: Final = Struct("<QQ")
"""What precedes the XSAVE area: XCR0, and all bits that it was ever given."""
_AREA_BYTES_MIN: Final = 576
_AREA_BYTES_MAX: Final = 832
_XFEATURE_MASK: Final = 7
"""x87, SSE, AVX."""
_MSR_BYTES: Final = ctypes.sizeof(xen_domctl_vcpu_msr)
_NR_MSRS_MAX: Final = 3
"""SPEC_CTRL, MISC_FEATURES_ENABLES, TSC_AUX."""


def _vcpu_of(xen: Xen, op: xen_domctl, vcpu: int) -> tuple[int, int]:
    """Returns (domid, vCPU id). Raises HypercallError(ESRCH) for a vCPU that is not there, as on Xen."""
    domid = other_target(xen, op)
    record = xen.domains.get(domid)
    if record is None or vcpu >= record.max_vcpus or not record.has_vcpus:
        raise HypercallError(ESRCH, "domctl", op.cmd)
    return domid, vcpu


@DOMCTL.subop(XEN_DOMCTL_get_cpu_policy, "get_cpu_policy", Coverage.FULL)
def get_cpu_policy(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Copies out what a domain's CPUs show; domain 0 has what a domain can have at most."""
    domid = target(xen, op)
    leaves, msrs = xen.core.machine_cpu_policy(greatest=True) if domid == DOM0 else xen.core.cpu_policy(domid)
    arg = op.u.cpu_policy
    arg.nr_leaves = cpu_policy.write(
        ctx, arg.leaves, arg.nr_leaves, leaves, cpu_policy.LEAF_BYTES, cpu_policy.NR_LEAVES_MAX
    )
    arg.nr_msrs = cpu_policy.write(ctx, arg.msrs, arg.nr_msrs, msrs, cpu_policy.MSR_BYTES, cpu_policy.NR_MSRS_MAX)
    return True


@DOMCTL.subop(XEN_DOMCTL_set_cpu_policy, "set_cpu_policy", Coverage.FULL)
def set_cpu_policy(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Changes what the CPUs of a domain show that has not run. What this machine does not have is cut off."""
    domid = other_target(xen, op)
    arg = op.u.cpu_policy
    if arg.nr_leaves > cpu_policy.NR_LEAVES_MAX or arg.nr_msrs > cpu_policy.NR_MSRS_MAX:
        raise HypercallError(ERANGE, "domctl", op.cmd)
    leaves = ctx.read(arg.leaves, arg.nr_leaves * cpu_policy.LEAF_BYTES) if arg.nr_leaves else b""
    msrs = ctx.read(arg.msrs, arg.nr_msrs * cpu_policy.MSR_BYTES) if arg.nr_msrs else b""
    refusal = xen.core.set_cpu_policy(domid, leaves, msrs)
    if refusal is not None:
        errno, arg.err_leaf, arg.err_subleaf, arg.err_msr = refusal
        raise RefusedWithResultsError(errno, "domctl", op.cmd)
    return False


@DOMCTL.subop(XEN_DOMCTL_getvcpuextstate, "getvcpuextstate", Coverage.FULL)
def getvcpuextstate(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Copies out XCR0 and the extended state; or says how large that is."""
    arg = op.u.vcpuextstate
    domid, vcpu = _vcpu_of(xen, op, arg.vcpu)
    xcr0, xcr0_accum, area = xen.core.vcpu_ext_state(domid, vcpu)
    size = _XCR0.size + len(area) if area else 0
    if (arg.size == 0 and arg.xfeature_mask == 0) or arg.buffer == 0:
        arg.size, arg.xfeature_mask = size, _XFEATURE_MASK
        return True
    if arg.size != size or arg.xfeature_mask != _XFEATURE_MASK:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    if size:
        ctx.write(arg.buffer, _XCR0.pack(xcr0, xcr0_accum) + area)
    return True


@DOMCTL.subop(XEN_DOMCTL_setvcpuextstate, "setvcpuextstate", Coverage.FULL)
def setvcpuextstate(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Gives a vCPU XCR0 and extended state."""
    arg = op.u.vcpuextstate
    domid, vcpu = _vcpu_of(xen, op, arg.vcpu)
    if not _XCR0.size <= arg.size <= _XCR0.size + _AREA_BYTES_MAX:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    raw = ctx.read(arg.buffer, arg.size)
    xcr0, xcr0_accum = _XCR0.unpack_from(raw)
    xen.core.set_vcpu_ext_state(domid, vcpu, xcr0, xcr0_accum, raw[_XCR0.size :])
    return False


@DOMCTL.subop(XEN_DOMCTL_get_vcpu_msrs, "get_vcpu_msrs", Coverage.FULL)
def get_vcpu_msrs(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Copies out the MSRs that are not zero; or says how many there may be."""
    arg = op.u.vcpu_msrs
    domid, vcpu = _vcpu_of(xen, op, arg.vcpu)
    if arg.msrs == 0:
        arg.msr_count = _NR_MSRS_MAX
        return True
    msrs = xen.core.vcpu_msrs(domid, vcpu)
    given = msrs[: arg.msr_count]
    if given:
        ctx.write(arg.msrs, b"".join(bytes(xen_domctl_vcpu_msr(msr, 0, value)) for msr, value in given))
    arg.msr_count = len(msrs)
    if len(given) < len(msrs):
        raise RefusedWithResultsError(ENOBUFS, "domctl", op.cmd)
    return True


@DOMCTL.subop(XEN_DOMCTL_set_vcpu_msrs, "set_vcpu_msrs", Coverage.FULL)
def set_vcpu_msrs(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Sets MSRs in turn; where one is refused, its index is told."""
    arg = op.u.vcpu_msrs
    domid, vcpu = _vcpu_of(xen, op, arg.vcpu)
    if arg.msrs == 0:
        arg.msr_count = _NR_MSRS_MAX
        return True
    if arg.msr_count > _NR_MSRS_MAX:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    for index in range(arg.msr_count):
        entry = xen_domctl_vcpu_msr.from_buffer_copy(ctx.read(arg.msrs + index * _MSR_BYTES, _MSR_BYTES))
        try:
            if entry.reserved:
                raise CoreError(EINVAL, "reserved field")
            xen.core.set_vcpu_msr(domid, vcpu, entry.index, entry.value)
        except CoreError as error:
            arg.msr_count = index
            raise RefusedWithResultsError(EINVAL, "domctl", op.cmd) from error
    return False

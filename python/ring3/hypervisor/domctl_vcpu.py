"""Domctls of one vCPU: context, information, affinity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ring3.abi.domctl import (
    XEN_VCPUAFFINITY_FORCE,
    XEN_VCPUAFFINITY_HARD,
    XEN_VCPUAFFINITY_SOFT,
    XEN_DOMCTL_getvcpuaffinity,
    XEN_DOMCTL_getvcpucontext,
    XEN_DOMCTL_getvcpuinfo,
    XEN_DOMCTL_setvcpuaffinity,
    XEN_DOMCTL_setvcpucontext,
    xen_domctl,
    xenctl_bitmap,
)
from ring3.abi.errno import EINVAL, EOPNOTSUPP, ESRCH
from ring3.errors import HypercallError
from ring3.hypervisor.domctl import DOMCTL, other_target
from ring3.hypervisor.registry import Coverage

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

VCPU_GUEST_CONTEXT_BYTES: Final = 5168
"""Source: xen/include/public/arch-x86/xen.h, struct vcpu_guest_context, 64-bit."""


def vcpu_of(xen: Xen, op: xen_domctl, vcpu: int) -> tuple[int, int]:
    """Returns (domid, vCPU id). Raises HypercallError: EINVAL past the last vCPU, ESRCH before max_vcpus made it."""
    domid = other_target(xen, op)
    record = xen.domains.get(domid)
    if record is None or vcpu >= record.max_vcpus:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    if not record.has_vcpus:
        raise HypercallError(ESRCH, "domctl", op.cmd)
    return domid, vcpu


@DOMCTL.subop(
    XEN_DOMCTL_setvcpucontext, "setvcpucontext", Coverage.PARTIAL, "a null context (reset) is refused, -EOPNOTSUPP"
)
def setvcpucontext(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Gives a vCPU its registers and tables."""
    domid, vcpu = vcpu_of(xen, op, op.u.vcpucontext.vcpu)
    if op.u.vcpucontext.ctxt == 0:
        raise HypercallError(EOPNOTSUPP, "domctl", op.cmd)
    xen.core.vcpu_set_context(domid, vcpu, ctx.read(op.u.vcpucontext.ctxt, VCPU_GUEST_CONTEXT_BYTES))
    return False


@DOMCTL.subop(XEN_DOMCTL_getvcpucontext, "getvcpucontext", Coverage.FULL)
def getvcpucontext(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Copies a vCPU's registers and tables out."""
    domid, vcpu = vcpu_of(xen, op, op.u.vcpucontext.vcpu)
    ctx.write(op.u.vcpucontext.ctxt, xen.core.vcpu_get_context(domid, vcpu))
    return True


@DOMCTL.subop(XEN_DOMCTL_getvcpuinfo, "getvcpuinfo", Coverage.FULL)
def getvcpuinfo(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Tells whether a vCPU runs, where, and how much it has run."""
    domid, vcpu = vcpu_of(xen, op, op.u.getvcpuinfo.vcpu)
    info = xen.core.vcpu_info(domid, vcpu)
    out = op.u.getvcpuinfo
    out.online, out.blocked, out.running = int(info.online), int(info.blocked), int(info.running)
    out.cpu_time = info.cpu_time_ns
    out.cpu = info.cpu
    return True


@DOMCTL.subop(
    XEN_DOMCTL_setvcpuaffinity, "setvcpuaffinity", Coverage.PARTIAL, "only masks of all pCPUs; else -EOPNOTSUPP"
)
def setvcpuaffinity(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Accepts what every vCPU has: all pCPUs. A narrower hard mask would be a promise that nobody keeps."""
    argument = op.u.vcpuaffinity
    vcpu_of(xen, op, argument.vcpu)
    if not argument.flags & (XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT):
        raise HypercallError(EINVAL, "domctl", op.cmd)
    if argument.flags & XEN_VCPUAFFINITY_FORCE:
        raise HypercallError(EOPNOTSUPP, "domctl", op.cmd)
    for flag, bitmap in _masks(op):
        wanted = _read_mask(xen, ctx, bitmap)
        if argument.flags & flag and wanted == 0:
            raise HypercallError(EINVAL, "domctl", op.cmd)
        if argument.flags & flag and wanted != _all_pcpus(xen):
            raise HypercallError(EOPNOTSUPP, "domctl", op.cmd)
    return False


@DOMCTL.subop(XEN_DOMCTL_getvcpuaffinity, "getvcpuaffinity", Coverage.FULL)
def getvcpuaffinity(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Returns all pCPUs."""
    argument = op.u.vcpuaffinity
    vcpu_of(xen, op, argument.vcpu)
    if not argument.flags & (XEN_VCPUAFFINITY_HARD | XEN_VCPUAFFINITY_SOFT):
        raise HypercallError(EINVAL, "domctl", op.cmd)
    for flag, bitmap in _masks(op):
        if argument.flags & flag:
            nr_bytes = (bitmap.nr_bits + 7) // 8
            mask = _all_pcpus(xen) & ((1 << bitmap.nr_bits) - 1)
            nr_mask_bytes = (xen.core.nr_pcpus + 7) // 8
            ctx.write(bitmap.bitmap, mask.to_bytes(nr_mask_bytes, "little")[:nr_bytes])
    return False


def _masks(op: xen_domctl) -> list[tuple[int, xenctl_bitmap]]:
    argument = op.u.vcpuaffinity
    return [(XEN_VCPUAFFINITY_HARD, argument.cpumap_hard), (XEN_VCPUAFFINITY_SOFT, argument.cpumap_soft)]


def _all_pcpus(xen: Xen) -> int:
    return (1 << xen.core.nr_pcpus) - 1


def _read_mask(xen: Xen, ctx: HypercallContext, bitmap: xenctl_bitmap) -> int:
    """Returns the bits for pCPUs that exist; those beyond are ignored, as Xen does. The size is the caller's word."""
    nr_bytes = min((bitmap.nr_bits + 7) // 8, (xen.core.nr_pcpus + 7) // 8)
    if nr_bytes == 0 or bitmap.bitmap == 0:
        return 0
    mask = int.from_bytes(ctx.read(bitmap.bitmap, nr_bytes), "little")
    return mask & _all_pcpus(xen) & ((1 << bitmap.nr_bits) - 1)

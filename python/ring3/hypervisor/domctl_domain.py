"""Domctls of a domain's life: createdomain, max_vcpus, max_mem, pause, unpause, destroy, and small settings."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from ring3.abi.arch_x86 import XEN_X86_EMU_PIT, XEN_X86_MSR_RELAXED
from ring3.abi.domctl import (
    XEN_DOMCTL_CDF_hap,
    XEN_DOMCTL_CDF_hvm,
    XEN_DOMCTL_CDF_iommu,
    XEN_DOMCTL_CDF_nested_virt,
    XEN_DOMCTL_CDF_vpmu,
    XEN_DOMCTL_CDF_xs_domain,
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_destroydomain,
    XEN_DOMCTL_get_address_size,
    XEN_DOMCTL_getpageframeinfo3,
    XEN_DOMCTL_hypercall_init,
    XEN_DOMCTL_max_mem,
    XEN_DOMCTL_max_vcpus,
    XEN_DOMCTL_pausedomain,
    XEN_DOMCTL_set_address_size,
    XEN_DOMCTL_setdomainhandle,
    XEN_DOMCTL_unpausedomain,
    xen_domctl,
)
from ring3.abi.errno import E2BIG, EEXIST, EINVAL, ENOENT, EOPNOTSUPP
from ring3.abi.xen import DOMID_FIRST_RESERVED
from ring3.errors import HypercallError
from ring3.hypervisor.domctl import DOMCTL, other_target, target
from ring3.hypervisor.registry import Coverage
from ring3.hypervisor.state import DomainRecord

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

_NR_PAGE_FRAMES_MAX: Final = 1024
"""Source: xen/arch/x86/domctl.c: getpageframeinfo3 of more is -E2BIG."""
NR_GRANT_FRAMES_DEFAULT: Final = 64
"""What max_grant_frames < 0 means. Source: Xen's command line, gnttab_max_frames."""
NR_GRANT_FRAMES_MAX: Final = 1024
NR_MAPTRACK_FRAMES_DEFAULT: Final = 1024
"""What max_maptrack_frames < 0 means. Source: Xen's command line, gnttab_max_maptrack_frames."""
NR_MAPTRACK_FRAMES_MAX: Final = 65536
NR_EVENT_CHANNELS_MAX: Final = 131072
_U32: Final = Struct("<I")


@DOMCTL.subop(XEN_DOMCTL_createdomain, "createdomain", Coverage.PARTIAL, "PV only; no IOMMU, vPMU, vmtrace, cpupools")
def createdomain(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Creates a paused domain. Source of the checks: Xen's sanitise_domain_config."""
    config = op.u.createdomain
    if config.flags & (XEN_DOMCTL_CDF_hvm | XEN_DOMCTL_CDF_hap | XEN_DOMCTL_CDF_nested_virt):
        raise HypercallError(EOPNOTSUPP, "domctl", op.cmd)
    if config.flags & ~XEN_DOMCTL_CDF_xs_domain or config.flags & (XEN_DOMCTL_CDF_iommu | XEN_DOMCTL_CDF_vpmu):
        raise HypercallError(EINVAL, "domctl", op.cmd)
    if config.max_vcpus < 1 or config.iommu_opts or config.vmtrace_size:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    if config.grant_opts & ~0xF or config.grant_opts & 0xF not in (1, 2):
        raise HypercallError(EINVAL, "domctl", op.cmd)
    if config.cpupool_id != 0:
        raise HypercallError(ENOENT, "domctl", op.cmd)
    if config.arch.emulation_flags & ~XEN_X86_EMU_PIT or config.arch.misc_flags & ~XEN_X86_MSR_RELAXED:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    nr_grant_frames = config.max_grant_frames if config.max_grant_frames >= 0 else NR_GRANT_FRAMES_DEFAULT
    nr_maptrack_frames = config.max_maptrack_frames if config.max_maptrack_frames >= 0 else NR_MAPTRACK_FRAMES_DEFAULT
    if nr_grant_frames > NR_GRANT_FRAMES_MAX or nr_maptrack_frames > NR_MAPTRACK_FRAMES_MAX:
        raise HypercallError(EINVAL, "domctl", op.cmd)

    wanted = op.domain if 0 < op.domain < DOMID_FIRST_RESERVED else 0
    if wanted and wanted in xen.core.domain_list():
        raise HypercallError(EEXIST, "domctl", op.cmd)
    xen.forget_dead()
    handle = bytes(config.handle)
    domid = xen.core.domain_create(
        wanted,
        flags=config.flags,
        max_vcpus=config.max_vcpus,
        max_event_channels=min(config.max_evtchn_port + 1, NR_EVENT_CHANNELS_MAX),
        max_grant_frames=nr_grant_frames,
        max_maptrack_frames=nr_maptrack_frames,
        max_grant_version=config.grant_opts & 0xF,
        handle=handle,
        emulation_flags=config.arch.emulation_flags,
        misc_flags=config.arch.misc_flags,
    )
    xen.domains[domid] = DomainRecord(config.max_vcpus, handle, config.ssidref)
    op.domain = domid
    return True


@DOMCTL.subop(XEN_DOMCTL_max_vcpus, "max_vcpus", Coverage.FULL)
def max_vcpus(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Makes the vCPUs that createdomain announced; since Xen 4.15 the number must be the same."""
    record = xen.domains.get(other_target(xen, op))
    if record is None or op.u.max_vcpus.max != record.max_vcpus:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    record.has_vcpus = True
    return False


@DOMCTL.subop(XEN_DOMCTL_max_mem, "max_mem", Coverage.FULL)
def max_mem(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Sets how many frames a domain may have, domain 0 too. May be below what it has: then it gets no more."""
    xen.core.domain_set_max_pages(target(xen, op), min(op.u.max_mem.max_memkb >> 2, 0xFFFFFFFF))
    return False


@DOMCTL.subop(XEN_DOMCTL_pausedomain, "pausedomain", Coverage.FULL)
def pausedomain(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Stops a domain's vCPUs; returns when they have stopped."""
    xen.core.domain_pause(other_target(xen, op))
    return False


@DOMCTL.subop(XEN_DOMCTL_unpausedomain, "unpausedomain", Coverage.FULL)
def unpausedomain(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Takes back one pausedomain, or the pause that a domain is created with."""
    xen.core.domain_unpause(other_target(xen, op))
    return False


@DOMCTL.subop(XEN_DOMCTL_destroydomain, "destroydomain", Coverage.FULL)
def destroydomain(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Destroys a domain; returns when all that it had is free."""
    domid = other_target(xen, op)
    xen.core.domain_destroy(domid)
    xen.domains.pop(domid, None)
    return False


@DOMCTL.subop(XEN_DOMCTL_hypercall_init, "hypercall_init", Coverage.FULL)
def hypercall_init(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Fills a frame of the domain with hypercall stubs."""
    xen.core.set_hypercall_page(other_target(xen, op), op.u.hypercall_init.gmfn)
    return False


@DOMCTL.subop(XEN_DOMCTL_getpageframeinfo3, "getpageframeinfo3", Coverage.FULL)
def getpageframeinfo3(xen: Xen, ctx: HypercallContext, op: xen_domctl) -> bool:
    """Says of frames whether they are the domain's, and which are page tables."""
    arg = op.u.getpageframeinfo3
    if arg.num > _NR_PAGE_FRAMES_MAX:
        raise HypercallError(E2BIG, "domctl", op.cmd)
    found = xen.core.page_frame_info(other_target(xen, op), ctx.read(arg.array, 8 * arg.num))
    ctx.write(arg.array, found)
    return True


@DOMCTL.subop(XEN_DOMCTL_setdomainhandle, "setdomainhandle", Coverage.FULL)
def setdomainhandle(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Changes the 16 bytes by which tools recognize a domain."""
    record = xen.domains.get(other_target(xen, op))
    if record is None:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    record.handle = bytes(op.u.pad[:16])
    return False


@DOMCTL.subop(XEN_DOMCTL_set_address_size, "set_address_size", Coverage.PARTIAL, "64 only: no 32-bit PV")
def set_address_size(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Accepts what every domain is."""
    other_target(xen, op)
    if _U32.unpack_from(bytes(op.u.pad))[0] != 64:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    return False


@DOMCTL.subop(XEN_DOMCTL_get_address_size, "get_address_size", Coverage.FULL)
def get_address_size(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Returns 64."""
    target(xen, op)
    _U32.pack_into(op.u.pad, 0, 64)
    return True

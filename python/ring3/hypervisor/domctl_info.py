"""XEN_DOMCTL_getdomaininfo, and the structure that XEN_SYSCTL_getdomaininfolist shares with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ring3.abi.domctl import XEN_DOMCTL_getdomaininfo, xen_domctl, xen_domctl_getdomaininfo
from ring3.abi.errno import EINVAL, ESRCH
from ring3.abi.xen import DOMID_FIRST_RESERVED
from ring3.errors import HypercallError
from ring3.hypervisor.domctl import DOMCTL, NAMES
from ring3.hypervisor.registry import Coverage

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen


def fill(xen: Xen, domid: int) -> xen_domctl_getdomaininfo:
    """Returns the structure for one domain. Raises HypercallError(ESRCH)."""
    info = xen.info(domid)
    record = xen.domains.get(domid)
    out = xen_domctl_getdomaininfo()
    out.domain = domid
    out.flags = info.flags
    out.tot_pages = info.nr_pages
    out.max_pages = info.max_pages
    out.shared_info_frame = info.shared_info_mfn
    out.cpu_time = info.cpu_time_ns
    out.nr_online_vcpus = info.nr_online_vcpus
    out.max_vcpu_id = info.max_vcpu_id
    out.ssidref = record.ssidref if record is not None else 0
    out.handle[:] = list((record.handle if record is not None else info.handle)[:16].ljust(16, b"\0"))
    return out


@DOMCTL.subop(XEN_DOMCTL_getdomaininfo, "getdomaininfo", Coverage.FULL)
def getdomaininfo(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Describes the domain, or the next one above if there is none of that id: tools walk the list so."""
    if op.domain >= DOMID_FIRST_RESERVED:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    for domid in xen.domids():
        if domid >= op.domain:
            op.u.getdomaininfo = fill(xen, domid)
            op.domain = domid
            return True
    raise HypercallError(ESRCH, "domctl", op.cmd)


def list_absent() -> None:
    """Adds the rows of the domctls that nobody answers; called when all sub-ops are registered."""
    DOMCTL.absent(NAMES)

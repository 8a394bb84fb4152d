"""Domctls of a domain's TSC: settscinfo, gettscinfo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ring3.abi.domctl import XEN_DOMCTL_gettscinfo, XEN_DOMCTL_settscinfo, xen_domctl
from ring3.hypervisor.domctl import DOMCTL, other_target
from ring3.hypervisor.registry import Coverage

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen


@DOMCTL.subop(XEN_DOMCTL_settscinfo, "settscinfo", Coverage.FULL)
def settscinfo(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Sets mode, frequency and how much time the TSC has counted."""
    info = op.u.tsc_info
    xen.core.set_tsc_info(other_target(xen, op), info.tsc_mode, info.gtsc_khz, info.incarnation, info.elapsed_nsec)
    return False


@DOMCTL.subop(XEN_DOMCTL_gettscinfo, "gettscinfo", Coverage.FULL)
def gettscinfo(xen: Xen, _ctx: HypercallContext, op: xen_domctl) -> bool:
    """Returns what settscinfo of another domain needs to go on with this one's TSC."""
    info = op.u.tsc_info
    info.tsc_mode, info.gtsc_khz, info.incarnation, info.elapsed_nsec = xen.core.tsc_info(other_target(xen, op))
    return True

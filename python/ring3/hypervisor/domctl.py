"""HYPERVISOR_domctl: the entry. Sub-ops are in the files domctl_*.py.

Source: xen/include/public/domctl.h of Xen 4.17.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from ring3.abi import domctl as abi
from ring3.abi.domctl import XEN_DOMCTL_INTERFACE_VERSION, xen_domctl
from ring3.abi.errno import EACCES, EINVAL, ESRCH
from ring3.abi.xen import DOMID_SELF
from ring3.abi.xen import __HYPERVISOR_domctl as HYPERVISOR_domctl
from ring3.errors import HypercallError
from ring3.hypervisor.registry import Coverage, hypercall
from ring3.hypervisor.state import DOM0
from ring3.hypervisor.subops import RefusedWithResultsError, SubopTable, require_privilege

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

SIZE: Final = ctypes.sizeof(xen_domctl)
DOMCTL: SubopTable[xen_domctl] = SubopTable(HYPERVISOR_domctl, "domctl")
NAMES: Final = {
    number: name.removeprefix("XEN_DOMCTL_")
    for name, number in vars(abi).items()
    if name.startswith("XEN_DOMCTL_")
    and name.removeprefix("XEN_DOMCTL_")[0].islower()
    and isinstance(number, int)
    # vmtrace commands are named like sub-ops, but are arguments of one
    and not (name.startswith("XEN_DOMCTL_vmtrace_") and name != "XEN_DOMCTL_vmtrace_op")
}


@hypercall(HYPERVISOR_domctl, "domctl", Coverage.PARTIAL, "interface 0x15; see sub-ops")
def domctl(xen: Xen, ctx: HypercallContext, handle: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """Copies the structure in, runs the sub-op, copies it back if that has results."""
    require_privilege(ctx)
    op = xen_domctl.from_buffer_copy(ctx.read(handle, SIZE))
    if op.interface_version != XEN_DOMCTL_INTERFACE_VERSION:
        raise HypercallError(EACCES, "domctl", op.cmd)
    try:
        has_results = DOMCTL.call(xen, ctx, op.cmd, op)
    except RefusedWithResultsError:
        ctx.write(handle, bytes(op))
        raise
    if has_results:
        ctx.write(handle, bytes(op))
    return 0


def target(xen: Xen, op: xen_domctl) -> int:
    """Returns the domid that a sub-op is about. Raises HypercallError(ESRCH)."""
    domid = DOM0 if op.domain == DOMID_SELF else op.domain
    xen.info(domid)
    return domid


def other_target(xen: Xen, op: xen_domctl) -> int:
    """As target(), for a sub-op that domain 0 cannot apply to itself. Raises HypercallError(ESRCH, EINVAL)."""
    domid = target(xen, op)
    if domid == DOM0:
        raise HypercallError(EINVAL, "domctl", op.cmd)
    if domid not in xen.core.domain_list():
        raise HypercallError(ESRCH, "domctl", op.cmd)
    return domid

"""HYPERVISOR_sysctl: the entry, and the sub-ops about domains and the console. Those about hardware: sysctl_machine.py.

Source: xen/include/public/sysctl.h of Xen 4.17.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Final

from ring3.abi import sysctl as abi
from ring3.abi.errno import EACCES
from ring3.abi.sysctl import (
    XEN_SYSCTL_INTERFACE_VERSION,
    XEN_SYSCTL_getdomaininfolist,
    XEN_SYSCTL_readconsole,
    xen_sysctl,
)
from ring3.abi.xen import __HYPERVISOR_sysctl as HYPERVISOR_sysctl
from ring3.errors import HypercallError
from ring3.hypervisor import domctl_info
from ring3.hypervisor.registry import Coverage, hypercall
from ring3.hypervisor.subops import SubopTable, require_privilege

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

SIZE: Final = ctypes.sizeof(xen_sysctl)
SYSCTL: SubopTable[xen_sysctl] = SubopTable(HYPERVISOR_sysctl, "sysctl")
NAMES: Final = {
    number: name.removeprefix("XEN_SYSCTL_")
    for name, number in vars(abi).items()
    if name.startswith("XEN_SYSCTL_")
    and name.removeprefix("XEN_SYSCTL_")[0].islower()
    and isinstance(number, int)
    # indices of policies and featuresets are named like sub-ops
    and not name.startswith(("XEN_SYSCTL_cpu_policy_", "XEN_SYSCTL_cpu_featureset_"))
}


@hypercall(HYPERVISOR_sysctl, "sysctl", Coverage.PARTIAL, "interface 0x15; see sub-ops")
def sysctl(xen: Xen, ctx: HypercallContext, handle: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """Copies the structure in, runs the sub-op, copies it back if that has results."""
    require_privilege(ctx)
    op = xen_sysctl.from_buffer_copy(ctx.read(handle, SIZE))
    if op.interface_version != XEN_SYSCTL_INTERFACE_VERSION:
        raise HypercallError(EACCES, "sysctl", op.cmd)
    if SYSCTL.call(xen, ctx, op.cmd, op):
        ctx.write(handle, bytes(op))
    return 0


@SYSCTL.subop(XEN_SYSCTL_getdomaininfolist, "getdomaininfolist", Coverage.FULL)
def getdomaininfolist(xen: Xen, ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Describes the domains from first_domain up, at most max_domains. One that dies meanwhile is left out."""
    argument = op.u.getdomaininfolist
    found: list[bytes] = []
    for domid in xen.domids():
        if domid < argument.first_domain:
            continue
        if len(found) >= argument.max_domains:
            break
        try:
            found.append(bytes(domctl_info.fill(xen, domid)))
        except HypercallError:
            continue
    if found:
        ctx.write(argument.buffer, b"".join(found))
    argument.num_domains = len(found)
    return True


@SYSCTL.subop(XEN_SYSCTL_readconsole, "readconsole", Coverage.FULL)
def readconsole(xen: Xen, ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Copies the hypervisor's console ring, from `index` on if `incremental`. Indices count bytes, modulo 2**32."""
    argument = op.u.readconsole
    end, ring = xen.core.dmesg()
    ring = ring[max(0, xen.console_start - (end - len(ring))) :]
    if argument.incremental:
        nr_newer = (end - argument.index) & 0xFFFFFFFF
        if nr_newer <= len(ring):
            ring = ring[len(ring) - nr_newer :]
    data = ring[: argument.count]
    if data:
        ctx.write(argument.buffer, data)
    argument.count = len(data)
    position = end - len(ring) + len(data)
    argument.index = position & 0xFFFFFFFF
    if argument.clear:
        xen.console_start = position
    return True


def list_absent() -> None:
    """Adds the rows of the sysctls that nobody answers; called when all sub-ops are registered."""
    SYSCTL.absent(NAMES)

"""Sysctls about the machine: physinfo, topology, NUMA, free memory, the scheduler's name, performance counters."""

from __future__ import annotations

import ctypes
from struct import Struct
from typing import TYPE_CHECKING, Final

from ring3.abi.errno import EINVAL
from ring3.abi.sysctl import (
    XEN_SYSCTL_availheap,
    XEN_SYSCTL_cputopoinfo,
    XEN_SYSCTL_numainfo,
    XEN_SYSCTL_perfc_op,
    XEN_SYSCTL_PHYSCAP_gnttab_v1,
    XEN_SYSCTL_PHYSCAP_pv,
    XEN_SYSCTL_physinfo,
    XEN_SYSCTL_sched_id,
    xen_sysctl,
)
from ring3.abi.xen import PAGE_SHIFT
from ring3.errors import HypercallError
from ring3.hypervisor.registry import Coverage
from ring3.hypervisor.sysctl import SYSCTL
from ring3.hypervisor.sysctl_cpu import featureset

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

XEN_SCHEDULER_CREDIT: Final = 5
XEN_SYSCTL_PERFCOP_reset: Final = 1
XEN_SYSCTL_PERFCOP_query: Final = 2
# Sources: sysctl.h, struct xen_sysctl_{cputopoinfo,cputopo,numainfo,availheap,perfc_op,perfc_desc}
_CPUTOPOINFO: Final = Struct("<I4xQ")
_CPUTOPO: Final = Struct("<III")
_NUMAINFO: Final = Struct("<I4xQQ")
_MEMINFO: Final = Struct("<QQ")
_AVAILHEAP: Final = Struct("<IIi4xQ")
_PERFC_OP: Final = Struct("<III4xQQ")
_PERFC_DESC: Final = Struct("<80sI")
_LOCAL_DISTANCE: Final = 10


@SYSCTL.subop(XEN_SYSCTL_physinfo, "physinfo", Coverage.FULL)
def physinfo(xen: Xen, _ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Describes the machine: pCPUs are cores of one socket on one node."""
    out = op.u.physinfo
    nr_cpus = xen.core.nr_pcpus
    out.threads_per_core, out.cores_per_socket = 1, nr_cpus
    out.nr_cpus, out.max_cpu_id = nr_cpus, nr_cpus - 1
    out.nr_nodes, out.max_node_id = 1, 0
    out.cpu_khz = xen.cpu_khz
    out.capabilities = XEN_SYSCTL_PHYSCAP_pv | XEN_SYSCTL_PHYSCAP_gnttab_v1
    out.arch_capabilities = 0
    out.total_pages = xen.core.nr_frames
    out.free_pages = xen.core.nr_free_frames
    out.scrub_pages = out.outstanding_pages = 0
    out.max_mfn = xen.core.nr_frames - 1
    out.hw_cap = (ctypes.c_uint32 * 8)(*featureset(xen.core.machine_cpu_policy(greatest=False))[:8])
    return True


@SYSCTL.subop(XEN_SYSCTL_sched_id, "sched_id", Coverage.FULL)
def sched_id(_xen: Xen, _ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Names the scheduler: credit."""
    op.u.sched_id.sched_id = XEN_SCHEDULER_CREDIT
    return True


@SYSCTL.subop(XEN_SYSCTL_cputopoinfo, "cputopoinfo", Coverage.FULL)
def cputopoinfo(xen: Xen, ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Places each pCPU: core N of socket 0 on node 0."""
    nr_wanted, handle = _CPUTOPOINFO.unpack_from(op.u.pad)
    nr_cpus = xen.core.nr_pcpus
    if handle:
        nr_given = min(nr_wanted, nr_cpus)
        if nr_given:
            ctx.write(handle, b"".join(_CPUTOPO.pack(cpu, 0, 0) for cpu in range(nr_given)))
    _CPUTOPOINFO.pack_into(op.u.pad, 0, nr_cpus, handle)
    return True


@SYSCTL.subop(XEN_SYSCTL_numainfo, "numainfo", Coverage.FULL)
def numainfo(xen: Xen, ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Describes the one node."""
    nr_wanted, meminfo, distance = _NUMAINFO.unpack_from(op.u.pad)
    if nr_wanted and meminfo:
        ctx.write(meminfo, _MEMINFO.pack(xen.core.nr_frames << PAGE_SHIFT, xen.core.nr_free_frames << PAGE_SHIFT))
    if nr_wanted and distance:
        ctx.write(distance, _LOCAL_DISTANCE.to_bytes(4, "little"))
    _NUMAINFO.pack_into(op.u.pad, 0, 1, meminfo, distance)
    return True


@SYSCTL.subop(XEN_SYSCTL_availheap, "availheap", Coverage.PARTIAL, "address width bounds are ignored")
def availheap(xen: Xen, _ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Returns the free bytes of the machine."""
    min_bits, max_bits, node, _out = _AVAILHEAP.unpack_from(op.u.pad)
    nr_free = xen.core.nr_free_frames if node in (-1, 0) else 0
    _AVAILHEAP.pack_into(op.u.pad, 0, min_bits, max_bits, node, nr_free << PAGE_SHIFT)
    return True


@SYSCTL.subop(XEN_SYSCTL_perfc_op, "perfc_op", Coverage.PARTIAL, "query only; the counters are the hypercall table's")
def perfc_op(xen: Xen, ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Returns one counter for each row of the hypercall table, named "op.subop coverage name: note" (79 bytes)."""
    command, _nr_counters, _nr_vals, desc, val = _PERFC_OP.unpack_from(op.u.pad)
    if command != XEN_SYSCTL_PERFCOP_query:
        raise HypercallError(EINVAL, "sysctl", op.cmd)
    rows = xen.core.hypercall_rows()
    if desc:
        names = []
        for number, subop, name, coverage, note, _calls in rows:
            text = f"{number}.{subop} {coverage} {name}" if subop >= 0 else f"{number} {coverage} {name}"
            text += f": {note}" if note else ""
            names.append(_PERFC_DESC.pack(text.encode("ascii", "replace")[:79], 1))
        ctx.write(desc, b"".join(names))
    if val:
        ctx.write(val, b"".join(min(row[5], 0xFFFFFFFF).to_bytes(4, "little") for row in rows))
    _PERFC_OP.pack_into(op.u.pad, 0, command, len(rows), len(rows), desc, val)
    return True

"""HYPERVISOR_platform_op: what a dom0 kernel asks of the hardware. Source: xen/include/public/platform.h."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING, Final

from ring3.abi.errno import EACCES, EINVAL, EPERM
from ring3.abi.xen import __HYPERVISOR_platform_op as HYPERVISOR_platform_op
from ring3.errors import HypercallError
from ring3.hypervisor.registry import Coverage, Row, add_row, hypercall
from ring3.hypervisor.subops import SubopTable, require_privilege

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

XENPF_INTERFACE_VERSION: Final = 0x03000001
XENPF_settime32: Final = 17
XENPF_get_cpuinfo: Final = 55
XENPF_settime64: Final = 62
XEN_PCPU_FLAGS_ONLINE: Final = 1
SIZE: Final = 136
"""sizeof(struct xen_platform_op): cmd, interface_version and a union of 128 bytes."""
_HEADER: Final = Struct("<II")
_PCPUINFO: Final = Struct("<IIIII")
_UNION_OFFSET: Final = 8

PLATFORM_OP: SubopTable[bytearray] = SubopTable(HYPERVISOR_platform_op, "platform_op")


@hypercall(HYPERVISOR_platform_op, "platform_op", Coverage.PARTIAL, "see sub-ops")
def platform_op(xen: Xen, ctx: HypercallContext, handle: int, _a2: int, _a3: int, _a4: int, _a5: int) -> int:
    """Copies the structure in, runs the sub-op, copies it back if that has results."""
    require_privilege(ctx)
    op = bytearray(ctx.read(handle, SIZE))
    command, version = _HEADER.unpack_from(op)
    if version != XENPF_INTERFACE_VERSION:
        raise HypercallError(EACCES, "platform_op", command)
    if PLATFORM_OP.call(xen, ctx, command, op):
        ctx.write(handle, bytes(op))
    return 0


@PLATFORM_OP.subop(XENPF_settime32, "settime32", Coverage.REFUSED, "-EPERM: the wall clock is the host's")
@PLATFORM_OP.subop(XENPF_settime64, "settime64", Coverage.REFUSED, "-EPERM: the wall clock is the host's")
def settime(_xen: Xen, _ctx: HypercallContext, _op: bytearray) -> bool:
    """Refuses."""
    raise HypercallError(EPERM, "platform_op", "settime")


@PLATFORM_OP.subop(XENPF_get_cpuinfo, "get_cpuinfo", Coverage.FULL)
def get_cpuinfo(xen: Xen, _ctx: HypercallContext, op: bytearray) -> bool:
    """Describes one pCPU: online, its id as APIC and ACPI id. Source: struct xenpf_pcpuinfo."""
    cpu = _PCPUINFO.unpack_from(op, _UNION_OFFSET)[0]
    nr_cpus = xen.core.nr_pcpus
    if cpu >= nr_cpus:
        raise HypercallError(EINVAL, "platform_op", "get_cpuinfo")
    _PCPUINFO.pack_into(op, _UNION_OFFSET, cpu, nr_cpus - 1, XEN_PCPU_FLAGS_ONLINE, cpu, cpu)
    return True


for _number, _name in {
    31: "add_memtype",
    32: "del_memtype",
    33: "read_memtype",
    35: "microcode_update",
    39: "platform_quirk",
    48: "get_cpu_version",
    49: "efi_runtime_call",
    50: "firmware_info",
    51: "enter_acpi_sleep",
    52: "change_freq",
    53: "getidletime",
    54: "set_processor_pminfo",
    56: "cpu_online",
    57: "cpu_offline",
    58: "cpu_hotadd",
    59: "mem_hotadd",
    60: "core_parking",
    61: "resource_op",
    63: "get_symbol",
    64: "get_dom0_console",
}.items():
    add_row(Row(HYPERVISOR_platform_op, _number, f"platform_op/{_name}", Coverage.ABSENT, "-ENOSYS"))

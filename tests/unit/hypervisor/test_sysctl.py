"""HYPERVISOR_sysctl and platform_op, called as the core calls them."""

import ctypes
import struct
from typing import Any

import pytest

from ring3.abi import sysctl as abi
from ring3.abi.domctl import xen_domctl_getdomaininfo
from ring3.abi.errno import EACCES, EFAULT, EINVAL, ENOBUFS, ENOSYS, EOPNOTSUPP, EPERM
from ring3.abi.sysctl import xen_sysctl
from ring3.abi.xen import __HYPERVISOR_platform_op as PLATFORM_OP
from ring3.abi.xen import __HYPERVISOR_sysctl as SYSCTL

ARG = 64
OTHER = 4096


def call(xen: Any, caller: Any, op: xen_sysctl) -> tuple[int, xen_sysctl]:
    caller.write(ARG, bytes(op))
    result = xen.core._cold[SYSCTL](caller, ARG, 0, 0, 0, 0)
    return result, xen_sysctl.from_buffer_copy(caller.read(ARG, ctypes.sizeof(xen_sysctl)))


def new(cmd: int, version: int = 0x15) -> xen_sysctl:
    return xen_sysctl(cmd=cmd, interface_version=version)


def test_privilege_and_version(xen: Any, caller: Any, guest_caller: Any) -> None:
    assert call(xen, guest_caller, new(abi.XEN_SYSCTL_physinfo))[0] == -EPERM
    assert call(xen, caller, new(abi.XEN_SYSCTL_physinfo, 0x16))[0] == -EACCES
    assert call(xen, caller, new(777))[0] == -ENOSYS
    assert call(xen, caller, new(abi.XEN_SYSCTL_livepatch_op))[0] == -ENOSYS


def test_physinfo(xen: Any, caller: Any) -> None:
    result, op = call(xen, caller, new(abi.XEN_SYSCTL_physinfo))
    out = op.u.physinfo
    assert result == 0
    assert (out.nr_cpus, out.max_cpu_id, out.cpu_khz, out.total_pages) == (2, 1, 2_000_000, 2048)
    assert out.free_pages == xen.core.nr_free_frames


def test_getdomaininfolist_begins_with_domain_0_and_can_be_walked(xen: Any, caller: Any) -> None:
    for domid in (4, 9):
        xen.core.domain_create(
            domid,
            flags=0,
            max_vcpus=1,
            max_event_channels=1,
            max_grant_frames=1,
            max_maptrack_frames=1,
            max_grant_version=1,
            handle=bytes(16),
        )
    seen, first = [], 0
    while True:
        op = new(abi.XEN_SYSCTL_getdomaininfolist)
        op.u.getdomaininfolist.first_domain = first
        op.u.getdomaininfolist.max_domains = 2
        op.u.getdomaininfolist.buffer = OTHER
        result, op = call(xen, caller, op)
        assert result == 0
        nr = op.u.getdomaininfolist.num_domains
        size = ctypes.sizeof(xen_domctl_getdomaininfo)
        for index in range(nr):
            seen.append(xen_domctl_getdomaininfo.from_buffer_copy(caller.read(OTHER + index * size, size)).domain)
        if nr < 2:
            break
        first = seen[-1] + 1
    assert seen == [0, 4, 9]


def test_getdomaininfolist_with_a_bad_buffer_faults(xen: Any, caller: Any) -> None:
    op = new(abi.XEN_SYSCTL_getdomaininfolist)
    op.u.getdomaininfolist.max_domains = 0xFFFFFFFF
    op.u.getdomaininfolist.buffer = 1 << 50
    assert call(xen, caller, op)[0] == -EFAULT


def read_console(
    xen: Any, caller: Any, *, index: int = 0, incremental: bool = False, count: int = 1000
) -> tuple[bytes, int]:
    op = new(abi.XEN_SYSCTL_readconsole)
    op.u.readconsole.incremental = int(incremental)
    op.u.readconsole.index = index
    op.u.readconsole.buffer = OTHER
    op.u.readconsole.count = count
    result, op = call(xen, caller, op)
    assert result == 0
    return caller.read(OTHER, op.u.readconsole.count), op.u.readconsole.index


def test_readconsole_from_the_start_and_incrementally(xen: Any, caller: Any) -> None:
    xen.core.dmesg_write("first\n")
    text, index = read_console(xen, caller)
    assert text == b"first\n"
    assert read_console(xen, caller, index=index, incremental=True) == (b"", index)
    xen.core.dmesg_write("second\n")
    assert read_console(xen, caller, index=index, incremental=True, count=3) == (b"sec", index + 3)
    assert read_console(xen, caller, index=index + 3, incremental=True)[0] == b"ond\n"
    assert read_console(xen, caller, index=9999, incremental=True)[0] == b"first\nsecond\n", "an index from nowhere"


def test_readconsole_clears_what_it_has_read(xen: Any, caller: Any) -> None:
    xen.core.dmesg_write("first\nsecond\n")
    op = new(abi.XEN_SYSCTL_readconsole)
    op.u.readconsole.clear = 1
    op.u.readconsole.buffer = OTHER
    op.u.readconsole.count = 6
    assert call(xen, caller, op)[0] == 0
    assert read_console(xen, caller)[0] == b"second\n"
    assert read_console(xen, caller, index=2, incremental=True)[0] == b"second\n"


def test_readconsole_after_the_ring_and_the_index_wrapped(xen: Any, caller: Any) -> None:
    end = (1 << 32) + 10
    xen.core.dmesg = lambda: (end, b"0123456789abcdef")
    text, index = read_console(xen, caller, index=(end - 4) & 0xFFFFFFFF, incremental=True)
    assert (text, index) == (b"cdef", 10)
    assert read_console(xen, caller, index=1000, incremental=True)[0] == b"0123456789abcdef"


def test_topology(xen: Any, caller: Any) -> None:
    op = new(abi.XEN_SYSCTL_cputopoinfo)
    assert struct.unpack_from("<I", bytes(call(xen, caller, op)[1].u.pad))[0] == 2
    struct.pack_into("<I4xQ", op.u.pad, 0, 1, OTHER)
    result, op = call(xen, caller, op)
    assert (result, struct.unpack_from("<I", bytes(op.u.pad))[0]) == (0, 2)
    assert caller.read(OTHER, 12) == bytes(12)
    op = new(abi.XEN_SYSCTL_numainfo)
    struct.pack_into("<I4xQQ", op.u.pad, 0, 1, OTHER, OTHER + 64)
    assert call(xen, caller, op)[0] == 0
    assert struct.unpack("<QQ", caller.read(OTHER, 16)) == (8 << 20, xen.core.nr_free_frames << 12)


def test_every_row_is_a_counter_and_calls_are_counted(xen: Any, caller: Any) -> None:
    call(xen, caller, new(abi.XEN_SYSCTL_physinfo))
    op = new(abi.XEN_SYSCTL_perfc_op)
    struct.pack_into("<III4xQQ", op.u.pad, 0, 2, 0, 0, OTHER, 40000)
    result, op = call(xen, caller, op)
    assert result == 0
    nr = struct.unpack_from("<III", bytes(op.u.pad))[1]
    assert nr == len(xen.core.hypercall_rows()) > 100
    names = [caller.read(OTHER + 84 * index, 80).rstrip(b"\0").decode() for index in range(nr)]
    index = next(index for index, name in enumerate(names) if name.startswith("35.3 full sysctl/physinfo"))
    assert int.from_bytes(caller.read(40000 + 4 * index, 4), "little") == 1
    struct.pack_into("<I", op.u.pad, 0, 1)
    assert call(xen, caller, op)[0] == -EINVAL


@pytest.mark.parametrize(
    ("cmd", "version", "errno"),
    [(17, 0x03000001, EPERM), (62, 0x03000001, EPERM), (55, 1, EACCES), (1, 0x03000001, ENOSYS)],
)
def test_platform_op_refusals(xen: Any, caller: Any, cmd: int, version: int, errno: int) -> None:
    caller.write(ARG, struct.pack("<II128x", cmd, version))
    assert xen.core._cold[PLATFORM_OP](caller, ARG, 0, 0, 0, 0) == -errno


def test_platform_op_describes_pcpus(xen: Any, caller: Any) -> None:
    caller.write(ARG, struct.pack("<III124x", 55, 0x03000001, 1))
    assert xen.core._cold[PLATFORM_OP](caller, ARG, 0, 0, 0, 0) == 0
    assert struct.unpack_from("<5I", caller.read(ARG + 8, 20)) == (1, 1, 1, 1, 1)
    caller.write(ARG, struct.pack("<III124x", 55, 0x03000001, 2))
    assert xen.core._cold[PLATFORM_OP](caller, ARG, 0, 0, 0, 0) == -EINVAL


def test_debug_keys_answer_on_the_console_and_unknown_ones_are_passed_over(
    xen: Any, caller: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    caller.write(OTHER, b"hkp\xff")
    op = new(abi.XEN_SYSCTL_debug_keys)
    op.u.debug_keys.keys, op.u.debug_keys.nr_keys = OTHER, 4
    assert call(xen, caller, op)[0] == 0
    assert "all references are explained" in caplog.text
    assert "debug key h: list the keys" in caplog.text
    assert "engine: blocks translated: 0" in caplog.text
    xen.core.audit = lambda: ["frame 7 has no owner"]
    assert call(xen, caller, op)[0] == 0
    assert "audit: frame 7 has no owner" in caplog.text
    assert "audit: 1 faults" in caplog.text
    op.u.debug_keys.keys = 1 << 40
    assert call(xen, caller, op)[0] == -EFAULT


def test_cpu_policies_and_featuresets(xen: Any, caller: Any) -> None:
    def ask(cmd: int, **fields: int) -> tuple[int, Any]:
        op = new(cmd)
        member = "cpu_policy" if cmd == abi.XEN_SYSCTL_get_cpu_policy else "cpu_featureset"
        for name, value in fields.items():
            setattr(getattr(op.u, member), name, value)
        result, op = call(xen, caller, op)
        return result, getattr(op.u, member)

    for index in (abi.XEN_SYSCTL_cpu_policy_hvm_max, abi.XEN_SYSCTL_cpu_policy_hvm_default):
        assert ask(abi.XEN_SYSCTL_get_cpu_policy, index=index)[0] == -EOPNOTSUPP
    assert ask(abi.XEN_SYSCTL_get_cpu_policy, index=6)[0] == -EINVAL
    assert ask(abi.XEN_SYSCTL_get_cpu_policy, _rsvd=1)[0] == -EINVAL
    result, policy = ask(abi.XEN_SYSCTL_get_cpu_policy, index=abi.XEN_SYSCTL_cpu_policy_pv_default)
    assert (result, policy.nr_leaves, policy.nr_msrs) == (0, 119, 2)
    result, features = ask(abi.XEN_SYSCTL_get_cpu_featureset)
    assert (result, features.nr_features) == (0, 19)
    result, features = ask(abi.XEN_SYSCTL_get_cpu_featureset, features=4096, nr_features=32, index=2)
    assert (result, features.nr_features) == (0, 19)
    assert int.from_bytes(caller.read(4096 + 4 * 5, 4), "little") == 0x28
    assert ask(abi.XEN_SYSCTL_get_cpu_featureset, features=4096, nr_features=2, index=2)[0] == -ENOBUFS
    assert ask(abi.XEN_SYSCTL_get_cpu_featureset, features=4096, nr_features=32, index=3)[0] == -EOPNOTSUPP
    result, op = call(xen, caller, new(abi.XEN_SYSCTL_get_cpu_levelling_caps))
    assert (result, op.u.cpu_levelling_caps.caps) == (0, abi.XEN_SYSCTL_CPU_LEVELCAP_faulting)

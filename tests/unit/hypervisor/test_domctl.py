"""HYPERVISOR_domctl, called as the core calls it."""

import ctypes
import struct
from typing import Any

import pytest

from ring3.abi import domctl as abi
from ring3.abi.arch_x86 import xen_cpuid_leaf
from ring3.abi.domctl import xen_domctl
from ring3.abi.errno import (
    E2BIG,
    EACCES,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOBUFS,
    ENOENT,
    ENOSYS,
    EOPNOTSUPP,
    EPERM,
    ERANGE,
    ESRCH,
)
from ring3.abi.xen import __HYPERVISOR_domctl as DOMCTL

ARG = 64
OTHER = 4096


def call(
    xen: Any, caller: Any, cmd: int, domid: int, *, version: int = 0x15, **fields: object
) -> tuple[int, xen_domctl]:
    """Makes the call; `member__field=value` sets a field of the union."""
    op = xen_domctl(cmd=cmd, interface_version=version, domain=domid)
    for name, value in fields.items():
        member, _mark, field = name.partition("__")
        setattr(getattr(op.u, member), field, value)
    caller.write(ARG, bytes(op))
    result = xen.core._cold[DOMCTL](caller, ARG, 0, 0, 0, 0)
    return result, xen_domctl.from_buffer_copy(caller.read(ARG, ctypes.sizeof(xen_domctl)))


def create(xen: Any, caller: Any, domid: int = 0, **changes: object) -> tuple[int, int]:
    """Returns (result, domid)."""
    fields: dict[str, object] = {"max_vcpus": 2, "max_evtchn_port": 1023, "max_grant_frames": -1, "grant_opts": 1}
    fields |= changes
    result, op = call(
        xen, caller, abi.XEN_DOMCTL_createdomain, domid, **{f"createdomain__{key}": v for key, v in fields.items()}
    )
    return result, op.domain


@pytest.fixture
def domid(xen: Any, caller: Any) -> int:
    """A domain with its vCPUs."""
    result, number = create(xen, caller)
    assert result == 0
    assert call(xen, caller, abi.XEN_DOMCTL_max_vcpus, number, max_vcpus__max=2)[0] == 0
    return number


def test_unprivileged_callers_are_refused(xen: Any, guest_caller: Any) -> None:
    assert call(xen, guest_caller, abi.XEN_DOMCTL_getdomaininfo, 0)[0] == -EPERM


@pytest.mark.parametrize("version", [0, 0x14, 0x16])
def test_other_interface_versions_are_refused(xen: Any, caller: Any, version: int) -> None:
    assert call(xen, caller, abi.XEN_DOMCTL_getdomaininfo, 0, version=version)[0] == -EACCES


@pytest.mark.parametrize("handle", [0, 1 << 40, (1 << 64) - 8])
def test_bad_handles_fault(xen: Any, caller: Any, handle: int) -> None:
    assert xen.core._cold[DOMCTL](caller, handle, 0, 0, 0, 0) == -EFAULT


@pytest.mark.parametrize("cmd", [0, 6, 10, 84, 999, 0xFFFFFFFF])
def test_absent_subops_are_enosys(xen: Any, caller: Any, cmd: int) -> None:
    assert call(xen, caller, cmd, 0)[0] == -ENOSYS


def test_createdomain_picks_or_takes_the_domid(xen: Any, caller: Any) -> None:
    assert create(xen, caller) == (0, 1)
    assert create(xen, caller, 7) == (0, 7)
    assert create(xen, caller, 7)[0] == -EEXIST
    assert create(xen, caller, 0x7FF0) == (0, 2), "an invalid one means any"


@pytest.mark.parametrize(
    ("changes", "errno"),
    [
        ({"flags": abi.XEN_DOMCTL_CDF_hvm}, EOPNOTSUPP),
        ({"flags": abi.XEN_DOMCTL_CDF_iommu}, EINVAL),
        ({"flags": 1 << 20}, EINVAL),
        ({"max_vcpus": 0}, EINVAL),
        ({"grant_opts": 0}, EINVAL),
        ({"grant_opts": 0x11}, EINVAL),
        ({"vmtrace_size": 4096}, EINVAL),
        ({"cpupool_id": 1}, ENOENT),
        ({"iommu_opts": 1}, EINVAL),
        ({"max_grant_frames": 1 << 20}, EINVAL),
    ],
)
def test_createdomain_refuses_what_there_is_not(xen: Any, caller: Any, changes: dict[str, object], errno: int) -> None:
    assert create(xen, caller, **changes)[0] == -errno
    assert xen.core.domain_list() == []


def test_max_vcpus_must_be_what_was_announced(xen: Any, caller: Any) -> None:
    _result, number = create(xen, caller)
    assert call(xen, caller, abi.XEN_DOMCTL_getvcpuinfo, number, getvcpuinfo__vcpu=0)[0] == -ESRCH
    assert call(xen, caller, abi.XEN_DOMCTL_max_vcpus, number, max_vcpus__max=3)[0] == -EINVAL
    assert call(xen, caller, abi.XEN_DOMCTL_max_vcpus, number, max_vcpus__max=2)[0] == 0


@pytest.mark.parametrize(
    "cmd",
    [
        abi.XEN_DOMCTL_pausedomain,
        abi.XEN_DOMCTL_unpausedomain,
        abi.XEN_DOMCTL_destroydomain,
        abi.XEN_DOMCTL_hypercall_init,
        abi.XEN_DOMCTL_setvcpucontext,
    ],
)
def test_no_such_domain_is_esrch_and_domain_0_is_einval(xen: Any, caller: Any, cmd: int) -> None:
    assert call(xen, caller, cmd, 99)[0] == -ESRCH
    assert call(xen, caller, cmd, 0)[0] == -EINVAL
    assert call(xen, caller, cmd, 0x7FF0)[0] == -EINVAL, "DOMID_SELF is domain 0"


def test_max_mem_counts_pages(xen: Any, caller: Any, domid: int) -> None:
    assert call(xen, caller, abi.XEN_DOMCTL_max_mem, domid, max_mem__max_memkb=4096)[0] == 0
    _result, op = call(xen, caller, abi.XEN_DOMCTL_getdomaininfo, domid)
    assert op.u.getdomaininfo.max_pages == 1024
    assert call(xen, caller, abi.XEN_DOMCTL_max_mem, domid, max_mem__max_memkb=(1 << 64) - 1)[0] == 0
    assert call(xen, caller, abi.XEN_DOMCTL_max_mem, 99)[0] == -ESRCH


def test_max_mem_lets_domain_0_have_frames(xen: Any, caller: Any) -> None:
    """Its back ends copy to and from them."""
    assert call(xen, caller, abi.XEN_DOMCTL_max_mem, 0, max_mem__max_memkb=64)[0] == 0


def test_getdomaininfo_finds_the_next_domain(xen: Any, caller: Any) -> None:
    create(xen, caller, 5)
    result, op = call(xen, caller, abi.XEN_DOMCTL_getdomaininfo, 1)
    assert (result, op.domain, op.u.getdomaininfo.domain) == (0, 5, 5)
    result, op = call(xen, caller, abi.XEN_DOMCTL_getdomaininfo, 0)
    assert (result, op.domain) == (0, 0)
    assert call(xen, caller, abi.XEN_DOMCTL_getdomaininfo, 6)[0] == -ESRCH
    assert call(xen, caller, abi.XEN_DOMCTL_getdomaininfo, 0x7FF0)[0] == -EINVAL


def test_handle_can_be_changed(xen: Any, caller: Any, domid: int) -> None:
    op = xen_domctl(cmd=abi.XEN_DOMCTL_setdomainhandle, interface_version=0x15, domain=domid)
    op.u.pad[:16] = list(range(16))
    caller.write(ARG, bytes(op))
    assert xen.core._cold[DOMCTL](caller, ARG, 0, 0, 0, 0) == 0
    _result, op = call(xen, caller, abi.XEN_DOMCTL_getdomaininfo, domid)
    assert bytes(op.u.getdomaininfo.handle) == bytes(range(16))


def test_vcpu_context_goes_in_and_out(xen: Any, caller: Any, domid: int) -> None:
    context = bytes(index & 0xFF for index in range(5168))
    caller.write(OTHER, context)
    put = {"vcpucontext__vcpu": 1, "vcpucontext__ctxt": OTHER}
    assert call(xen, caller, abi.XEN_DOMCTL_setvcpucontext, domid, **put)[0] == 0
    caller.write(OTHER, bytes(5168))
    assert call(xen, caller, abi.XEN_DOMCTL_getvcpucontext, domid, **put)[0] == 0
    assert caller.read(OTHER, 5168) == context
    put["vcpucontext__vcpu"] = 2
    assert call(xen, caller, abi.XEN_DOMCTL_setvcpucontext, domid, **put)[0] == -EINVAL
    put |= {"vcpucontext__vcpu": 0, "vcpucontext__ctxt": 1 << 40}
    assert call(xen, caller, abi.XEN_DOMCTL_setvcpucontext, domid, **put)[0] == -EFAULT


def affinity(xen: Any, caller: Any, domid: int, cmd: int, mask: bytes, nr_bits: int, flags: int) -> int:
    op = xen_domctl(cmd=cmd, interface_version=0x15, domain=domid)
    op.u.vcpuaffinity.flags = flags
    for bitmap in (op.u.vcpuaffinity.cpumap_hard, op.u.vcpuaffinity.cpumap_soft):
        bitmap.bitmap, bitmap.nr_bits = OTHER, nr_bits
    caller.write(OTHER, mask)
    caller.write(ARG, bytes(op))
    result: int = xen.core._cold[DOMCTL](caller, ARG, 0, 0, 0, 0)
    return result


def test_affinity_to_all_pcpus_is_what_every_vcpu_has(xen: Any, caller: Any, domid: int) -> None:
    put, get = abi.XEN_DOMCTL_setvcpuaffinity, abi.XEN_DOMCTL_getvcpuaffinity
    assert affinity(xen, caller, domid, put, b"\xff\xff", 16, abi.XEN_VCPUAFFINITY_HARD) == 0
    assert affinity(xen, caller, domid, put, b"\x01", 8, abi.XEN_VCPUAFFINITY_HARD) == -EOPNOTSUPP
    assert affinity(xen, caller, domid, put, b"\x00", 8, abi.XEN_VCPUAFFINITY_HARD) == -EINVAL
    assert affinity(xen, caller, domid, put, b"\xff", 0xFFFFFFFF, 0) == -EINVAL
    assert affinity(xen, caller, domid, put, b"\xff", 0xFFFFFFFF, abi.XEN_VCPUAFFINITY_HARD) == 0, "a hostile size"
    assert affinity(xen, caller, domid, get, b"\0", 8, abi.XEN_VCPUAFFINITY_HARD) == 0
    assert caller.read(OTHER, 1) == b"\x03"


def test_destroy_forgets_the_domain(xen: Any, caller: Any, domid: int) -> None:
    nr_free = xen.core.nr_free_frames
    assert call(xen, caller, abi.XEN_DOMCTL_destroydomain, domid)[0] == 0
    assert xen.domains == {}
    assert xen.core.nr_free_frames == nr_free + 1
    assert call(xen, caller, abi.XEN_DOMCTL_destroydomain, domid)[0] == -ESRCH


def test_page_frames_are_told_from_those_of_others(xen: Any, caller: Any, domid: int) -> None:
    own, other = 0x10, 0x11
    xen.core._domain(domid).mfns.append(own)
    caller.write(OTHER, b"".join(mfn.to_bytes(8, "little") for mfn in (own, other)))
    asked = {"getpageframeinfo3__num": 2, "getpageframeinfo3__array": OTHER}
    assert call(xen, caller, abi.XEN_DOMCTL_getpageframeinfo3, domid, **asked)[0] == 0
    found = memoryview(caller.read(OTHER, 16)).cast("Q").tolist()
    assert found == [abi.XEN_DOMCTL_PFINFO_NOTAB, abi.XEN_DOMCTL_PFINFO_XTAB]
    asked["getpageframeinfo3__num"] = 1025
    assert call(xen, caller, abi.XEN_DOMCTL_getpageframeinfo3, domid, **asked)[0] == -E2BIG
    assert call(xen, caller, abi.XEN_DOMCTL_getpageframeinfo3, 77, getpageframeinfo3__num=0)[0] == -ESRCH


def test_cpu_policy_goes_out_and_changes_come_in(xen: Any, caller: Any, domid: int) -> None:
    result, op = call(xen, caller, abi.XEN_DOMCTL_get_cpu_policy, domid)
    assert (result, op.u.cpu_policy.nr_leaves, op.u.cpu_policy.nr_msrs) == (0, 119, 2)
    fields = {"cpu_policy__leaves": OTHER, "cpu_policy__nr_leaves": 1}
    assert call(xen, caller, abi.XEN_DOMCTL_get_cpu_policy, domid, **fields)[0] == -ENOBUFS
    fields |= {"cpu_policy__nr_leaves": 9, "cpu_policy__msrs": OTHER + 1024, "cpu_policy__nr_msrs": 2}
    result, op = call(xen, caller, abi.XEN_DOMCTL_get_cpu_policy, domid, **fields)
    assert (result, op.u.cpu_policy.nr_leaves, op.u.cpu_policy.nr_msrs) == (0, 2, 1)
    leaf = xen_cpuid_leaf.from_buffer_copy(caller.read(OTHER, 48), 24)
    assert (leaf.leaf, leaf.subleaf, leaf.b) == (7, 0, 0x28)
    leaf.b = 8
    caller.write(OTHER, bytes(leaf))
    fields = {"cpu_policy__leaves": OTHER, "cpu_policy__nr_leaves": 1}
    assert call(xen, caller, abi.XEN_DOMCTL_set_cpu_policy, domid, **fields)[0] == 0
    assert bytes(leaf) in xen.core.cpu_policy(domid)[0]
    leaf.leaf = 0x99
    caller.write(OTHER, bytes(leaf))
    result, op = call(xen, caller, abi.XEN_DOMCTL_set_cpu_policy, domid, **fields)
    assert (result, op.u.cpu_policy.err_leaf, op.u.cpu_policy.err_subleaf) == (-ERANGE, 0x99, 0)
    assert op.u.cpu_policy.err_msr == 0xFFFFFFFF
    fields["cpu_policy__nr_leaves"] = 1 << 31
    assert call(xen, caller, abi.XEN_DOMCTL_set_cpu_policy, domid, **fields)[0] == -ERANGE
    fields = {"cpu_policy__leaves": 0, "cpu_policy__nr_leaves": 1}
    assert call(xen, caller, abi.XEN_DOMCTL_set_cpu_policy, domid, **fields)[0] == -EFAULT


def test_extended_state_goes_in_and_out(xen: Any, caller: Any, domid: int) -> None:
    result, op = call(xen, caller, abi.XEN_DOMCTL_getvcpuextstate, domid)
    assert (result, op.u.vcpuextstate.size, op.u.vcpuextstate.xfeature_mask) == (0, 0, 7)
    raw = struct.pack("<QQ", 3, 7) + bytes(832)
    caller.write(OTHER, raw)
    fields = {"vcpuextstate__buffer": OTHER, "vcpuextstate__size": len(raw)}
    assert call(xen, caller, abi.XEN_DOMCTL_setvcpuextstate, domid, **fields)[0] == 0
    caller.write(OTHER, bytes(len(raw)))
    assert call(xen, caller, abi.XEN_DOMCTL_getvcpuextstate, domid, **fields)[0] == -EINVAL, "no mask"
    fields["vcpuextstate__xfeature_mask"] = 7
    assert call(xen, caller, abi.XEN_DOMCTL_getvcpuextstate, domid, **fields)[0] == 0
    assert caller.read(OTHER, len(raw)) == raw
    for size in (15, 849):
        fields["vcpuextstate__size"] = size
        assert call(xen, caller, abi.XEN_DOMCTL_setvcpuextstate, domid, **fields)[0] == -EINVAL
    assert call(xen, caller, abi.XEN_DOMCTL_getvcpuextstate, domid, vcpuextstate__vcpu=2)[0] == -ESRCH


def test_msrs_go_in_until_one_is_refused(xen: Any, caller: Any, domid: int) -> None:
    result, op = call(xen, caller, abi.XEN_DOMCTL_get_vcpu_msrs, domid)
    assert (result, op.u.vcpu_msrs.msr_count) == (0, 3)
    entries = [(0xC0000103, 0, 5), (0x48, 0, 1), (0x10, 0, 1)]
    caller.write(OTHER, b"".join(struct.pack("<IIQ", *entry) for entry in entries))
    fields = {"vcpu_msrs__msrs": OTHER, "vcpu_msrs__msr_count": 3}
    result, op = call(xen, caller, abi.XEN_DOMCTL_set_vcpu_msrs, domid, **fields)
    assert (result, op.u.vcpu_msrs.msr_count) == (-EINVAL, 2)
    fields["vcpu_msrs__msr_count"] = 4
    assert call(xen, caller, abi.XEN_DOMCTL_set_vcpu_msrs, domid, **fields)[0] == -EINVAL
    fields["vcpu_msrs__msr_count"] = 1
    result, op = call(xen, caller, abi.XEN_DOMCTL_get_vcpu_msrs, domid, **fields)
    assert (result, op.u.vcpu_msrs.msr_count) == (-ENOBUFS, 2)
    assert struct.unpack("<IIQ", caller.read(OTHER, 16)) == (0x48, 0, 1)
    caller.write(OTHER, struct.pack("<IIQ", 0x48, 1, 0))
    result, op = call(xen, caller, abi.XEN_DOMCTL_set_vcpu_msrs, domid, **fields)
    assert (result, op.u.vcpu_msrs.msr_count) == (-EINVAL, 0)

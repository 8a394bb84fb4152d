"""domctl, sysctl, memory_op and the MMU operations, over the wire."""

import pytest

from ring3.abi import domctl as abi
from ring3.abi import errno, xen
from ring3.errors import DomainExists, DomainNotFound, HypercallError, NoMemory
from ring3.libs import domctl, memory, mmu, sysctl
from ring3.libs.connection import Connection
from unit.libs.fake_hypervisor import FakeHypervisor


def new_domain(conn: Connection, mib: int = 4) -> int:
    domid = domctl.createdomain(conn, max_vcpus=1)
    domctl.max_mem(conn, domid, mib << 10)
    return domid


def test_a_domain_is_made_and_unmade(conn: Connection, hypervisor: FakeHypervisor) -> None:
    domid = domctl.createdomain(conn, max_vcpus=2, handle=bytes(range(16)))
    domctl.max_vcpus(conn, domid, 2)
    domctl.max_mem(conn, domid, 8192)
    info = domctl.getdomaininfo(conn, domid)
    assert (info.domid, info.handle, info.max_pages) == (domid, bytes(range(16)), 2048)
    assert hypervisor.domains[domid].max_vcpus == 2
    domctl.pausedomain(conn, domid)
    domctl.unpausedomain(conn, domid)
    assert hypervisor.domains[domid].pauses == 1
    domctl.destroydomain(conn, domid)
    with pytest.raises(DomainNotFound):
        domctl.getdomaininfo(conn, domid)


def test_the_next_domain_is_not_mistaken_for_the_one_asked_for(conn: Connection) -> None:
    domctl.createdomain(conn, max_vcpus=1, domid=5)
    with pytest.raises(DomainNotFound, match="domain 4 does not exist"):
        domctl.getdomaininfo(conn, 4)


def test_a_domid_twice(conn: Connection) -> None:
    domctl.createdomain(conn, max_vcpus=1, domid=5)
    with pytest.raises(DomainExists):
        domctl.createdomain(conn, max_vcpus=1, domid=5)


def test_shutdown_reason_is_read_from_the_flags() -> None:
    info = abi.xen_domctl_getdomaininfo(domain=1, flags=abi.XEN_DOMINF_shutdown | 3 << abi.XEN_DOMINF_shutdownshift)
    assert domctl.DomainInfo.from_abi(info).shutdown_reason == 3
    info.flags = abi.XEN_DOMINF_running
    assert domctl.DomainInfo.from_abi(info).shutdown_reason is None


def test_vcpu_context_goes_both_ways(conn: Connection) -> None:
    domid = new_domain(conn)
    context = bytes(range(256)) * 20 + bytes(48)
    domctl.setvcpucontext(conn, domid, 0, context)
    assert domctl.getvcpucontext(conn, domid, 0) == context
    with pytest.raises(HypercallError) as caught:
        domctl.getvcpucontext(conn, domid, 1)
    assert caught.value.errno == errno.ENODATA
    with pytest.raises(ValueError, match="5168"):
        domctl.setvcpucontext(conn, domid, 0, b"short")
    assert domctl.getvcpuinfo(conn, domid, 0).cpu_time_ns == 12345


def test_populate_and_decrease(conn: Connection) -> None:
    domid = new_domain(conn, mib=4)
    mfns = memory.populate_physmap(conn, domid, range(1024))
    assert len(set(mfns)) == 1024
    assert memory.current_reservation(conn, domid) == 1024
    assert memory.decrease_reservation(conn, domid, [*mfns[:3], 0, mfns[4]]) == 3
    assert memory.current_reservation(conn, domid) == 1021


def test_populate_goes_in_pieces_that_fit_the_buffer(conn: Connection, hypervisor: FakeHypervisor) -> None:
    hypervisor._nr_free = 1 << 20
    hypervisor._free = iter(range(16, 1 << 20))
    domid = new_domain(conn, mib=600)
    assert memory.populate_physmap(conn, domid, range(150_000)).tolist() == list(range(16, 150_016))


def test_populate_past_the_limit_is_no_memory(conn: Connection) -> None:
    domid = new_domain(conn, mib=1)
    with pytest.raises(NoMemory, match="256 of the 257"):
        memory.populate_physmap(conn, domid, range(257))


def test_machphys(conn: Connection) -> None:
    assert memory.machphys_mapping(conn).v_start == 0xFFFF800000000000
    assert memory.maximum_ram_page(conn) == conn.nr_frames - 1


def test_mmu_update_names_owner_of_tables_and_frames(conn: Connection, hypervisor: FakeHypervisor) -> None:
    mmu.mmu_update(conn, [(0x1000, 7), (0x2001, 8)], domid=3)
    mmu.mmu_update(conn, [(0x3000, 9)])
    assert hypervisor.mmu_updates == [
        (4 << 16 | 3, 0x1000, 7),
        (4 << 16 | 3, 0x2001, 8),
        (xen.DOMID_SELF, 0x3000, 9),
    ]


def test_pin_of_a_foreign_table(conn: Connection, hypervisor: FakeHypervisor) -> None:
    domid = new_domain(conn)
    mfn = memory.populate_physmap(conn, domid, [0])[0]
    mmu.pin_table(conn, domid, 4, mfn)
    mmu.unpin_table(conn, domid, mfn)
    assert hypervisor.domains[domid].pins == [(xen.MMUEXT_PIN_L4_TABLE, mfn), (xen.MMUEXT_UNPIN_TABLE, mfn)]
    with pytest.raises(HypercallError):
        mmu.pin_table(conn, domid, 4, 2)
    with pytest.raises(ValueError, match="level 5"):
        mmu.pin_table(conn, domid, 5, mfn)


def test_domain_list_goes_past_one_call(conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysctl, "_DOMAINS_PER_CALL", 2)
    for domid in (1, 2, 7, 8, 9):
        domctl.createdomain(conn, max_vcpus=1, domid=domid)
    assert [info.domid for info in sysctl.getdomaininfolist(conn)] == [1, 2, 7, 8, 9]
    assert [info.domid for info in sysctl.getdomaininfolist(conn, 7)] == [7, 8, 9]


def test_physinfo_and_console(conn: Connection, hypervisor: FakeHypervisor) -> None:
    assert sysctl.physinfo(conn).nr_cpus == 2
    hypervisor.console = b"(XEN) hello\n" * 4000
    assert sysctl.readconsole(conn, clear=True) == "(XEN) hello\n" * 4000
    assert sysctl.readconsole(conn) == ""

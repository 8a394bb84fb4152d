"""A domain is built against a double of the hypervisor, and looked at the way its kernel would."""

import os
import struct
from dataclasses import dataclass
from pathlib import Path

import pytest

from ring3.abi import xen
from ring3.builder import kernel, pv
from ring3.errors import HypercallError, NoMemory
from ring3.libs import domctl
from ring3.libs.connection import Connection
from unit.builder.images import INIT_P2M, VIRT_BASE, elf, linux_notes, number
from unit.builder.verifier import Guest, StartInfo
from unit.libs.fake_hypervisor import SHARED_INFO_MFN, FakeDomain, FakeHypervisor

CODE, DATA = b"\xf4" * 5000, b"data" * 600
RAMDISK = bytes(range(256)) * 40
MEMORY_MIB = 40
NR_PAGES = MEMORY_MIB << 8


@dataclass(frozen=True)
class Built:
    """Everything that a test may look at."""

    domain: FakeDomain
    result: pv.BuiltDomain
    guest: Guest
    info: StartInfo
    memfd: int


def build(
    hypervisor: FakeHypervisor, folder: Path, image: bytes, *, ramdisk: bytes = RAMDISK, mib: int = MEMORY_MIB
) -> Built:
    path = folder / "vmlinux"
    path.write_bytes(image)
    disk = folder / "initrd"
    disk.write_bytes(ramdisk)
    with Connection.connect(hypervisor.path) as conn:
        domid = domctl.createdomain(conn, max_vcpus=1)
        domctl.max_mem(conn, domid, mib << 10)
        with pv.build(
            conn,
            domid,
            kernel.load(path),
            memory_mib=mib,
            store_evtchn=11,
            console_evtchn=12,
            ramdisk=pv.load_ramdisk(disk) if ramdisk else None,
            cmdline="console=hvc0 quiet",
        ) as result:
            pass
    domain = hypervisor.domains[domid]
    guest = Guest(hypervisor.memfd, domain.contexts[0])
    return Built(domain, result, guest, guest.start_info(), hypervisor.memfd)


@pytest.fixture
def linux(hypervisor: FakeHypervisor, tmp_path: Path) -> Built:
    """A kernel with Linux's notes, and a ramdisk."""
    return build(hypervisor, tmp_path, elf())


def test_first_vcpu_starts_as_the_abi_says(linux: Built) -> None:
    guest = linux.guest
    assert guest.rip == VIRT_BASE + 0x1000010
    assert (guest.cs, guest.ss, guest.kernel_ss) == (0xE033, 0xE02B, 0xE02B)
    assert guest.rflags == 0x200
    assert guest.flags == 4 | 32
    assert guest.rsp == guest.kernel_sp
    assert guest.mapped[guest.rsp - 8 >> 12][1]


def test_segments_are_at_their_physical_address(linux: Built) -> None:
    assert linux.guest.read(VIRT_BASE + 0x1000000, 0x3000) == CODE.ljust(0x3000, b"\0")
    assert linux.guest.read(VIRT_BASE + 0x1800123, 9000) == DATA.ljust(9000, b"\0")


def test_start_info(linux: Built) -> None:
    info, p2m = linux.info, linux.guest.p2m()
    assert info.magic.rstrip(b"\0") == b"xen-3.0-x86_64"
    assert info.nr_pages == NR_PAGES
    assert info.shared_info == SHARED_INFO_MFN << 12
    assert info.cmd_line.rstrip(b"\0") == b"console=hvc0 quiet"
    assert info.flags == 8 | 16
    assert (info.store_evtchn, info.console_evtchn) == (11, 12)
    assert (info.store_mfn, info.console_mfn) == (linux.result.store_mfn, linux.result.console_mfn)
    assert (info.store_mfn, info.console_mfn) == (p2m[p2m.index(info.store_mfn)], p2m[p2m.index(info.store_mfn) + 1])
    assert info.pt_base == linux.guest.rsi + 3 * 4096
    assert linux.guest.mfn_at(info.pt_base) << 12 == linux.guest.cr3
    assert info.mfn_list == INIT_P2M


def test_p2m_names_every_page_once(linux: Built) -> None:
    p2m = linux.guest.p2m()
    assert p2m == [linux.domain.p2m[pfn] for pfn in range(NR_PAGES)]
    assert len(set(p2m)) == NR_PAGES
    assert list(linux.result.p2m) == p2m


def test_initial_mapping_is_one_to_one_up_to_a_boundary(linux: Built) -> None:
    guest, p2m = linux.guest, linux.guest.p2m()
    pages = sorted(page for page in guest.mapped if page << 12 >= VIRT_BASE)
    assert pages == list(range(VIRT_BASE >> 12, (VIRT_BASE >> 12) + len(pages)))
    assert [guest.mapped[page][0] for page in pages] == p2m[: len(pages)]
    end = VIRT_BASE + (len(pages) << 12)
    assert end % (4 << 20) == 0
    assert end - guest.rsp >= 512 << 10


def test_no_table_is_mapped_writably_and_all_else_is(linux: Built) -> None:
    guest = linux.guest
    tables = list(guest.mapped_tables())
    assert len(tables) == linux.info.nr_pt_frames
    assert not any(writable for _, writable in tables)
    assert all(writable for mfn, writable in guest.mapped.values() if mfn not in guest.tables)


def test_tables_are_where_start_info_says(linux: Built) -> None:
    info, p2m = linux.info, linux.guest.p2m()
    first = (info.pt_base - VIRT_BASE) >> 12
    boot = set(p2m[first : first + info.nr_pt_frames])
    p2m_area = set(p2m[info.first_p2m_pfn : info.first_p2m_pfn + info.nr_p2m_frames])
    assert boot < set(linux.guest.tables)
    assert set(linux.guest.tables) - boot < p2m_area
    assert linux.guest.mapped[INIT_P2M >> 12] == (p2m[info.first_p2m_pfn], True)


def test_ramdisk_is_unmapped_and_whole(linux: Built) -> None:
    info, guest = linux.info, linux.guest
    assert info.mod_len == len(RAMDISK)
    mfns = guest.p2m()[info.mod_start :][: -(-len(RAMDISK) // 4096)]
    assert b"".join(guest.frame(mfn) for mfn in mfns)[: len(RAMDISK)] == RAMDISK
    assert not set(mfns) & {mfn for mfn, _ in guest.mapped.values()}


def test_root_is_pinned_after_everything_is_written(linux: Built) -> None:
    assert linux.domain.pins == [(xen.MMUEXT_PIN_L4_TABLE, linux.guest.cr3 >> 12)]
    assert linux.domain.hypercall_pages == []


def test_upcalls_start_masked(linux: Built) -> None:
    page = os.pread(linux.memfd, 4096, SHARED_INFO_MFN << 12)
    assert [page[64 * vcpu + 1] for vcpu in range(32)] == [1] * 32
    assert sum(page) == 32


def test_untouched_pages_cost_no_host_memory(linux: Built) -> None:
    assert os.fstat(linux.memfd).st_blocks * 512 < 2 << 20


def test_rings_are_zero(linux: Built) -> None:
    assert linux.guest.frame(linux.info.store_mfn) == bytes(4096)
    assert linux.guest.frame(linux.info.console_mfn) == bytes(4096)


def test_an_old_kernel_gets_ramdisk_and_p2m_mapped(hypervisor: FakeHypervisor, tmp_path: Path) -> None:
    notes = linux_notes(init_p2m=None, mod_start_pfn=None, hypercall_page=number(2, VIRT_BASE + 0x1001000))
    built = build(hypervisor, tmp_path, elf(notes=notes))
    info, guest, p2m = built.info, built.guest, built.guest.p2m()
    assert p2m == [built.domain.p2m[pfn] for pfn in range(NR_PAGES)]
    assert guest.read(info.mod_start, info.mod_len) == RAMDISK
    assert info.flags == 16
    assert (info.first_p2m_pfn, info.nr_p2m_frames) == (0, 0)
    assert VIRT_BASE + 0x1800000 < info.mod_start < info.mfn_list < guest.rsi < info.pt_base < guest.rsp
    assert built.domain.hypercall_pages == [p2m[0x1001]]
    assert len(guest.tables) == info.nr_pt_frames


def test_a_small_guest_without_a_ramdisk_at_a_low_address(hypervisor: FakeHypervisor, tmp_path: Path) -> None:
    notes = linux_notes(
        virt_base=number(3, 0x400000), entry=number(1, 0x500000), init_p2m=None, paddr_offset=number(4, 0x100000)
    )
    built = build(hypervisor, tmp_path, elf([(0x200000, CODE, len(CODE))], notes), ramdisk=b"", mib=8)
    assert built.guest.read(0x500000, len(CODE)) == CODE
    assert (built.info.mod_start, built.info.mod_len, built.info.flags) == (0, 0, 16)
    assert len(built.guest.p2m()) == 2048


def test_notes_may_be_in_a_section_only(hypervisor: FakeHypervisor, tmp_path: Path) -> None:
    assert build(hypervisor, tmp_path, elf(in_sections=True)).guest.rip == VIRT_BASE + 0x1000010


def test_segments_may_share_a_page(hypervisor: FakeHypervisor, tmp_path: Path) -> None:
    parts = [(0x1000000, b"a" * 4100, 4200), (0x1001100, b"b" * 3000, 3000), (0x1001D00, b"c" * 200000, 200000)]
    built = build(hypervisor, tmp_path, elf(parts))
    for paddr, contents, size in parts:
        assert built.guest.read(VIRT_BASE + paddr, size) == contents.ljust(size, b"\0")


def test_zero_chunks_are_left_out_and_read_as_zero(hypervisor: FakeHypervisor, tmp_path: Path) -> None:
    chunk = 64 << 10
    contents = bytes(3 * chunk) + b"x" * 7 + bytes(2 * chunk) + b"y" + bytes(chunk + 5)
    built = build(hypervisor, tmp_path, elf([(0x1000000, contents, len(contents))]))
    assert built.guest.read(VIRT_BASE + 0x1000000, len(contents)) == contents


def test_the_rings_are_granted_to_domain_0(linux: Built) -> None:
    table = os.pread(linux.memfd, 16, linux.domain.grant_frame << 12)
    permit_access, grantee = 1, 0
    expected = [(permit_access, grantee, linux.result.console_mfn), (permit_access, grantee, linux.result.store_mfn)]
    assert [struct.unpack_from("<HHI", table, offset) for offset in (0, 8)] == expected


def test_a_full_machine_is_no_memory(hypervisor: FakeHypervisor, tmp_path: Path) -> None:
    hypervisor._nr_free = 100
    with pytest.raises(NoMemory, match=f"100 of the {NR_PAGES}"):
        build(hypervisor, tmp_path, elf())


def test_a_refused_pin_is_reported(hypervisor: FakeHypervisor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_args: list[int]) -> int:
        return -22

    monkeypatch.setattr(hypervisor, "_mmuext", refuse)
    with pytest.raises(HypercallError, match="EINVAL"):
        build(hypervisor, tmp_path, elf())


def test_start_info_struct_of_the_verifier_has_the_size_of_the_abi() -> None:
    assert struct.calcsize("<32sQQIxxxxQIxxxxQIxxxxQQQQQ1024sQQ") == 1168

"""Kernels that ask for things in other words than Linux: older, of other families, or linked by hand."""

import io
import struct
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from ring3.builder import kernel
from ring3.builder.kernel import Kernel
from ring3.errors import BuildError
from unit.builder.images import VIRT_BASE, elf, linux_notes, note, number, with_sections

CODE = b"\xf4" * 0x5000


def load(folder: Path, image: bytes) -> Kernel:
    path = folder / "kernel"
    path.write_bytes(image)
    return kernel.load(path)


def legacy(text: bytes, *, entry: int, paddr: int = 0) -> bytes:
    """A kernel with the old string and no notes of Xen's."""
    image = elf([(paddr, CODE, len(CODE))], notes=note(3, b"build", b"GNU\0"), entry=entry)
    return with_sections(image, [("__xen_guest", 1, text, 0)])


def test_a_unikernel_with_the_old_string(tmp_path: Path) -> None:
    text = b"GUEST_OS=Ling,XEN_VER=xen-3.0,VIRT_BASE=0x0,ELF_PADDR_OFFSET=0x0,HYPERCALL_PAGE=0x1,LOADER=generic\0junk"
    loaded = load(tmp_path, legacy(text, entry=0x2000))
    assert (loaded.notes.entry, loaded.notes.virt_base, loaded.notes.paddr_offset) == (0x2000, 0, 0)
    assert (loaded.notes.hypercall_page, loaded.notes.guest_os) == (0x1000, "Ling")
    assert loaded.symbols == b""


def test_the_old_string_counts_physical_addresses_from_virt_base(tmp_path: Path) -> None:
    text = f"GUEST_OS=bsd,XEN_VER=xen-3.0,VIRT_BASE={VIRT_BASE:#x},HYPERCALL_PAGE=2,VIRT_ENTRY={VIRT_BASE + 16}"
    loaded = load(tmp_path, legacy(text.encode(), entry=7, paddr=VIRT_BASE))
    assert loaded.notes.entry == VIRT_BASE + 16
    assert loaded.notes.load_address(VIRT_BASE) == 0
    assert loaded.notes.hypercall_page == VIRT_BASE + 0x2000
    assert loaded.notes.init_p2m is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"XEN_VER=xen-2.0,VIRT_BASE=0", "xen-2.0"),
        (b"XEN_VER=xen-3.0,LOADER=other,VIRT_BASE=0", "LOADER"),
        (b"XEN_VER=xen-3.0,VIRT_BASE=zero", "VIRT_BASE=zero is no number"),
        (b"XEN_VER=xen-3.0,VIRT_BASE=-4096", "no address"),
        (b"XEN_VER=xen-3.0,VIRT_BASE=0x1ffffffffffffffff", "no address"),
        (b"XEN_VER=xen-3.0,ELF_PADDR_OFFSET=0x1000", "PADDR_OFFSET without VIRT_BASE"),
        (b"XEN_VER=xen-3.0,VIRT_BASE=0,VIRT_ENTRY=0x100000", "ENTRY"),
        (b"XEN_VER=xen-3.0,VIRT_BASE=0,HYPERCALL_PAGE=0x1234", "HYPERCALL_PAGE"),
        (b"", "__xen_guest"),
    ],
)
def test_an_old_string_that_contradicts_itself(tmp_path: Path, text: bytes, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        load(tmp_path, legacy(text, entry=0x1000))


def test_notes_win_over_the_old_string(tmp_path: Path) -> None:
    image = with_sections(elf(), [("__xen_guest", 1, b"GUEST_OS=old,VIRT_BASE=0", 0)])
    assert load(tmp_path, image).notes.guest_os == "linux"


def test_notes_in_a_section_beside_a_note_segment_of_others(tmp_path: Path) -> None:
    image = with_sections(elf(notes=note(3, b"build", b"GNU\0")), [(".note.Xen", 7, linux_notes(), 0)])
    assert load(tmp_path, image).notes.guest_os == "linux"


def test_without_an_entry_note_the_file_says_where(tmp_path: Path) -> None:
    notes = note(6, b"Mini-OS\0") + note(8, b"generic\0") + note(5, b"xen-3.0\0") + number(3, 0) + number(4, 0)
    assert load(tmp_path, elf([(0, CODE, len(CODE))], notes, entry=0x123)).notes.entry == 0x123
    with pytest.raises(BuildError, match="ENTRY 0x9000 is outside"):
        load(tmp_path, elf([(0, CODE, len(CODE))], notes, entry=0x9000))


def test_a_kernel_whose_physical_addresses_are_its_virtual_ones(tmp_path: Path) -> None:
    notes = linux_notes(
        virt_base=number(3, VIRT_BASE), paddr=number(4, VIRT_BASE), entry=number(1, VIRT_BASE + 0x100008), init_p2m=None
    )
    loaded = load(tmp_path, elf([(VIRT_BASE + 0x100000, CODE, len(CODE))], notes))
    assert loaded.notes.load_address(loaded.elf.segments[0].paddr) == 0x100000
    assert loaded.end == 0x105000


def symbols(*names: str) -> tuple[bytes, bytes]:
    """A symbol table and its strings."""
    strings, table = b"\0", bytes(24)
    for index, name in enumerate(names):
        table += struct.pack("<IBBHQQ", len(strings), 0x12, 0, 1, VIRT_BASE + index, 0)
        strings += name.encode() + b"\0"
    return table, strings


def test_a_bsd_finds_its_symbols_behind_it(tmp_path: Path) -> None:
    table, strings = symbols("start", "panic", "cpu_switchto")
    image = elf([(0x1000000, CODE, 0x5003)], linux_notes(bsd=note(11, b"yes\0")))
    image = with_sections(image, [(".symtab", 2, table, 2), (".strtab", 3, strings, 0)])
    loaded = load(tmp_path, image)
    assert loaded.symbols_at == 0x1005008
    (size,) = struct.unpack_from("<I", loaded.symbols)
    assert size == len(loaded.symbols) - 4
    assert loaded.end == loaded.symbols_at + 4 + size
    assert len(loaded.symbols) % 4 == 0
    found = ELFFile(io.BytesIO(loaded.symbols[4:]))
    assert found.num_segments() == 0
    section = found.get_section(1)
    assert isinstance(section, SymbolTableSection)
    assert section["sh_offset"] % 8 == 4, "aligned in memory"
    assert [symbol.name for symbol in section.iter_symbols()] == ["", "start", "panic", "cpu_switchto"]
    assert section.get_symbol(2)["st_value"] == VIRT_BASE + 1


def test_a_stripped_bsd_and_one_that_wants_none(tmp_path: Path) -> None:
    table, strings = symbols("start")
    wanted, unwanted = linux_notes(bsd=note(11, b"yes\0")), linux_notes(bsd=note(11, b"no\0"))
    assert load(tmp_path, elf(notes=wanted)).symbols == b""
    assert load(tmp_path, with_sections(elf(notes=wanted), [(".symtab", 2, table, 9)])).symbols == b""
    image = with_sections(elf(notes=unwanted), [(".symtab", 2, table, 2), (".strtab", 3, strings, 0)])
    assert load(tmp_path, image).symbols == b""


def test_sections_beyond_the_file(tmp_path: Path) -> None:
    text = b"XEN_VER=xen-3.0,VIRT_BASE=0"
    image = legacy(text, entry=0x1000)
    with pytest.raises(BuildError, match="truncated"):
        load(tmp_path, image[:-32])


def test_of_a_note_given_twice_the_last_counts(tmp_path: Path) -> None:
    image = elf(notes=linux_notes() + number(1, VIRT_BASE + 0x1000100))
    assert load(tmp_path, image).notes.entry == VIRT_BASE + 0x1000100

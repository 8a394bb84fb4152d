"""The parts of an ELF file that a domain builder needs: load segments and notes, checked against the file.

Read with `struct`: three tables of fixed layout. A general ELF library adds tens of milliseconds of import to every
start of a guest, and names Xen's notes after GNU's numbers; the tests compare with one (pyelftools).
"""

import itertools
import struct
from typing import NamedTuple

from ring3.abi.elfnote import XEN_ELFNOTE_OWNER
from ring3.builder import elf_sections
from ring3.builder.elf_sections import EHDR, SHT_NOTE, ElfError, Section, inside

_PHDR = struct.Struct("<IIQQQQQQ")
_NHDR = struct.Struct("<III")

ELF_MAGIC = b"\x7fELF"
_ELFCLASS32, _ELFCLASS64, _ELFDATA2LSB = 1, 2, 1
_EM_386, _EM_X86_64 = 3, 62
_PT_LOAD, _PT_NOTE = 1, 4
_U64 = 1 << 64


class Segment(NamedTuple):
    """A PT_LOAD segment: `nr_file_bytes` at `offset` of the file, zeros up to `nr_bytes`."""

    paddr: int
    vaddr: int
    offset: int
    nr_file_bytes: int
    nr_bytes: int


class Note(NamedTuple):
    """One ELF note of owner "Xen"."""

    type: int
    desc: bytes


class Elf(NamedTuple):
    """A checked 64-bit x86 ELF file. Segments are sorted by paddr, do not overlap, and lie within the file."""

    data: memoryview
    entry: int
    segments: tuple[Segment, ...]
    notes: tuple[Note, ...]
    """Those of Xen's, from note segments; if they have none, from note sections."""
    guest_info: str | None
    """The `__xen_guest` section of kernels older than the notes; only looked for where there are none."""

    def sections(self) -> list[Section]:
        """Returns the sections. Raises ElfError."""
        return elf_sections.parse(self.data)


def parse(data: memoryview) -> Elf:
    """Reads headers, segments and notes. Raises ElfError."""
    if bytes(data[:4]) != ELF_MAGIC:
        raise ElfError("no ELF file")
    if len(data) < EHDR.size:
        raise ElfError("truncated ELF header")
    ident, _type, machine, _version, entry, phoff, _shoff, _flags, _ehsize, phentsize, phnum, *_ = EHDR.unpack_from(
        data
    )
    if ident[4] == _ELFCLASS32 or machine == _EM_386:
        raise ElfError("a 32-bit kernel; only 64-bit x86 kernels (amd64) can be run")
    if ident[4] != _ELFCLASS64 or ident[5] != _ELFDATA2LSB or machine != _EM_X86_64:
        raise ElfError(f"an ELF file for another architecture (machine {machine}), not x86-64")
    if phnum == 0 or phentsize != _PHDR.size:
        raise ElfError("no program headers: an object file or library, not a kernel")
    if phoff + phnum * _PHDR.size > len(data):
        raise ElfError("truncated: the program headers lie beyond the end of the file")
    segments: list[Segment] = []
    notes: list[Note] = []
    for index in range(phnum):
        kind, _, offset, vaddr, paddr, filesz, memsz, _ = _PHDR.unpack_from(data, phoff + index * _PHDR.size)
        if kind == _PT_LOAD and memsz:
            segments.append(_segment(data, index, Segment(paddr, vaddr, offset, filesz, memsz)))
        elif kind == _PT_NOTE and offset:  # some linkers leave it at 0, and the notes in their section
            notes += _notes(inside(data, offset, filesz, f"note segment {index}"))
    guest_info = None
    if not notes:
        sections = elf_sections.parse(data)
        for section in elf_sections.of_kind(sections, SHT_NOTE):
            notes += _notes(section.data)
        old = elf_sections.named(sections, "__xen_guest") if not notes else None
        if old is not None:
            guest_info = bytes(old.data).split(b"\0", 1)[0].decode("latin-1")
    if not segments:
        raise ElfError("nothing to load")
    segments.sort(key=lambda segment: segment.paddr)
    for lower, upper in itertools.pairwise(segments):
        if lower.paddr + lower.nr_bytes > upper.paddr:
            raise ElfError(f"segments overlap at physical address {upper.paddr:#x}")
    return Elf(data, entry, tuple(segments), tuple(notes), guest_info)


def _segment(data: memoryview, index: int, segment: Segment) -> Segment:
    inside(data, segment.offset, segment.nr_file_bytes, f"segment {index}")
    if segment.nr_file_bytes > segment.nr_bytes:
        raise ElfError(f"segment {index} has more bytes in the file than in memory")
    if segment.paddr + segment.nr_bytes > _U64 or segment.vaddr + segment.nr_bytes > _U64:
        raise ElfError(f"segment {index} wraps around the address space")
    return segment


def _notes(data: memoryview) -> list[Note]:
    notes = []
    position = 0
    while position + _NHDR.size <= len(data):
        nr_name, nr_desc, kind = _NHDR.unpack_from(data, position)
        name_at = position + _NHDR.size
        desc_at = name_at + (nr_name + 3 & ~3)
        if desc_at + nr_desc > len(data):
            raise ElfError("a note reaches beyond its segment")
        owner = bytes(data[name_at : name_at + nr_name]).split(b"\0", 1)[0].decode("latin-1")
        if owner == XEN_ELFNOTE_OWNER:
            notes.append(Note(kind, bytes(data[desc_at : desc_at + nr_desc])))
        position = desc_at + (nr_desc + 3 & ~3)
    return notes

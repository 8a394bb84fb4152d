"""Section headers of an ELF file.

A loader needs them for kernels that tell less by program headers than Linux does: notes in sections only, the old
`__xen_guest` section, and the symbol table of a BSD.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
SHDR = struct.Struct("<IIQQQQIIQQ")

SHT_NULL, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE, SHT_NOBITS = 0, 2, 3, 7, 8


class ElfError(ValueError):
    """The file is no ELF file that can be loaded; the message says why."""


class Section(NamedTuple):
    """One section, within the file. `link` is the index of the section that belongs to it."""

    name: str
    kind: int
    data: memoryview
    link: int
    entry_bytes: int


def parse(data: memoryview) -> list[Section]:
    """Returns every section, the null one included; none if there is no table. Raises ElfError."""
    shoff, (shentsize, shnum, shstrndx) = EHDR.unpack_from(data)[6], EHDR.unpack_from(data)[11:]
    if shoff == 0 or shentsize != SHDR.size:
        return []
    headers = [
        SHDR.unpack(inside(data, shoff + index * SHDR.size, SHDR.size, "a section header")) for index in range(shnum)
    ]
    names = b""
    if shstrndx < len(headers):
        names = bytes(inside(data, headers[shstrndx][4], headers[shstrndx][5], "the section names"))
    return [_section(data, names, header) for header in headers]


def _section(data: memoryview, names: bytes, header: tuple[int, ...]) -> Section:
    name_at, kind, _, _, offset, size, link, _, _, entry_bytes = header
    name = names[name_at:].split(b"\0", 1)[0].decode("latin-1")
    if kind in (SHT_NULL, SHT_NOBITS):
        return Section(name, kind, data[:0], link, entry_bytes)
    return Section(name, kind, inside(data, offset, size, f"section {name}"), link, entry_bytes)


def named(sections: list[Section], name: str) -> Section | None:
    """Returns the first section of that name."""
    return next((section for section in sections if section.name == name), None)


def of_kind(sections: list[Section], kind: int) -> Iterator[Section]:
    """Yields the sections of a type."""
    return (section for section in sections if section.kind == kind)


def inside(data: memoryview, offset: int, nr_bytes: int, what: str) -> memoryview:
    """Returns a part of the file. Raises ElfError if the file ends before it."""
    if offset + nr_bytes > len(data):
        raise ElfError(f"truncated: {what} ends at {offset + nr_bytes:#x}, the file at {len(data):#x}")
    return data[offset : offset + nr_bytes]

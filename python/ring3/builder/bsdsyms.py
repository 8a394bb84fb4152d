"""The symbol table that a BSD kernel wants behind its image (note BSD_SYMTAB).

In memory, at the first multiple of 8 after the kernel: a 32-bit size, then an ELF file of `size` bytes made of nothing
but a header, three section headers (null, symbols, their strings) and the two sections. Offsets count from that ELF
header, which stands at the size's end and not at a multiple of 8. Consumer: NetBSD's ksyms_addsyms_elf.
"""

import struct

from ring3.builder.elf_sections import EHDR, SHDR, SHT_STRTAB, SHT_SYMTAB, Section, of_kind

ALIGNMENT = 8
_SIZE = struct.Struct("<I")


def image(ehdr: memoryview, sections: list[Section]) -> bytes:
    """Returns what is to be placed behind a kernel of this ELF header and sections; nothing if it is stripped."""
    symbols = next(of_kind(sections, SHT_SYMTAB), None)
    if symbols is None or symbols.link >= len(sections) or sections[symbols.link].kind != SHT_STRTAB:
        return b""
    strings = sections[symbols.link]
    head_bytes = EHDR.size + 3 * SHDR.size
    symbols_at = _aligned(_SIZE.size + head_bytes) - _SIZE.size
    strings_at = symbols_at + _aligned(len(symbols.data))
    end = strings_at + _aligned(len(strings.data))
    ident, kind, machine, version, entry, _, _, flags, *_ = EHDR.unpack_from(ehdr)
    header = EHDR.pack(ident, kind, machine, version, entry, 0, EHDR.size, flags, EHDR.size, 0, 0, SHDR.size, 3, 0)
    sections_out = (
        SHDR.pack(0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
        SHDR.pack(0, SHT_SYMTAB, 0, 0, symbols_at, len(symbols.data), 2, 0, ALIGNMENT, symbols.entry_bytes),
        SHDR.pack(0, SHT_STRTAB, 0, 0, strings_at, len(strings.data), 0, 0, 1, 0),
    )
    out = bytearray(_SIZE.pack(end) + header + b"".join(sections_out))
    for position, part in ((symbols_at, symbols.data), (strings_at, strings.data)):
        out += bytes(_SIZE.size + position - len(out)) + part
    return bytes(out + bytes(_SIZE.size + end - len(out)))


def _aligned(nr_bytes: int) -> int:
    return nr_bytes + ALIGNMENT - 1 & -ALIGNMENT

"""Which shared libraries an ELF file asks for (DT_NEEDED), so that an initramfs gets those and no others."""

import struct
from collections.abc import Iterator

from ring3.dev.initramfs import ArtefactError

_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_DYN = struct.Struct("<qQ")
_PT_LOAD, _PT_DYNAMIC = 1, 2
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5


def is_elf(data: bytes) -> bool:
    """Whether this is a 64-bit ELF file."""
    return data[:5] == b"\x7fELF\x02"


def libraries(data: bytes) -> list[str]:
    """Returns the names in the file's order; none for a static program. Raises ArtefactError for no ELF file."""
    if not is_elf(data):
        raise ArtefactError("not a 64-bit ELF file")
    segments = list(_segments(data))
    offsets, strings = [], 0
    for kind, offset, _, nr_bytes in segments:
        if kind != _PT_DYNAMIC:
            continue
        for tag, value in _DYN.iter_unpack(data[offset : offset + nr_bytes - nr_bytes % _DYN.size]):
            if tag == _DT_NULL:
                break
            if tag == _DT_NEEDED:
                offsets.append(value)
            elif tag == _DT_STRTAB:
                strings = value
    table = _file_offset(segments, strings) if offsets else 0
    return [data[table + offset : data.index(b"\0", table + offset)].decode() for offset in offsets]


def _segments(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Yields (type, file offset, address, file size)."""
    _, _, _, _, _, phoff, _, _, _, phentsize, phnum, *_ = _EHDR.unpack_from(data)
    for index in range(phnum):
        kind, _, offset, vaddr, _, filesz, _, _ = _PHDR.unpack_from(data, phoff + index * phentsize)
        yield kind, offset, vaddr, filesz


def _file_offset(segments: list[tuple[int, int, int, int]], address: int) -> int:
    for kind, offset, vaddr, nr_bytes in segments:
        if kind == _PT_LOAD and vaddr <= address < vaddr + nr_bytes:
            return offset + address - vaddr
    raise ArtefactError(f"no segment holds {address:#x}")

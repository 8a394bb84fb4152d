"""Kernel images for tests, built from parts: ELF files with Xen notes, and bzImages around them."""

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable, Sequence

import lz4.block
import zstandard

VIRT_BASE = 0xFFFFFFFF80000000
INIT_P2M = 0x8000000000
LZ4_BLOCK_BYTES = 8 << 20


def note(kind: int, desc: bytes, owner: bytes = b"Xen\0") -> bytes:
    """One ELF note."""
    pad = -len(desc) % 4
    return struct.pack("<III", len(owner), len(desc), kind) + owner + bytes(-len(owner) % 4) + desc + bytes(pad)


def number(kind: int, value: int) -> bytes:
    """A numeric note of 8 bytes."""
    return note(kind, struct.pack("<Q", value))


SEGMENTS = ((0x1000000, b"\xf4" * 5000, 0x3000), (0x1800123, b"data" * 600, 9000))
"""(paddr, contents, bytes in memory)."""


def linux_notes(**changes: bytes | None) -> bytes:
    """The notes of a Linux PV kernel that is loaded at 16 MiB; `changes` replaces them by name, None drops one."""
    notes: dict[str, bytes | None] = {
        "guest_os": note(6, b"linux\0"),
        "xen_version": note(5, b"xen-3.0\0"),
        "virt_base": number(3, VIRT_BASE),
        "init_p2m": number(15, INIT_P2M),
        "entry": number(1, VIRT_BASE + 0x1000010),
        "features": note(10, b"!writable_page_tables|pae_pgdir_above_4gb"),
        "loader": note(8, b"generic\0"),
        "mod_start_pfn": note(16, struct.pack("<I", 1)),
        "hv_start_low": number(12, 0xFFFF800000000000),
    }
    return b"".join(desc for desc in (notes | changes).values() if desc is not None)


def elf(
    segments: Sequence[tuple[int, bytes, int]] = (
        (0x1000000, b"\xf4" * 5000, 0x3000),
        (0x1800123, b"data" * 600, 9000),
    ),
    notes: bytes | None = None,
    *,
    machine: int = 62,
    elf_class: int = 2,
    in_sections: bool = False,
    entry: int = 0,
) -> bytes:
    """A 64-bit ELF file; `in_sections` puts the notes in a section only."""
    notes = linux_notes() if notes is None else notes
    count = len(segments) + (not in_sections)
    body, headers = b"", b""
    start = 64 + 56 * count
    for paddr, contents, size in segments:
        headers += struct.pack("<IIQQQQQQ", 1, 7, start + len(body), 0, paddr, len(contents), size, 4096)
        body += contents
    note_offset = start + len(body)
    body += notes
    section_offset = 0
    if in_sections:
        section_offset = start + len(body)
        body += bytes(64) + struct.pack("<IIQQQQIIQQ", 0, 7, 0, 0, note_offset, len(notes), 0, 0, 4, 0)
    else:
        headers += struct.pack("<IIQQQQQQ", 4, 4, note_offset, 0, 0, len(notes), len(notes), 4)
    ident = b"\x7fELF" + bytes([elf_class, 1, 1]) + bytes(9)
    shape = (64, 56, count, 64, 2 if in_sections else 0, 0)
    return struct.pack("<16sHHIQQQIHHHHHH", ident, 2, machine, 1, entry, 64, section_offset, 0, *shape) + headers + body


def with_sections(image: bytes, sections: Sequence[tuple[str, int, bytes, int]]) -> bytes:
    """The same file with a section table: a null section, those of (name, type, contents, link), and their names'."""
    names, headers, body = b"\0", bytes(64), image
    for name, kind, contents, link in (*sections, (".shstrtab", 3, b"", 0)):
        at = len(names)
        names += name.encode() + b"\0"
        body += bytes(-len(body) % 8)
        contents = names if name == ".shstrtab" else contents
        headers += struct.pack(
            "<IIQQQQIIQQ", at, kind, 0, 0, len(body), len(contents), link, 0, 8, 24 if kind == 2 else 0
        )
        body += contents
    body += bytes(-len(body) % 8)
    patched = bytearray(body + headers)
    struct.pack_into("<Q", patched, 40, len(body))
    struct.pack_into("<HHH", patched, 58, 64, len(sections) + 2, len(sections) + 1)
    return bytes(patched)


def lz4_legacy(data: bytes) -> bytes:
    """Linux's lz4 format, as `lz4 -l` makes it."""
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), LZ4_BLOCK_BYTES):
        block = lz4.block.compress(data[start : start + LZ4_BLOCK_BYTES], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def lzop(data: bytes) -> bytes | None:
    """lzo as Linux's build makes it, None where the tool is missing."""
    tool = shutil.which("lzop")
    return subprocess.run([tool, "-9"], input=data, stdout=subprocess.PIPE, check=True).stdout if tool else None


COMPRESSORS: dict[str, Callable[[bytes], bytes | None]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lambda data: lzma.compress(data, format=lzma.FORMAT_XZ, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "lzo": lzop,
    "lz4": lz4_legacy,
    "zstd": zstandard.ZstdCompressor(level=19, write_content_size=False).compress,
}
"""As Linux's scripts/Makefile.lib runs the tools."""


def bzimage(payload: bytes, size: int | None = None, *, version: int = 0x20F, setup_sects: int = 3) -> bytes:
    """A bzImage; `size` is appended to the payload as the build does for all but gzip, None appends nothing."""
    if size is not None:
        payload += struct.pack("<I", size)
    header = bytearray((setup_sects + 1) * 512)
    header[0x1F1] = setup_sects
    header[0x1FE:0x200] = b"\x55\xaa"
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", header, 0x206, version)
    struct.pack_into("<II", header, 0x248, 700, len(payload))
    return bytes(header) + bytes(700) + payload + bytes(50)


def compressed_kernel(kind: str, contents: bytes) -> bytes | None:
    """A bzImage of a kernel, in one of the formats; None where its tool is missing."""
    payload = COMPRESSORS[kind](contents)
    return None if payload is None else bzimage(payload, None if kind == "gzip" else len(contents))

"""Decompression of a bzImage payload: every format that Linux offers (gzip, bzip2, lzma, xz, lzo, lz4, zstd).

Libraries are imported when their format is met: start-up time counts. Every decompressor gets the size that the
kernel's build recorded after the payload, and must produce exactly that.
"""

import struct
from collections.abc import Callable

MAX_IMAGE_BYTES = 1 << 30
"""No kernel is as large; a recorded size above it is corruption, and is refused before memory is taken."""

LZ4_LEGACY_MAGIC = b"\x02\x21\x4c\x18"
_LZ4_BLOCK_BYTES = 8 << 20
LZO_MAGIC = b"\x89LZO\0\r\n\x1a\n"
_LZO_BLOCK_MAX_BYTES = 64 << 20


class PayloadError(ValueError):
    """The payload is damaged; the message says how."""


def _gzip(data: memoryview, size: int) -> bytes:
    import zlib

    engine = zlib.decompressobj(wbits=31)
    out = engine.decompress(data, size + 1)
    return _finished(out, engine.eof)


def _bzip2(data: memoryview, size: int) -> bytes:
    import bz2

    engine = bz2.BZ2Decompressor()
    out = engine.decompress(data, size + 1)
    return _finished(out, engine.eof)


def _xz(data: memoryview, size: int) -> bytes:
    import lzma

    engine = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    out = engine.decompress(data, size + 1)
    return _finished(out, engine.eof)


def _lzma(data: memoryview, size: int) -> bytes:
    import lzma

    engine = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE)
    out = engine.decompress(data, size + 1)
    return _finished(out, engine.eof or len(out) == size)


def _zstd(data: memoryview, size: int) -> bytes:
    import zstandard

    # Linux compresses with --ultra -22: its window is 128 MiB, which is the library's limit too.
    engine = zstandard.ZstdDecompressor().decompressobj()
    out = engine.decompress(data)
    if len(out) > size:
        raise PayloadError("more data than the kernel's header promises")
    return _finished(out, engine.eof)


def _lz4(data: memoryview, size: int) -> bytes:
    """Linux's "legacy" frame: magic, then blocks {length u32, data} of 8 MiB each; the magic may come again."""
    import lz4.block

    out: list[bytes] = []
    total, position = 0, 4
    while position < len(data):
        word = bytes(data[position : position + 4])
        if len(word) < 4:
            raise PayloadError("lz4 block header cut short")
        position += 4
        if word == LZ4_LEGACY_MAGIC:
            continue
        (length,) = struct.unpack("<I", word)
        if length == 0 or length > len(data) - position:
            raise PayloadError("lz4 block cut short")
        block = lz4.block.decompress(data[position : position + length], uncompressed_size=_LZ4_BLOCK_BYTES)
        position += length
        total += len(block)
        if total > size:
            raise PayloadError("more data than the kernel's header promises")
        out.append(block)
    return b"".join(out)


def _lzo(data: memoryview, size: int) -> bytes:
    """The lzop container, big-endian: header, blocks {uncompressed u32, compressed u32, checksums, data}, then 0."""
    import lzallright

    position = len(LZO_MAGIC)

    def take(fmt: str) -> int:
        nonlocal position
        (value,) = struct.unpack_from(fmt, data, position)
        position += struct.calcsize(fmt)
        return int(value)

    version = take(">H")
    take(">H")  # version of the library that compressed
    if version >= 0x0940:
        take(">H")  # version needed to extract
    take(">B")  # method
    if version >= 0x0940:
        take(">B")  # level
    flags = take(">I")
    if flags & 0x800:
        take(">I")  # filter
    take(">I")  # mode
    take(">I")  # mtime
    if version >= 0x0940:
        take(">I")  # mtime, high half
    nr_name = take(">B")
    position += nr_name
    take(">I")  # checksum of the header
    if flags & 0x40:
        nr_extra = take(">I")
        position += nr_extra + 4  # and its checksum
    engine = lzallright.LZOCompressor()
    out: list[bytes] = []
    total = 0
    while nr_out := take(">I"):
        nr_in = take(">I")
        if nr_out > _LZO_BLOCK_MAX_BYTES or nr_in > nr_out:
            raise PayloadError("lzo block with impossible sizes")
        position += 4 * ((flags & 0x1 != 0) + (flags & 0x100 != 0))  # adler32, crc32 of the uncompressed data
        if nr_in < nr_out:
            position += 4 * ((flags & 0x2 != 0) + (flags & 0x200 != 0))  # the same of the compressed data
        if nr_in > len(data) - position:
            raise PayloadError("lzo block cut short")
        block = bytes(data[position : position + nr_in])
        position += nr_in
        if nr_in < nr_out:  # else stored as it is
            block = engine.decompress(block, nr_out)
        if len(block) != nr_out:
            raise PayloadError("lzo block of another size than promised")
        total += nr_out
        if total > size:
            raise PayloadError("more data than the kernel's header promises")
        out.append(block)
    return b"".join(out)


def _finished(out: bytes, at_end: bool) -> bytes:
    if not at_end:
        raise PayloadError("compressed data ends early")
    return out


FORMATS: tuple[tuple[str, bytes, Callable[[memoryview, int], bytes]], ...] = (
    ("gzip", b"\x1f\x8b", _gzip),
    ("bzip2", b"BZh", _bzip2),
    ("xz", b"\xfd7zXZ\0", _xz),
    ("lzma", b"\x5d\0\0", _lzma),
    ("lzo", LZO_MAGIC, _lzo),
    ("lz4", LZ4_LEGACY_MAGIC, _lz4),
    ("zstd", b"\x28\xb5\x2f\xfd", _zstd),
)
"""(name, magic, decompressor). Source of the magics: Linux's Documentation/x86/boot.rst, payload_offset."""


def compression_of(payload: memoryview) -> str | None:
    """Returns the name of the format, None if no magic fits."""
    head = bytes(payload[:16])
    return next((name for name, magic, _ in FORMATS if head.startswith(magic)), None)


def decompress(payload: memoryview, size: int) -> bytes:
    """Decompresses a payload whose result has `size` bytes. Raises PayloadError."""
    name = compression_of(payload)
    for known, _, decompressor in FORMATS:
        if known == name:
            if not 0 < size <= MAX_IMAGE_BYTES:
                raise PayloadError(f"impossible kernel size of {size:#x} bytes")
            try:
                out = decompressor(payload, size)
            except PayloadError as error:
                raise PayloadError(f"{name}: {error}") from error
            except Exception as error:  # each library has errors of its own; all mean that the data is damaged
                raise PayloadError(f"{name}: {error}") from error
            if len(out) != size:
                raise PayloadError(f"{name}: {len(out):#x} bytes instead of {size:#x}")
            return out
    raise PayloadError("a compression that is none of gzip, bzip2, lzma, xz, lzo, lz4, zstd")

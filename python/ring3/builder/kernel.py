"""A guest kernel from its file: bzImage or ELF, decompressed, parsed and checked for what a PV64 domain needs."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ring3.abi.xen import PAGE_SIZE
from ring3.builder import bsdsyms, bzimage, cache, elf, elf_sections, notes, payload
from ring3.builder.elf import Elf
from ring3.builder.notes import XenNotes
from ring3.errors import BuildError, ConfigError

_ZERO_CHUNK = bytes(64 << 10)


class Kernel(NamedTuple):
    """A kernel that can be started as a PV64 domain."""

    path: Path
    elf: Elf
    notes: XenNotes
    symbols: bytes = b""
    """What BSD_SYMTAB asks for, to be placed at `symbols_at`."""
    pieces: tuple[tuple[int, memoryview], ...] = ()
    """Pseudo-physical addresses and contents: all that is not zero of segments and symbols."""

    @property
    def symbols_at(self) -> int:
        """Pseudo-physical address of the symbols."""
        last = self.elf.segments[-1]
        return self.notes.load_address(last.paddr) + last.nr_bytes + bsdsyms.ALIGNMENT - 1 & -bsdsyms.ALIGNMENT

    @property
    def end(self) -> int:
        """Pseudo-physical address of the first byte after it all, or up to 7 bytes more."""
        return self.symbols_at + len(self.symbols)


def load(path: str | Path, *, use_cache: bool = True) -> Kernel:
    """Reads a kernel. Raises ConfigError (unreadable) or BuildError (not a kernel, damaged, not for PV), naming it."""
    path = Path(path)
    data, status = map_file(path, "kernel")
    try:
        image = elf.parse(_elf_of(data, status if use_cache else None))
        wanted = notes.parse(image)
        symbols = bsdsyms.image(image.data, image.sections()) if wanted.bsd_symtab else b""
        kernel = Kernel(path, image, wanted, symbols)
        return kernel._replace(pieces=tuple(_pieces(kernel)))
    except (bzimage.BzImageError, payload.PayloadError, elf_sections.ElfError, notes.NotesError) as error:
        raise BuildError(str(error), file=path) from error


def _pieces(kernel: Kernel) -> Iterator[tuple[int, memoryview]]:
    for segment in kernel.elf.segments:
        data = kernel.elf.data[segment.offset : segment.offset + segment.nr_file_bytes]
        yield from _without_zeros(kernel.notes.load_address(segment.paddr), data)
    if kernel.symbols:
        yield kernel.symbols_at, memoryview(kernel.symbols)


def _without_zeros(address: int, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yields what is left without chunks of zeros: .bss and .brk are part of the file in Linux's images, and frames are
    zero already. Pieces after the first begin with a page.
    """
    start: int | None = None  # of the chunks since the last zero one
    end = min(-address % PAGE_SIZE, len(data))
    if end:
        yield address, data[:end]
    for position in range(end, len(data), len(_ZERO_CHUNK)):
        chunk = data[position : position + len(_ZERO_CHUNK)]
        # The two bytes rule out most chunks; comparing memoryviews instead of bytes would go element by element.
        is_zero = not chunk[0] and not chunk[-1] and bytes(chunk) == _ZERO_CHUNK[: len(chunk)]
        if is_zero and start is not None:
            yield address + start, data[start:position]
            start = None
        elif not is_zero and start is None:
            start = position
    if start is not None:
        yield address + start, data[start:]


def map_file(path: Path, what: str) -> tuple[memoryview, os.stat_result]:
    """Maps a file for reading; tells its status from before. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            if not path.is_file():
                raise ConfigError(f"this {what} is no regular file", file=path)
            status = os.fstat(file.fileno())
            return memoryview(mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)), status
    except ValueError as error:  # an empty file cannot be mapped
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"this {what} is empty", file=path) from error
    except OSError as error:
        raise ConfigError(f"the {what} cannot be read: {error.strerror}", file=path) from error


def _elf_of(data: memoryview, status: os.stat_result | None) -> memoryview:
    """Returns the ELF file within an image: from the cache, if the status of its file is given."""
    if bytes(data[:4]) == elf.ELF_MAGIC:
        return data
    if bytes(data[:2]) == b"\x1f\x8b":  # vmlinux.gz, as other systems ship their kernels
        return _gunzip(data)
    if not bzimage.is_bzimage(data):
        raise elf_sections.ElfError("not a kernel: neither a bzImage (vmlinuz) nor an ELF file (vmlinux)")
    image = bzimage.parse(data)
    if image.payload_is_elf:
        return image.payload
    key = cache.key_of(data, status) if status is not None else ""
    if key:
        cached = cache.load(key, image.uncompressed_bytes)
        if cached is not None:
            return memoryview(cached)
    kernel = payload.decompress(image.payload, image.uncompressed_bytes)
    if kernel[:4] != elf.ELF_MAGIC:
        raise elf_sections.ElfError("the bzImage's payload is no ELF file")
    if key:
        cache.store(key, kernel)
    return memoryview(kernel)


def _gunzip(data: memoryview) -> memoryview:
    import zlib  # rarely needed

    engine = zlib.decompressobj(wbits=31)
    try:
        out = engine.decompress(data, payload.MAX_IMAGE_BYTES)
    except zlib.error as error:
        raise payload.PayloadError(f"gzip: {error}") from error
    if not engine.eof:
        raise payload.PayloadError("gzip: compressed data ends early")
    if out[:4] != elf.ELF_MAGIC:
        raise elf_sections.ElfError("not a kernel: a gzip file that contains no ELF file")
    return memoryview(out)

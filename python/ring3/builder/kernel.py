"""A guest kernel from its file: bzImage or ELF, decompressed, parsed and checked for what a PV64 domain needs."""

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from ring3.builder import bsdsyms, bzimage, cache, elf, elf_sections, notes, payload
from ring3.builder.elf import Elf
from ring3.builder.notes import XenNotes
from ring3.errors import BuildError, ConfigError


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel that can be started as a PV64 domain."""

    path: Path
    elf: Elf
    notes: XenNotes
    symbols: bytes = b""
    """What BSD_SYMTAB asks for, to be placed at `symbols_at`."""

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
        return Kernel(path, image, wanted, symbols)
    except (bzimage.BzImageError, payload.PayloadError, elf_sections.ElfError, notes.NotesError) as error:
        raise BuildError(str(error), file=path) from error


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

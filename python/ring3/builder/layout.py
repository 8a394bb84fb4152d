"""Where everything of a new PV64 domain goes, before any memory is taken.

The start-of-day layout (xen/include/public/xen.h, "Start-of-day memory layout"), upward from VIRT_BASE, each part at a
page boundary: kernel, ramdisk if the kernel wants it mapped, P2M unless INIT_P2M moves it, start_info, xenstore page,
console page, page tables, boot stack, then at least 512 KiB more up to a 4 MiB boundary: all of that is mapped. Above
it, not mapped: the ramdisk if MOD_START_PFN allows it, and an INIT_P2M's array with the tables that map it at its own
address.
"""

from typing import NamedTuple

from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE
from ring3.builder.kernel import Kernel
from ring3.builder.pagetables import Range, TableMap
from ring3.errors import BuildError, ConfigError

_PADDING_BYTES = 512 << 10
_REGION_ALIGNMENT = 4 << 20
_P2M_ENTRY_BYTES = 8
MAX_PAGES = 1 << 26
"""256 GiB: what an M2P of 256 GiB of address space and one L4 slot of P2M hold with ease."""


def pages(nr_bytes: int) -> int:
    """Returns how many pages hold so many bytes."""
    return nr_bytes + PAGE_SIZE - 1 >> PAGE_SHIFT


class Layout(NamedTuple):
    """PFNs and virtual addresses of a new domain. Every PFN is below nr_pages."""

    nr_pages: int
    virt_base: int
    nr_mapped_pages: int
    """The initial mapping: PFN 0 up to this one, at virt_base."""
    ramdisk_pfn: int
    nr_ramdisk_bytes: int
    ramdisk_is_mapped: bool
    p2m_pfn: int
    p2m_vaddr: int
    start_info_pfn: int
    xenstore_pfn: int
    console_pfn: int
    stack_pfn: int
    tables: TableMap
    first_table_pfn: int
    nr_tables: int
    """Tables of the initial mapping; its L4 is the first."""
    nr_p2m_frames: int
    """The P2M array's pages and, with INIT_P2M, the tables after it."""
    p2m_is_separate: bool

    def vaddr(self, pfn: int) -> int:
        """Returns where the initial mapping shows a page."""
        return self.virt_base + (pfn << PAGE_SHIFT)


def plan(kernel: Kernel, *, nr_pages: int, nr_ramdisk_bytes: int) -> Layout:
    """Lays a domain out. Raises ConfigError when memory is too small, naming the least that would do."""
    if nr_pages > MAX_PAGES:
        raise ConfigError(f"a PV domain can have at most {MAX_PAGES >> 8} MiB", key="memory")
    notes = kernel.notes
    next_pfn = pages(kernel.end)
    if next_pfn > MAX_PAGES:
        raise BuildError(f"the kernel ends at {kernel.end:#x}, beyond any domain's memory", file=kernel.path)
    nr_ramdisk_pages = pages(nr_ramdisk_bytes)
    ramdisk_is_mapped = bool(nr_ramdisk_bytes) and not notes.mod_start_pfn
    ramdisk_pfn = p2m_pfn = 0
    nr_p2m_pages = pages(nr_pages * _P2M_ENTRY_BYTES)
    if ramdisk_is_mapped:
        ramdisk_pfn = next_pfn
        next_pfn += nr_ramdisk_pages
    if notes.init_p2m is None:
        p2m_pfn = next_pfn
        next_pfn += nr_p2m_pages
    start_info_pfn = next_pfn
    first_table_pfn = next_pfn + 3

    # More tables make a larger mapping, which may need more tables: both only grow, so this ends.
    nr_tables = 0
    while True:
        end = notes.virt_base + (first_table_pfn + nr_tables + 1 << PAGE_SHIFT)
        end = end + _PADDING_BYTES + _REGION_ALIGNMENT - 1 & -_REGION_ALIGNMENT
        initial = Range(notes.virt_base, end - notes.virt_base >> PAGE_SHIFT, 0)
        tables = TableMap(first_table_pfn)
        tables.cover(initial)
        if len(tables) <= nr_tables:
            break
        nr_tables = len(tables)
    if end > 1 << 64 or (notes.virt_base < 1 << 47 < end):
        raise BuildError(f"kernel and ramdisk do not fit the addresses above {notes.virt_base:#x}", file=kernel.path)

    next_pfn = initial.nr_pages
    if nr_ramdisk_bytes and not ramdisk_is_mapped:
        ramdisk_pfn = next_pfn
        next_pfn += nr_ramdisk_pages
    nr_p2m_frames = nr_p2m_pages
    if notes.init_p2m is not None:
        p2m_pfn = next_pfn
        p2m = Range(notes.init_p2m, nr_p2m_pages, p2m_pfn)
        if p2m.start < end and notes.virt_base < p2m.end:
            raise BuildError(f"ELF note INIT_P2M {notes.init_p2m:#x} is within the kernel's mapping", file=kernel.path)
        tables.next_pfn = p2m_pfn + nr_p2m_pages
        tables.cover(p2m)
        nr_p2m_frames += len(tables) - nr_tables
        next_pfn += nr_p2m_frames
    if next_pfn > nr_pages:
        _refuse(kernel, nr_pages, next_pfn, nr_ramdisk_bytes)
    return Layout(
        nr_pages=nr_pages,
        virt_base=notes.virt_base,
        nr_mapped_pages=initial.nr_pages,
        ramdisk_pfn=ramdisk_pfn,
        nr_ramdisk_bytes=nr_ramdisk_bytes,
        ramdisk_is_mapped=ramdisk_is_mapped,
        p2m_pfn=p2m_pfn,
        p2m_vaddr=notes.init_p2m if notes.init_p2m is not None else notes.virt_base + (p2m_pfn << PAGE_SHIFT),
        start_info_pfn=start_info_pfn,
        xenstore_pfn=start_info_pfn + 1,
        console_pfn=start_info_pfn + 2,
        stack_pfn=first_table_pfn + nr_tables,
        tables=tables,
        first_table_pfn=first_table_pfn,
        nr_tables=nr_tables,
        nr_p2m_frames=nr_p2m_frames,
        p2m_is_separate=notes.init_p2m is not None,
    )


def _refuse(kernel: Kernel, nr_pages: int, needed_pages: int, nr_ramdisk_bytes: int) -> None:
    have, need = nr_pages >> 8, needed_pages + 255 >> 8
    ramdisk = f" and a ramdisk of {nr_ramdisk_bytes / (1 << 20):.1f} MiB" if nr_ramdisk_bytes else ""
    raise ConfigError(f"{have} MiB cannot hold kernel {kernel.path}{ramdisk}; {need} MiB can", key="memory")

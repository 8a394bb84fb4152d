"""The page tables that a PV64 domain starts with: which are needed, and their contents.

Tables hold MFNs; no table is mapped writably, as the hypervisor would refuse that when the L4 is pinned.
Source of the entry format: Intel SDM volume 3, "4-Level Paging"; flags as Xen's toolstack sets them.
"""

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE

PAGE_PRESENT = 1
PAGE_RW = 2
PAGE_USER = 4
PAGE_ACCESSED = 32
PAGE_DIRTY = 64

_LEAF = PAGE_PRESENT | PAGE_RW | PAGE_ACCESSED | PAGE_DIRTY
_TABLE = PAGE_PRESENT | PAGE_RW | PAGE_USER | PAGE_ACCESSED | PAGE_DIRTY
_ENTRIES = 512
_VADDR_MASK = (1 << 48) - 1


class Range(NamedTuple):
    """Consecutive pages, mapped at consecutive addresses."""

    start: int
    nr_pages: int
    first_pfn: int

    @property
    def end(self) -> int:
        """The address after the last byte."""
        return self.start + (self.nr_pages << PAGE_SHIFT)


class TableMap:
    """The tables of an address space: a PFN for each (level, index), index counting that level's tables."""

    def __init__(self, first_pfn: int) -> None:
        self.next_pfn = first_pfn
        self.ranges: list[Range] = []
        self._pfns: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._pfns)

    @property
    def pfns(self) -> Sequence[int]:
        """Every table's PFN, in the order of allocation; the L4 is the first."""
        return list(self._pfns.values())

    def cover(self, mapped: Range) -> None:
        """Adds a range; the tables that it lacks get the next PFNs: L4, then L3s, L2s, L1s."""
        first, last = mapped.start & _VADDR_MASK, mapped.end - 1 & _VADDR_MASK
        self.ranges.append(mapped)
        for level in (4, 3, 2, 1):
            shift = PAGE_SHIFT + 9 * level
            for index in range(first >> shift, (last >> shift) + 1):
                if (level, index) not in self._pfns:
                    self._pfns[level, index] = self.next_pfn
                    self.next_pfn += 1

    def render(self, p2m: Sequence[int]) -> Iterator[tuple[int, "array[int]"]]:
        """Yields (PFN, 512 entries) of every table, in the order of `pfns`."""
        read_only = set(self._pfns.values())
        for (level, index), pfn in self._pfns.items():
            if level == 1:
                yield pfn, self._leaf(index, p2m, read_only)
                continue
            entries = array("Q", bytes(PAGE_SIZE))
            for slot in range(_ENTRIES):
                child = self._pfns.get((level - 1, index * _ENTRIES + slot))
                if child is not None:
                    entries[slot] = p2m[child] << PAGE_SHIFT | _TABLE
            yield pfn, entries

    def _leaf(self, index: int, p2m: Sequence[int], read_only: set[int]) -> "array[int]":
        entries = array("Q", bytes(PAGE_SIZE))
        first_page = index * _ENTRIES
        for mapped in self.ranges:
            start_page = (mapped.start & _VADDR_MASK) >> PAGE_SHIFT
            low = max(first_page, start_page)
            high = min(first_page + _ENTRIES, start_page + mapped.nr_pages)
            if low >= high:
                continue
            pfn = mapped.first_pfn + low - start_page
            entries[low - first_page : high - first_page] = array(
                "Q", [mfn << PAGE_SHIFT | _LEAF for mfn in p2m[pfn : pfn + high - low]]
            )
            for table in read_only.intersection(range(pfn, pfn + high - low)):
                entries[low - first_page + table - pfn] &= ~PAGE_RW
        return entries

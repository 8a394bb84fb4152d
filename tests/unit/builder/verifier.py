"""Checks a built domain as its kernel would see it: from registers and page tables in machine memory.

Shares no code with the builder; offsets are from the ABI. Source: xen/include/public/xen.h, arch-x86/xen.h.
"""

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

PRESENT, WRITE = 1, 2
ADDRESS = 0x000FFFFFFFFFF000
START_INFO = struct.Struct("<32sQQIxxxxQIxxxxQIxxxxQQQQQ1024sQQ")


@dataclass(frozen=True)
class StartInfo:
    """struct start_info, domU form."""

    magic: bytes
    nr_pages: int
    shared_info: int
    flags: int
    store_mfn: int
    store_evtchn: int
    console_mfn: int
    console_evtchn: int
    pt_base: int
    nr_pt_frames: int
    mfn_list: int
    mod_start: int
    mod_len: int
    cmd_line: bytes
    first_p2m_pfn: int
    nr_p2m_frames: int


class Guest:
    """A domain's first vCPU, through its own page tables."""

    def __init__(self, memfd: int, context: bytes) -> None:
        self._memfd = memfd
        self.rip, self.cs = struct.unpack_from("<QH", context, 0x208 + 0x80)
        self.rflags, self.rsp, self.ss = struct.unpack_from("<QQH", context, 0x208 + 0x90)
        (self.rsi,) = struct.unpack_from("<Q", context, 0x208 + 0x68)
        (self.flags,) = struct.unpack_from("<Q", context, 0x200)
        (self.kernel_ss, self.kernel_sp) = struct.unpack_from("<QQ", context, 0x1368)
        (self.cr3,) = struct.unpack_from("<Q", context, 0x1378 + 3 * 8)
        self.tables: dict[int, int] = {}
        """MFN of each table to its level."""
        self.mapped: dict[int, tuple[int, bool]] = {}
        """Virtual page number to (MFN, writable)."""
        self._walk(self.cr3 >> 12, 4, 0)

    def frame(self, mfn: int) -> bytes:
        return os.pread(self._memfd, 4096, mfn << 12)

    def _walk(self, mfn: int, level: int, first_page: int) -> None:
        assert self.tables.setdefault(mfn, level) == level, f"frame {mfn:#x} is a table of two levels"
        for slot, entry in enumerate(struct.unpack("<512Q", self.frame(mfn))):
            page = first_page + (slot << 9 * (level - 1))
            if not entry & PRESENT:
                assert entry == 0
                continue
            assert entry & ~(ADDRESS | 0x67) == 0, f"entry {entry:#x} has bits that Xen would refuse"
            if level > 1:
                self._walk((entry & ADDRESS) >> 12, level - 1, page)
            else:
                if page >> 35:
                    page |= 0xFFFF << 36
                assert page not in self.mapped
                self.mapped[page] = ((entry & ADDRESS) >> 12, bool(entry & WRITE))

    def mfn_at(self, address: int) -> int:
        return self.mapped[address >> 12][0]

    def read(self, address: int, nr_bytes: int) -> bytes:
        pieces = []
        while nr_bytes:
            piece = min(nr_bytes, 4096 - address % 4096)
            start = address % 4096
            pieces.append(self.frame(self.mfn_at(address))[start : start + piece])
            address += piece
            nr_bytes -= piece
        return b"".join(pieces)

    def start_info(self) -> StartInfo:
        return StartInfo(*START_INFO.unpack(self.read(self.rsi, START_INFO.size)))

    def p2m(self) -> list[int]:
        info = self.start_info()
        return list(struct.unpack(f"<{info.nr_pages}Q", self.read(info.mfn_list, 8 * info.nr_pages)))

    def mapped_tables(self) -> Iterator[tuple[int, bool]]:
        """(MFN, writable) of each mapping of a page table."""
        for mfn, writable in self.mapped.values():
            if mfn in self.tables:
                yield mfn, writable

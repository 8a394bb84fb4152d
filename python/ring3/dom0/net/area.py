"""Memory of domain 0 that one vif's packets pass through: frames that GNTTABOP_copy reaches, in buffers of four kinds.

Each vif has its own, so that one whose packets are not taken leaves the others theirs.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from ring3.abi.xen import DOMID_SELF, PAGE_SHIFT, PAGE_SIZE
from ring3.dom0.net.packet import HEADER_BYTES, HEADER_BYTES_USUAL, Packet, Part
from ring3.libs.connection import Connection
from ring3.libs.frames import OwnFrames

_CELLS_PER_PAGE: Final = PAGE_SIZE // HEADER_BYTES
NR_CELLS: Final = 256
"""Headers of packets whose bytes stay where they are: as many as the transmit ring has slots."""
NR_SLOT_PAGES: Final = 256
"""Pages for packets out of the ring, one for each slot."""
NR_SMALL: Final = 128
"""Pages for packets into the domain that fit one."""
NR_LARGE: Final = 8
LARGE_PAGES: Final = 17
"""64 KiB and what a reader reads on."""
AREA_PAGES: Final = NR_CELLS // _CELLS_PER_PAGE + NR_SLOT_PAGES + NR_SMALL + NR_LARGE * LARGE_PAGES


class Area:
    """The buffers. Cells are numbered by HEADER_BYTES, all else by the first page."""

    def __init__(self, frames: OwnFrames) -> None:
        self.frames = frames
        self.view = frames.view
        self.mfns = frames.mfns
        at = NR_CELLS // _CELLS_PER_PAGE
        self._cells = list(range(NR_CELLS))
        self._slots = list(range(at, at + NR_SLOT_PAGES))
        at += NR_SLOT_PAGES
        self._small = list(range(at, at + NR_SMALL))
        at += NR_SMALL
        self._large = list(range(at, at + NR_LARGE * LARGE_PAGES, LARGE_PAGES))

    @property
    def nr_cells(self) -> int:
        """How many headers fit."""
        return len(self._cells)

    @property
    def nr_slots(self) -> int:
        """How many slots' pages are free."""
        return len(self._slots)

    def take_header(self, packet: Packet) -> list[tuple[Part, int, int]]:
        """Has the header come here, and `packet.parts` say so. Returns copies: part, page, offset. A cell must be free.

        Source and destination are of one page each.
        """
        cell = self._cells.pop()
        page, offset = cell // _CELLS_PER_PAGE, cell % _CELLS_PER_PAGE * HEADER_BYTES
        copies: list[tuple[Part, int, int]] = []
        rest = packet.parts
        nr_bytes = 0
        while nr_bytes < HEADER_BYTES and rest:
            ref, domid, start, size = rest[0]
            step = min(size, HEADER_BYTES - nr_bytes)
            copies.append(((ref, domid, start, step), page, offset + nr_bytes))
            nr_bytes += step
            rest = rest[1:] if step == size else [(ref, domid, start + step, size - step), *rest[1:]]
            if nr_bytes >= HEADER_BYTES_USUAL:
                break
        packet.parts = [(self.mfns[page], DOMID_SELF, offset, nr_bytes), *rest]
        packet.release = partial(self._cells.append, cell)
        packet.header_at = (cell * HEADER_BYTES, nr_bytes)
        return copies

    def take_whole(self, packet: Packet) -> list[tuple[Part, int, int]]:
        """Has all of it come here. Returns copies as take_header(). So many slots must be free."""
        pages = [self._slots.pop() for _part in packet.parts]
        copies = [(part, page, 0) for part, page in zip(packet.parts, pages, strict=True)]
        packet.parts = [
            (self.mfns[page], DOMID_SELF, 0, part[3]) for part, page in zip(packet.parts, pages, strict=True)
        ]
        packet.release = partial(self._slots.extend, pages)
        packet.views = [self.view[page << PAGE_SHIFT : (page << PAGE_SHIFT) + part[3]] for part, page, _ in copies]
        return copies

    def take_buffer(self, nr_bytes: int) -> tuple[int, memoryview] | None:
        """Returns first page and bytes of a buffer for a packet into the domain; None if there is none."""
        free = self._small if nr_bytes <= PAGE_SIZE else self._large
        if not free or nr_bytes > LARGE_PAGES * PAGE_SIZE:
            return None
        page = free.pop()
        return page, self.view[page << PAGE_SHIFT : (page << PAGE_SHIFT) + nr_bytes]

    def give_buffer(self, page: int) -> None:
        """Gives a buffer back."""
        (self._small if page < self._first_large else self._large).append(page)

    @property
    def _first_large(self) -> int:
        return NR_CELLS // _CELLS_PER_PAGE + NR_SLOT_PAGES + NR_SMALL

    def packet_in(self, page: int, nr_bytes: int) -> Packet:
        """Returns the packet that a buffer holds from its start on; the buffer comes back with its last user."""
        parts = [
            (self.mfns[page + index], DOMID_SELF, 0, min(PAGE_SIZE, nr_bytes - index * PAGE_SIZE))
            for index in range(nr_bytes + PAGE_SIZE - 1 >> PAGE_SHIFT)
        ]
        start = page << PAGE_SHIFT
        view = self.view[start : start + nr_bytes]
        header = bytes(view[:HEADER_BYTES])
        return Packet(parts, nr_bytes, header=header, views=[view], release=partial(self.give_buffer, page))

    def packet_of(self, data: bytes | bytearray | memoryview) -> Packet | None:
        """Returns a packet with these bytes; None if there is no buffer."""
        buffer = self.take_buffer(len(data))
        if buffer is None:
            return None
        page, view = buffer
        view[:] = data
        return self.packet_in(page, len(data))

    def header_of(self, packet: Packet) -> bytes:
        """Returns a copy of the header that take_header() had brought here."""
        start, nr_bytes = packet.header_at
        return bytes(self.view[start : start + nr_bytes])

    def read(self, page: int, nr_bytes: int) -> bytes:
        """Returns a copy of the bytes of a buffer."""
        start = page << PAGE_SHIFT
        return bytes(self.view[start : start + nr_bytes])


class Areas:
    """Areas in use and not."""

    def __init__(self, conn: Connection, directory: Path) -> None:
        self._conn = conn
        self._directory = directory
        self._nr = 0
        self._free: list[OwnFrames] = []

    def take(self) -> Area:
        """Returns an area. Raises NoMemory, HypercallError, OSError."""
        if self._free:
            return Area(self._free.pop())
        frames = OwnFrames(self._conn, AREA_PAGES, self._directory / f"frames.{self._nr}")
        self._nr += 1
        return Area(frames)

    def give(self, area: Area) -> None:
        """Takes an area back. No packet may be in it."""
        self._free.append(area.frames)

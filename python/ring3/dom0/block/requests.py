"""What a slot of a block ring asks for, checked as far as its bytes go. No I/O.

Source: xen/include/public/io/blkif.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ring3.abi.blkif import (
    BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST,
    BLKIF_MAX_SEGMENTS_PER_REQUEST,
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_INDIRECT,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE,
    BLKIF_OP_WRITE_BARRIER,
    SECTOR_BYTES,
    SEGMENT,
    Protocol,
)
from ring3.abi.xen import PAGE_SIZE

MAX_INDIRECT_SEGMENTS: Final = 256
"""What we offer; 8 pages of them would be 4096."""
_SEGMENTS_PER_PAGE: Final = PAGE_SIZE // SEGMENT.size
_SECTORS_PER_PAGE: Final = PAGE_SIZE // SECTOR_BYTES
_LAST_OF_PAGE: Final = bytes([_SECTORS_PER_PAGE - 1])
_DIRECT: Final = (BLKIF_OP_READ, BLKIF_OP_WRITE, BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE)
OPERATIONS: Final = (*_DIRECT, BLKIF_OP_DISCARD, BLKIF_OP_INDIRECT)


@dataclass(slots=True)
class Request:
    """A request. Sectors of 512 bytes."""

    operation: int
    """What the front end wants, and is told in the response: for an indirect request the operation within it."""
    id: int
    sector: int
    grefs: tuple[int, ...] = ()
    """The pages, in order."""
    ranges: list[tuple[int, int]] | None = None
    """First and last sector of each page; None for whole pages, which is the usual case."""
    nr_sectors: int = 0
    indirect_grefs: tuple[int, ...] = ()
    nr_indirect_segments: int = 0
    leaves_grants: bool = False
    """Whether its pages are its own until it is done; those of persistent grants are everybody's."""

    @property
    def is_write(self) -> bool:
        """Whether it changes the disk's contents with data."""
        return self.operation != BLKIF_OP_READ and self.operation != BLKIF_OP_DISCARD


def parse(raw: bytes, protocol: Protocol) -> tuple[Request, str | None]:
    """Returns the request of a slot, and what is wrong with it, if something is: it can be answered in any case."""
    operation = raw[0]
    if operation == BLKIF_OP_DISCARD:
        _op, _flag, _handle, number, sector, nr_sectors = protocol.discard.unpack_from(raw)
        return Request(operation, number, sector, nr_sectors=nr_sectors), None
    if operation == BLKIF_OP_INDIRECT:
        return _parse_indirect(raw, protocol)
    _op, nr_segments, _handle, number, sector = protocol.request.unpack_from(raw)
    request = Request(operation, number, sector)
    if operation not in _DIRECT:
        return request, f"operation {operation}"
    if nr_segments > BLKIF_MAX_SEGMENTS_PER_REQUEST:
        return request, f"{nr_segments} segments"
    if not nr_segments and operation in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        return request, "no segments"
    start = protocol.request.size
    return request, set_segments(request, raw[start : start + SEGMENT.size * nr_segments])


def _parse_indirect(raw: bytes, protocol: Protocol) -> tuple[Request, str | None]:
    _op, operation, nr_segments, number, sector, _handle, *grefs = protocol.indirect.unpack_from(raw)
    request = Request(operation, number, sector)
    if operation not in (BLKIF_OP_READ, BLKIF_OP_WRITE):
        return request, f"indirect operation {operation}"
    if not 0 < nr_segments <= MAX_INDIRECT_SEGMENTS:
        return request, f"{nr_segments} indirect segments"
    nr_pages = -(-nr_segments // _SEGMENTS_PER_PAGE)
    if nr_pages > BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST:
        return request, f"{nr_pages} indirect pages"
    request.nr_indirect_segments = nr_segments
    request.indirect_grefs = tuple(grefs[:nr_pages])
    return request, None


def set_segments(request: Request, table: bytes) -> str | None:
    """Gives a request its segments; returns what is wrong with them."""
    nr_segments = len(table) // SEGMENT.size
    # A look at the columns is quicker than one at each segment.
    request.grefs = struct.unpack(f"<{2 * nr_segments}I", table)[::2]
    if table[4 :: SEGMENT.size] == bytes(nr_segments) and table[5 :: SEGMENT.size] == _LAST_OF_PAGE * nr_segments:
        request.nr_sectors = nr_segments * _SECTORS_PER_PAGE
        return None
    ranges = [(first, last) for _gref, first, last in SEGMENT.iter_unpack(table)]
    for first, last in ranges:
        if first > last or last >= _SECTORS_PER_PAGE:
            return f"sectors {first} to {last} of a page"
    request.ranges = ranges
    request.nr_sectors = sum(last - first + 1 for first, last in ranges)
    return None

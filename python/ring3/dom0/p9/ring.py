"""A ring of the 9pfs transport: an index page, and data pages of which half go each way.

Source: xen/include/public/io/ring.h, DEFINE_XEN_FLEX_RING_AND_INTF; io/9pfs.h.
"""

from __future__ import annotations

import struct
from typing import Final

from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE
from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.p9.messages import HEADER
from ring3.errors import RingError
from ring3.libs.gnttab import Grants

MAX_ORDER: Final = 9
"""A ring has at most 2 to the power of this pages; their references fill half of the index page then."""
_IN_CONS, _IN_PROD, _OUT_CONS, _OUT_PROD, _ORDER, _REFS = 0, 4, 64, 68, 128, 132
_U32: Final = 0xFFFFFFFF


def size_of(order: int) -> int:
    """Returns the bytes of one direction of a ring (XEN_FLEX_RING_SIZE)."""
    return 1 << order + PAGE_SHIFT - 1


class TransportRing:
    """One ring: requests come `out`, responses go `in`, as the domain sees it."""

    def __init__(self, grants: Grants, domid: int, gref: int) -> None:
        """Maps the ring of an index page. Raises GrantError, RingError."""
        self._domid = domid
        with grants.map(domid, [gref], writable=False) as page:
            order = struct.unpack_from("<I", page.view, _ORDER)[0]
            if not 1 <= order <= MAX_ORDER:
                raise RingError(domid, f"a 9pfs ring of order {order}")
            grefs = struct.unpack_from(f"<{1 << order}I", page.view, _REFS)
        self._mapping = grants.map(domid, [gref, *grefs])
        self.size = size_of(order)
        view = self._mapping.view
        self._in = ByteRing(
            view, domid, data_offset=PAGE_SIZE, size=self.size, cons_offset=_IN_CONS, prod_offset=_IN_PROD
        )
        out_offset = PAGE_SIZE + self.size
        self._out = ByteRing(
            view, domid, data_offset=out_offset, size=self.size, cons_offset=_OUT_CONS, prod_offset=_OUT_PROD
        )
        self.out_cons = self._out.cons
        self.in_prod = self._in.prod

    def peek(self) -> bytes | None:
        """Returns the next request, None if there is no whole one. Raises RingError."""
        header = self._out.peek(self.out_cons, HEADER.size)
        if len(header) < HEADER.size:
            return None
        nr_bytes = HEADER.unpack(header)[0]
        if not HEADER.size <= nr_bytes <= self.size:
            raise RingError(self._domid, f"a 9p request of {nr_bytes} bytes")
        message = self._out.peek(self.out_cons, nr_bytes)
        # The domain may have written another header meanwhile: the one that was checked counts.
        return header + message[HEADER.size :] if len(message) == nr_bytes else None

    def has_room(self, nr_bytes: int) -> bool:
        """Returns whether a response of that size can be put. Raises RingError."""
        nr_used = (self.in_prod - self._in.cons) & _U32
        if nr_used > self.size:
            raise RingError(self._domid, f"9pfs in_cons is {nr_used} bytes behind in_prod")
        return self.size - nr_used >= nr_bytes

    def put(self, response: bytes) -> None:
        """Puts a response that there is room for."""
        self._in.put(self.in_prod, response)
        self.in_prod = self.in_prod + len(response) & _U32
        self._in.prod = self.in_prod

    def take(self, nr_bytes: int) -> None:
        """Takes a request away, once it is answered."""
        self.out_cons = self.out_cons + nr_bytes & _U32
        self._out.cons = self.out_cons

    def close(self) -> None:
        """Unmaps it."""
        self._in.release()
        self._out.release()
        self._mapping.close()

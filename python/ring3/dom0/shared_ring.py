"""The back end's half of a ring of requests and responses, in a page that the front end shares.

The front end may write anything at any time: an index is read once and checked, requests are copied out, and what the
back end needs to know about its own progress is in its own memory. Source: xen/include/public/io/ring.h.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, Final

from ring3.abi.netif import RING_ENTRIES_OFFSET
from ring3.errors import RingError
from ring3.libs.atomics import fence

_U32: Final = 0xFFFFFFFF
_REQ_PROD, _REQ_EVENT, _RSP_PROD, _RSP_EVENT = range(4)


class SharedRing:
    """`req_cons`: requests taken; `rsp_prod`: responses written, of which the front end sees those that were pushed."""

    def __init__(self, page: memoryview, domid: int, request: Struct, nr_entries: int) -> None:
        self._indices = page[:16].cast("I")
        self._entries = page[RING_ENTRIES_OFFSET : RING_ENTRIES_OFFSET + nr_entries * request.size]
        self._request = request
        self._domid = domid
        self.nr_entries = nr_entries
        # What was pushed is what counts: a back end that was killed goes on there.
        self.req_cons = self.rsp_prod = self._pushed = self._indices[_RSP_PROD]

    def nr_requests(self) -> int:
        """Returns how many requests wait. Raises RingError if the front end's index cannot be."""
        prod = self._indices[_REQ_PROD]
        if (prod - self.rsp_prod) & _U32 > self.nr_entries or (prod - self.req_cons) & _U32 > self.nr_entries:
            raise RingError(self._domid, f"ring index {prod:#x} is more than {self.nr_entries} past {self.rsp_prod:#x}")
        return (prod - self.req_cons) & _U32

    def peek(self, nr: int) -> list[tuple[Any, ...]]:
        """Returns copies of the next requests, which stay. `nr` is at most what nr_requests() said."""
        size = self._request.size
        start = self.req_cons % self.nr_entries
        first = min(nr, self.nr_entries - start)
        data = bytes(self._entries[start * size : (start + first) * size])
        if first < nr:
            data += bytes(self._entries[: (nr - first) * size])
        return list(self._request.iter_unpack(data))

    def advance(self, nr: int) -> None:
        """Takes the next requests."""
        self.req_cons = (self.req_cons + nr) & _U32

    def put(self, response: bytes, offset: int = 0) -> None:
        """Writes the next response, or from `offset` of its slot on."""
        at = self.rsp_prod % self.nr_entries * self._request.size + offset
        self._entries[at : at + len(response)] = response
        self.rsp_prod = (self.rsp_prod + 1) & _U32

    def push(self) -> bool:
        """Shows the responses to the front end; returns whether it wants to be notified."""
        old, new = self._pushed, self.rsp_prod
        if old == new:
            return False
        self._indices[_RSP_PROD] = self._pushed = new
        fence()
        return (new - self._indices[_RSP_EVENT]) & _U32 < (new - old) & _U32

    def arm(self) -> bool:
        """Asks to be notified of the next request; returns whether there is one already. Raises RingError."""
        self._indices[_REQ_EVENT] = (self.req_cons + 1) & _U32
        fence()
        return self.nr_requests() > 0

    def release(self) -> None:
        """Lets go of the page."""
        self._indices.release()
        self._entries.release()

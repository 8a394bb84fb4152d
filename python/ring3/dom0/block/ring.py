"""The back end's side of a block ring.

Responses are published in the order of their requests, whatever order these are done in. So the slots from rsp_prod to
req_prod are exactly the requests without an answer, and a back end that takes the ring over from one that was killed
carries these out (again): to the guest nothing has happened.

Source: xen/include/public/io/ring.h.
"""

from __future__ import annotations

import threading
from typing import Final

from ring3.abi.blkif import RING_HEADER_BYTES, Protocol
from ring3.dom0.block.journal import Journal
from ring3.errors import RingError

_REQ_PROD, _REQ_EVENT, _RSP_PROD, _RSP_EVENT = range(4)
"""32-bit words of the header. The front end writes req_prod and rsp_event, we the others."""
_U32: Final = 0xFFFFFFFF


def nr_slots(nr_bytes: int, protocol: Protocol) -> int:
    """Returns how many entries a ring of that size has: a power of two."""
    return 1 << ((nr_bytes - RING_HEADER_BYTES) // protocol.slot_bytes).bit_length() - 1


class BackRing:
    """A ring in `view`, which the guest may write to at any time: a request is copied out, once."""

    def __init__(self, domid: int, view: memoryview, protocol: Protocol, journal: Journal) -> None:
        """Goes on where the journal and the shared page say that the last back end has stopped. Raises RingError."""
        self._domid = domid
        self._view = view
        self._words = view[:RING_HEADER_BYTES].cast("I")
        self._slot_bytes = protocol.slot_bytes
        self._mask = nr_slots(len(view), protocol) - 1
        self._journal = journal
        self._fence = threading.Lock()
        self._done: dict[int, bytes] = {}
        self._rsp_prod = self._words[_RSP_PROD]
        self._req_cons = self._rsp_prod
        self.nr_taken_over = 0
        """Requests that a predecessor took and did not answer."""
        if journal.is_continued:
            self.nr_taken_over = journal.req_cons - self._rsp_prod & _U32
            if self.nr_taken_over > self._mask + 1:
                raise RingError(domid, f"rsp_prod {self._rsp_prod:#x} does not belong to {journal.req_cons:#x}")
        else:
            journal.req_cons = self._req_cons

    @property
    def nr_unanswered(self) -> int:
        """Requests that were taken and have no published answer."""
        return self._req_cons - self._rsp_prod & _U32

    @property
    def is_settled(self) -> bool:
        """Whether every request that was taken has its answer."""
        return self._req_cons == self._rsp_prod and not self.nr_taken_over

    @property
    def index(self) -> int:
        """Of the next request."""
        return self._req_cons

    def skip(self, index: int) -> None:
        """Goes on at an index; the requests before it were answered, and published, by the quick path."""
        self._req_cons = self._rsp_prod = index

    def take(self, nr_max: int) -> list[tuple[int, bytes]]:
        """Copies requests out, each with its index. Raises RingError where the front end's index is wild."""
        taken: list[tuple[int, bytes]] = []
        while self.nr_taken_over and len(taken) < nr_max:
            taken.append((self._req_cons, self._journal.read(self._req_cons & self._mask)))
            self._req_cons = self._req_cons + 1 & _U32
            self.nr_taken_over -= 1
        if self.nr_taken_over:
            return taken
        req_prod = self._words[_REQ_PROD]
        if req_prod - self._rsp_prod & _U32 > self._mask + 1:
            raise RingError(self._domid, f"req_prod {req_prod:#x} is too far from rsp_prod {self._rsp_prod:#x}")
        size = self._slot_bytes
        while self._req_cons != req_prod and len(taken) < nr_max:
            slot = self._req_cons & self._mask
            start = RING_HEADER_BYTES + slot * size
            raw = self._view[start : start + size].tobytes()
            self._journal.write(slot, raw)
            taken.append((self._req_cons, raw))
            self._req_cons = self._req_cons + 1 & _U32
            self._journal.req_cons = self._req_cons
        return taken

    def answer(self, index: int, response: bytes) -> None:
        """Keeps the response to the request of an index until publish()."""
        self._done[index] = response

    def publish(self) -> bool:
        """Shows the front end the responses whose turn it is. Returns whether it wants an event."""
        old = new = self._rsp_prod
        while (response := self._done.pop(new, None)) is not None:
            start = RING_HEADER_BYTES + (new & self._mask) * self._slot_bytes
            self._view[start : start + len(response)] = response
            new = new + 1 & _U32
        if new == old:
            return False
        self._rsp_prod = self._words[_RSP_PROD] = new
        self._barrier()
        return new - self._words[_RSP_EVENT] & _U32 < new - old & _U32

    def has_more(self) -> bool:
        """Returns whether there are requests to take; if not, the next one raises an event."""
        if self.nr_taken_over or self._words[_REQ_PROD] != self._req_cons:
            return True
        self._words[_REQ_EVENT] = self._req_cons + 1 & _U32
        self._barrier()
        return self._words[_REQ_PROD] != self._req_cons

    def peek(self) -> bool:
        """Returns whether there are requests to take, without asking for an event."""
        return self._words[_REQ_PROD] != self._req_cons

    def release(self) -> None:
        """Looks at the pages no more."""
        self._words.release()
        self._view.release()

    def _barrier(self) -> None:
        # A store before must be seen before a load after: the locked instructions of a lock do that on x86.
        self._fence.acquire()
        self._fence.release()

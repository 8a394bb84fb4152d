"""A byte ring in a page shared with a guest, as the console and xenstore use it.

The producer writes data, then its index; the consumer reads the index, then data. x86 keeps that order. The guest may
write anything at any time, so each index is read once, checked, and used from the local copy.

A service that must survive its own death keeps its index itself: it looks by peek() and puts by put(), makes what it
did last, and only then lets the guest see the index.
"""

from __future__ import annotations

from typing import Final

from ring3.errors import RingError

_U32: Final = 0xFFFFFFFF


class ByteRing:
    """One direction. Offsets are bytes within the page; indices run freely modulo 2**32, `size` is a power of two."""

    def __init__(
        self, page: memoryview, domid: int, *, data_offset: int, size: int, cons_offset: int, prod_offset: int
    ) -> None:
        self._data = page[data_offset : data_offset + size]
        self._cons = page[cons_offset : cons_offset + 4].cast("I")
        self._prod = page[prod_offset : prod_offset + 4].cast("I")
        self._size = size
        self._domid = domid

    @property
    def cons(self) -> int:
        """The consumer's index as it stands in the page."""
        return self._cons[0]

    @cons.setter
    def cons(self, index: int) -> None:
        self._cons[0] = index & _U32

    @property
    def prod(self) -> int:
        """The producer's index as it stands in the page."""
        return self._prod[0]

    @prod.setter
    def prod(self, index: int) -> None:
        self._prod[0] = index & _U32

    def peek(self, cons: int, nr_max: int) -> bytes:
        """Returns at most nr_max bytes from index `cons` on, and leaves them there. Raises RingError."""
        nr_used = self._used(cons, self._prod[0])
        nr = min(nr_used, nr_max)
        if nr == 0:
            return b""
        start = cons & (self._size - 1)
        head = bytes(self._data[start : start + nr])
        return head if len(head) == nr else head + bytes(self._data[: nr - len(head)])

    def put(self, prod: int, data: bytes | bytearray | memoryview) -> int:
        """Puts what fits at index `prod`, which stays as it is; returns how many bytes that were. Raises RingError."""
        nr = min(self._size - self._used(self._cons[0], prod), len(data))
        if nr == 0:
            return 0
        start = prod & (self._size - 1)
        nr_head = min(nr, self._size - start)
        self._data[start : start + nr_head] = data[:nr_head]
        self._data[: nr - nr_head] = data[nr_head:nr]
        return nr

    def read(self, nr_max: int) -> bytes:
        """Takes at most nr_max bytes, as the consumer. Raises RingError."""
        cons = self._cons[0]
        data = self.peek(cons, nr_max)
        if data:
            self.cons = cons + len(data)
        return data

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Puts in what fits, as the producer; returns how many bytes that were. Raises RingError."""
        prod = self._prod[0]
        nr = self.put(prod, data)
        if nr:
            self.prod = prod + nr
        return nr

    def is_empty(self) -> bool:
        """Returns whether there is nothing to read."""
        return self._cons[0] == self._prod[0]

    def release(self) -> None:
        """Lets go of the page."""
        for view in (self._data, self._cons, self._prod):
            view.release()

    def _used(self, cons: int, prod: int) -> int:
        nr = (prod - cons) & _U32
        if nr > self._size:
            raise RingError(self._domid, f"ring indices {cons:#x} and {prod:#x} are more than {self._size} bytes apart")
        return nr

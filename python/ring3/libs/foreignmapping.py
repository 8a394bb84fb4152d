"""Frames of other domains, mapped into this process by number: for rings shared so, and for writing under a guest.

As a paravirtual domain 0 does by its page tables, the process tells the hypervisor what it maps, at which address
(update_va_mapping_otherdomain): while it does, the frame stays that domain's, is no page table of it if it is mapped
for writing, and its code runs as it is written. A process that dies gives all back.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from ring3.abi.xen import PAGE_SHIFT, UVMF_NONE
from ring3.abi.xen import __HYPERVISOR_update_va_mapping_otherdomain as UPDATE_VA_MAPPING_OTHERDOMAIN
from ring3.errors import ConnectionLostError
from ring3.libs.closeable import Closeable
from ring3.libs.connection import BytesLike, Connection
from ring3.libs.window import Window

_PAGE_PRESENT: Final = 1
_PAGE_RW: Final = 2


class ForeignMapping(Closeable):
    """Frames of a domain, next to each other in `view`, until close(). It may write at any time: copy, then check.

    Of a mapping for reading, `view` is read-only.
    """

    def __init__(self, conn: Connection, domid: int, mfns: Sequence[int], *, writable: bool = True) -> None:
        """Raises HypercallError: EBUSY for a frame that is not the domain's, or is a page table; EPERM, ESRCH."""
        self._conn = conn
        self._domid = domid
        self.mfns = list(mfns)
        self._window = Window(len(self.mfns))
        self._nr_held = 0
        try:
            for mfn in self.mfns:
                self._set(self._nr_held, mfn << PAGE_SHIFT | _PAGE_PRESENT | (_PAGE_RW if writable else 0))
                self._nr_held += 1
            self._window.show_all(conn.memfd, self.mfns, writable=writable)
        except BaseException:
            self._give_back()
            raise
        self.view = self._window.view if writable else self._window.view.toreadonly()

    def close(self) -> None:
        """Gives the frames back. Views that are still alive show zeros from now on."""
        if self._nr_held:
            with suppress(BufferError):
                self.view.release()
            self._give_back()

    def _give_back(self) -> None:
        self._window.clear()
        with suppress(ConnectionLostError):  # the hypervisor took them back then
            while self._nr_held:
                self._nr_held -= 1
                self._set(self._nr_held, 0)
        self._nr_held = 0
        self._window.close()

    def _set(self, page: int, entry: int) -> None:
        self._conn.hypercall(UPDATE_VA_MAPPING_OTHERDOMAIN, self._window.address(page), entry, UVMF_NONE, self._domid)


def write_foreign(conn: Connection, domid: int, mfn: int, data: BytesLike, offset: int = 0) -> None:
    """Writes into a frame of a domain that may be running. Raises HypercallError as ForeignMapping, ValueError."""
    with ForeignMapping(conn, domid, [mfn]) as mapping:
        raw = memoryview(data).cast("B")
        mapping.view[offset : offset + raw.nbytes] = raw

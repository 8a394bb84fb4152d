"""The pixels of a domain's framebuffer, which its front end shares by frame numbers (xen/include/public/io/fbif.h).

There are no grants: a front end says which frames it means, and may mean any. So each use asks the hypervisor whether
they are that domain's, before and after the copy: what another domain got meanwhile is not shown. The shared page is
mapped before it is first written to: it stays the domain's then, and is no page table.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from ring3.abi.domctl import XEN_DOMCTL_PFINFO_XTAB
from ring3.abi.fbif import MEMORY_BYTES_MAX, OUT_CONS_OFFSET, FramebufferPage, Geometry
from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE
from ring3.errors import GuestError, HypercallError
from ring3.libs import domctl
from ring3.libs.connection import Connection
from ring3.libs.foreignmapping import ForeignMapping
from ring3.libs.foreignmemory import ForeignMemory, runs

_PD_FRAMES = PAGE_SIZE // 8


class Framebuffer:
    """A framebuffer whose shared page is a frame of a domain."""

    def __init__(self, conn: Connection, domid: int, page_mfn: int) -> None:
        """Looks at it. Raises GuestError for one that cannot be."""
        self._conn = conn
        self._memory = ForeignMemory(conn.memfd, conn.nr_frames)
        self._domid = domid
        self._page_mfn = page_mfn
        self._shared: ForeignMapping | None = None
        page = self.page()
        if not 0 < page.mem_length <= MEMORY_BYTES_MAX:
            raise GuestError(domid, f"a framebuffer of {page.mem_length} bytes")
        self.nr_bytes = page.mem_length
        nr_frames = -(-page.mem_length // PAGE_SIZE)
        self._frames = array("Q", self._read(page.pd[: -(-nr_frames // _PD_FRAMES)]))[:nr_frames]
        self.geometry = page.geometry
        self.set_geometry(page.geometry)

    def page(self) -> FramebufferPage:
        """Returns what the shared page says. Raises GuestError if it is no page of the domain any more."""
        return FramebufferPage.parse(self.raw_page())

    def raw_page(self) -> bytes:
        """Returns a copy of the shared page. Raises GuestError."""
        return self._read([self._page_mfn])

    def set_out_cons(self, index: int) -> None:
        """Says how far the front end's events have been taken. Raises GuestError."""
        if self._shared is None:
            try:
                self._shared = ForeignMapping(self._conn, self._domid, [self._page_mfn])
            except HypercallError as error:
                raise GuestError(self._domid, f"the page of its framebuffer: {error}") from error
        self._shared.view[OUT_CONS_OFFSET : OUT_CONS_OFFSET + 4] = (index & 0xFFFFFFFF).to_bytes(4, "little")

    def close(self) -> None:
        """Lets go of the shared page."""
        if self._shared is not None:
            self._shared.close()
            self._shared = None

    def set_geometry(self, geometry: Geometry) -> None:
        """Takes another picture size. Raises GuestError if it does not fit the memory."""
        wrong = geometry.check(self.nr_bytes)
        if wrong is not None:
            raise GuestError(self._domid, f"its framebuffer has {wrong}")
        self.geometry = geometry

    def lines(self, first: int, nr_lines: int) -> bytes:
        """Returns lines of the picture, each `stride` bytes. Raises GuestError."""
        start = self.geometry.offset + first * self.geometry.stride
        end = start + nr_lines * self.geometry.stride
        frames = self._frames[start >> PAGE_SHIFT : -(-end // PAGE_SIZE)]
        inside = start & PAGE_SIZE - 1
        return self._read(frames)[inside : inside + end - start]

    def _read(self, mfns: Sequence[int]) -> bytes:
        self._check(mfns)
        parts = [self._memory.read(mfns[at], 0, length << PAGE_SHIFT) for at, length in runs(mfns)]
        self._check(mfns)
        return b"".join(parts)

    def _check(self, mfns: Sequence[int]) -> None:
        for mfn, kind in zip(mfns, domctl.getpageframeinfo3(self._conn, self._domid, mfns), strict=True):
            if kind == XEN_DOMCTL_PFINFO_XTAB or mfn >= self._memory.nr_frames:
                raise GuestError(self._domid, f"frame {mfn:#x} of its framebuffer is not its own")

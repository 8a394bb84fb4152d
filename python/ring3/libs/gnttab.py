"""Grants of other domains, mapped into this process for as long as it holds them, and copies between them.

A dom0 process has no page tables that the hypervisor knows: it maps a grant "for devices", gets the machine address,
and maps that frame of the machine's memfd. While it holds the grant, the hypervisor keeps the frame the granter's, and
the granter sees its grant in use. So this process's mapping must go first: `GrantMapping.close` puts zero pages in its
place, whoever still has a view of it, and then gives the grant back. A process that dies loses both, in this order.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar

from ring3.abi import grant_table as abi
from ring3.abi.xen import DOMID_SELF, PAGE_SHIFT
from ring3.abi.xen import __HYPERVISOR_grant_table_op as GRANT_TABLE_OP
from ring3.errors import ConnectionLostError, Error, GrantError
from ring3.libs.closeable import Closeable
from ring3.libs.connection import Connection
from ring3.libs.window import Window

_OPS_PER_CALL = 1 << 12
"""160 KiB of the largest operation."""

_Op = TypeVar("_Op", bound=ctypes.Structure)


class GrantMapping(Closeable):
    """Granted pages, one after the other in `view`, until close(). The granter may write at any time: copy, then check.

    Of a mapping for reading, `view` is read-only.
    """

    def __init__(self, grants: "Grants", domid: int, mapped: Sequence[tuple[int, int]], *, writable: bool) -> None:
        self._grants = grants
        self._handles = [(handle, address) for handle, address in mapped]
        self.domid = domid
        self.mfns = [address >> PAGE_SHIFT for _, address in mapped]
        self._window = Window(len(mapped))
        try:
            self._window.show_all(grants.conn.memfd, self.mfns, writable=writable)
        except BaseException:
            self._window.clear()
            self._window.close()
            raise
        self.view = self._window.view if writable else self._window.view.toreadonly()

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return not self._handles

    def close(self) -> None:
        """Gives the grants back. Views that are still alive show zeros from now on."""
        if not self._handles:
            return
        self._window.clear()
        handles, self._handles = self._handles, []
        with suppress(BufferError):
            self.view.release()
        self._window.close()
        with suppress(ConnectionLostError):  # the hypervisor took them back then
            self._grants.unmap(handles)


class CopySide(NamedTuple):
    """Where a copy starts or ends: a grant of a domain, or (domid DOMID_SELF) a frame of domain 0."""

    ref: int
    offset: int
    domid: int = DOMID_SELF

    @property
    def is_grant(self) -> bool:
        """Whether `ref` is a grant reference."""
        return self.domid != DOMID_SELF


class Grants:
    """The grants that one connection uses. Closing the connection gives all of them back."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn

    def map(self, domid: int, grefs: Sequence[int], *, writable: bool = True) -> GrantMapping:
        """Maps grants of a domain next to each other. Raises GrantError for the first that it refuses; none is kept."""
        if not grefs:
            raise ValueError("no grant to map")
        ops = self._map(domid, [(gref, writable) for gref in grefs])
        mapped = [(op.handle, op.dev_bus_addr) for op in ops if op.status == abi.GNTST_okay]
        refused = next((op for op in ops if op.status != abi.GNTST_okay), None)
        if refused is not None:
            self.unmap(mapped)
            raise GrantError(domid, refused.ref, refused.status)
        try:
            return GrantMapping(self, domid, mapped, writable=writable)
        except BaseException:
            self.unmap(mapped)
            raise

    def hold(self, domid: int, wanted: Sequence[tuple[int, bool]]) -> list[tuple[int, int] | None]:
        """Maps grants, each (gref, writable), without showing them: who maps the machine's memory sees them there.

        Returns (handle, machine address) for each, to be given back by unmap() once nobody uses the address any more;
        None for what is refused.
        """
        ops = self._map(domid, wanted)
        return [(op.handle, op.dev_bus_addr) if op.status == abi.GNTST_okay else None for op in ops]

    def _map(self, domid: int, wanted: Sequence[tuple[int, bool]]) -> list[abi.gnttab_map_grant_ref]:
        ops = [
            abi.gnttab_map_grant_ref(
                flags=abi.GNTMAP_device_map | (0 if writable else abi.GNTMAP_readonly), ref=gref, dom=domid
            )
            for gref, writable in wanted
        ]
        self._call(abi.GNTTABOP_map_grant_ref, ops)
        return ops

    def unmap(self, handles: Sequence[tuple[int, int]]) -> None:
        """Gives back mappings, by (handle, machine address)."""
        ops = [abi.gnttab_unmap_grant_ref(handle=handle, dev_bus_addr=address) for handle, address in handles]
        self._call(abi.GNTTABOP_unmap_grant_ref, ops)
        for op in ops:
            if op.status != abi.GNTST_okay:
                raise Error(f"grant mapping {op.handle:#x} cannot be given back: status {op.status}")

    def copy(self, copies: Sequence[tuple[CopySide, CopySide, int]]) -> list[int]:
        """Copies (source, target, bytes), each within one page; returns a GNTST_* for each."""
        ops = []
        for source, dest, nr_bytes in copies:
            flags = abi.GNTCOPY_source_gref if source.is_grant else 0
            flags |= abi.GNTCOPY_dest_gref if dest.is_grant else 0
            ops.append(
                abi.gnttab_copy(
                    source=abi.gnttab_copy_ptr(u=source.ref, domid=source.domid, offset=source.offset),
                    dest=abi.gnttab_copy_ptr(u=dest.ref, domid=dest.domid, offset=dest.offset),
                    len=nr_bytes,
                    flags=flags,
                )
            )
        self._call(abi.GNTTABOP_copy, ops)
        return [op.status for op in ops]

    def table_frames(self, domid: int, nr_frames: int) -> list[int]:
        """Returns the MFNs of a domain's grant table, which grows to as many if it is smaller."""
        with self.conn.arena() as arena:
            frames = arena.alloc(8 * nr_frames)
            op = abi.gnttab_setup_table(dom=domid, nr_frames=nr_frames, frame_list=frames.handle)
            self._call(abi.GNTTABOP_setup_table, [op])
            if op.status != abi.GNTST_okay:
                raise GrantError(domid, 0, op.status)
            return list(frames.view.cast("Q"))

    def _call(self, cmd: int, ops: Sequence[_Op]) -> None:
        """Makes calls for all operations; OUT fields come back in them."""
        for chunk in _chunks(ops):
            size = ctypes.sizeof(chunk[0])
            with self.conn.arena() as arena:
                slot = arena.put(b"".join(map(bytes, chunk)))
                self.conn.hypercall(GRANT_TABLE_OP, cmd, slot.handle, len(chunk), subop=cmd)
                results = slot.bytes()
            for index, op in enumerate(chunk):
                ctypes.memmove(ctypes.addressof(op), results[index * size : (index + 1) * size], size)


def _chunks(ops: Sequence[_Op]) -> Iterator[Sequence[_Op]]:
    for start in range(0, len(ops), _OPS_PER_CALL):
        yield ops[start : start + _OPS_PER_CALL]

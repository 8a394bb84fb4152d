"""GNTTABOP_copy in bulk: for back ends that move every byte by it.

An operation is packed once, as the hypervisor reads it. `ring3.libs.gnttab.Grants.copy` is the same for few copies.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from ring3.abi.grant_table import GNTCOPY_dest_gref, GNTCOPY_source_gref, GNTTABOP_copy
from ring3.abi.xen import DOMID_SELF
from ring3.abi.xen import __HYPERVISOR_grant_table_op as GRANT_TABLE_OP
from ring3.libs.connection import Connection

_COPY: Final = Struct("<QHH4xQHH4xHHh2x")
"""source (u, domid, offset), dest (the same), len, flags, status; 40 bytes. Source: struct gnttab_copy."""
_OPS_PER_CALL: Final = 4096
_STATUS: Final = 36 // 2
_STRIDE: Final = 40 // 2


def copy_op(
    ref: int, domid: int, offset: int, dest_ref: int, dest_domid: int, dest_offset: int, nr_bytes: int
) -> bytes:
    """Returns a packed copy. A side is a grant of a domain, or (DOMID_SELF) a frame of domain 0."""
    flags = GNTCOPY_source_gref if domid != DOMID_SELF else 0
    if dest_domid != DOMID_SELF:
        flags |= GNTCOPY_dest_gref
    return _COPY.pack(ref, domid, offset, dest_ref, dest_domid, dest_offset, nr_bytes, flags, 0)


def run_copies(conn: Connection, ops: list[bytes]) -> list[int] | None:
    """Makes the copies, in order. Returns None if all were made, else a GNTST_* for each."""
    statuses: list[int] = []
    is_failed = False
    for start in range(0, len(ops), _OPS_PER_CALL):
        chunk = ops[start : start + _OPS_PER_CALL]
        with conn.arena() as arena:
            slot = arena.put(b"".join(chunk))
            conn.hypercall(GRANT_TABLE_OP, GNTTABOP_copy, slot.handle, len(chunk), subop=GNTTABOP_copy)
            found = slot.view.cast("h")[_STATUS::_STRIDE].tolist()
        statuses += found
        is_failed = is_failed or any(found)
    return statuses if is_failed else None

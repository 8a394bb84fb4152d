"""Page-table operations on a domain from outside: mmu_update and mmuext_op with a foreign domid."""

from collections.abc import Sequence

from ring3.abi import xen
from ring3.libs.connection import Connection

_UPDATES_PER_CALL = 1 << 14


def mmu_update(conn: Connection, updates: Sequence[tuple[int, int]], *, domid: int = xen.DOMID_SELF) -> None:
    """Applies (ptr, val) pairs, the request type in the two low bits of ptr. Tables and frames are of `domid`.

    Raises HypercallError at the first that is refused; those before it stay applied.
    """
    # Bits 16-31: owner of the tables, plus one; bits 0-15: owner of the frames mapped. Source: xen.h, mmu_update.
    foreigndom = domid if domid == xen.DOMID_SELF else (domid + 1) << 16 | domid
    for start in range(0, len(updates), _UPDATES_PER_CALL):
        chunk = updates[start : start + _UPDATES_PER_CALL]
        with conn.arena() as arena:
            slot = arena.put(b"".join(bytes(xen.mmu_update(ptr, val)) for ptr, val in chunk))
            conn.hypercall(xen.__HYPERVISOR_mmu_update, slot.handle, len(chunk), 0, foreigndom)


def mmuext_op(conn: Connection, ops: Sequence[xen.mmuext_op], *, domid: int = xen.DOMID_SELF) -> None:
    """Applies a batch of operations on frames of `domid`. Raises HypercallError at the first that is refused."""
    with conn.arena() as arena:
        slot = arena.put(b"".join(bytes(op) for op in ops))
        conn.hypercall(xen.__HYPERVISOR_mmuext_op, slot.handle, len(ops), 0, domid, subop=ops[0].cmd if ops else None)


def pin_table(conn: Connection, domid: int, level: int, mfn: int) -> None:
    """Validates the table of a level (1 to 4) and all below it, and pins it."""
    if not 1 <= level <= 4:
        raise ValueError(f"there is no page table level {level}")
    mmuext_op(conn, [xen.mmuext_op(cmd=xen.MMUEXT_PIN_L1_TABLE + level - 1, arg1=mfn)], domid=domid)


def unpin_table(conn: Connection, domid: int, mfn: int) -> None:
    """Drops the pin of a table."""
    mmuext_op(conn, [xen.mmuext_op(cmd=xen.MMUEXT_UNPIN_TABLE, arg1=mfn)], domid=domid)

"""Giving and taking a domain's memory: the memory_op hypercall."""

from array import array
from collections.abc import Iterable

from ring3.abi.errno import ENOMEM
from ring3.abi.memory import (
    E820_ENTRY,
    E820_RAM,
    XENMEM_current_reservation,
    XENMEM_decrease_reservation,
    XENMEM_machphys_mapping,
    XENMEM_maximum_ram_page,
    XENMEM_maximum_reservation,
    XENMEM_populate_physmap,
    XENMEM_set_memory_map,
    xen_foreign_memory_map,
    xen_machphys_mapping,
    xen_memory_domain,
    xen_memory_map,
    xen_memory_reservation,
)
from ring3.abi.xen import __HYPERVISOR_memory_op as MEMORY_OP
from ring3.errors import HypercallError, NoMemory
from ring3.libs.connection import Connection

_EXTENTS_PER_CALL = 1 << 16
"""512 KiB of extents: half of the usual hypercall buffer."""


def populate_physmap(
    conn: Connection, domid: int, pfns: Iterable[int], *, nr_before: int = 0, nr_wanted: int | None = None
) -> "array[int]":
    """Gives a domain a frame for each PFN and returns the MFNs. Raises NoMemory; what was given so far stays.

    Who calls more than once says for NoMemory's message what was given before, and how much it is in all.
    """
    todo = array("Q", pfns)
    mfns = array("Q")
    nr_wanted = nr_before + len(todo) if nr_wanted is None else nr_wanted
    for start in range(0, len(todo), _EXTENTS_PER_CALL):
        chunk = todo[start : start + _EXTENTS_PER_CALL]
        try:
            done = _reservation(conn, XENMEM_populate_physmap, domid, chunk)
        except HypercallError as error:
            if error.errno != ENOMEM:
                raise
            done = 0
        mfns += chunk[:done]
        if done < len(chunk):
            nr_got = nr_before + len(mfns)
            raise NoMemory(domid, f"the machine has {nr_got} of the {nr_wanted} pages that domain {domid} wants")
    return mfns


def decrease_reservation(conn: Connection, domid: int, mfns: Iterable[int]) -> int:
    """Takes frames from a domain; returns how many. It stops at the first that is not the domain's or is in use."""
    todo = array("Q", mfns)
    total = 0
    for start in range(0, len(todo), _EXTENTS_PER_CALL):
        chunk = todo[start : start + _EXTENTS_PER_CALL]
        done = _reservation(conn, XENMEM_decrease_reservation, domid, chunk)
        total += done
        if done < len(chunk):
            break
    return total


def machphys_mapping(conn: Connection) -> xen_machphys_mapping:
    """Returns where a PV guest finds the M2P."""
    arg = xen_machphys_mapping()
    conn.call(MEMORY_OP, XENMEM_machphys_mapping, arg)
    return arg


def maximum_ram_page(conn: Connection) -> int:
    """Returns the highest MFN of the machine."""
    return conn.hypercall(MEMORY_OP, XENMEM_maximum_ram_page, 0, subop=XENMEM_maximum_ram_page)


def current_reservation(conn: Connection, domid: int) -> int:
    """Returns the pages that a domain has."""
    return conn.call(MEMORY_OP, XENMEM_current_reservation, xen_memory_domain(domid=domid))


def maximum_reservation(conn: Connection, domid: int) -> int:
    """Returns the pages that a domain may have."""
    return conn.call(MEMORY_OP, XENMEM_maximum_reservation, xen_memory_domain(domid=domid))


def set_memory_map(conn: Connection, domid: int, nr_bytes: int) -> None:
    """Tells a domain, by XENMEM_memory_map, that its RAM is one region from 0 on: xl's `memory` without slack."""
    with conn.arena() as arena:
        slot = arena.put(E820_ENTRY.pack(0, nr_bytes, E820_RAM))
        arg = xen_foreign_memory_map(domid=domid, map=xen_memory_map(nr_entries=1, buffer=slot.handle))
        conn.call(MEMORY_OP, XENMEM_set_memory_map, arg)


def _reservation(conn: Connection, cmd: int, domid: int, extents: "array[int]") -> int:
    """Makes one call of order-0 extents; what the hypervisor writes comes back in `extents`."""
    with conn.arena() as arena:
        slot = arena.put(extents)
        arg = xen_memory_reservation(extent_start=slot.handle, nr_extents=len(extents), domid=domid)
        done = conn.call(MEMORY_OP, cmd, arg)
        extents[:] = array("Q", slot.bytes())
    return min(done, len(extents))

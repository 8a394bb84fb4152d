"""The page of a ring that a domain has had since it was built: by the grant reserved for it, else by its frame.

Either way the frame stays the domain's while we hold it, whatever becomes of the domain. A domain that was built
without grants (by another toolstack) shares by frame number alone, as early Xen did.
"""

from __future__ import annotations

from typing import Protocol

from ring3.errors import GrantError, HypercallError
from ring3.libs.foreignmapping import ForeignMapping
from ring3.libs.gnttab import Grants


class Page(Protocol):
    """A mapped page."""

    @property
    def view(self) -> memoryview:
        """Its bytes."""
        ...

    def close(self) -> None:
        """Unmaps it."""


def map_ring(grants: Grants, domid: int, gref: int, mfn: int) -> Page:
    """Maps a ring. Raises HypercallError where the frame is not the domain's, or is a page table."""
    try:
        mapping = grants.map(domid, [gref])
    except (GrantError, HypercallError):
        return ForeignMapping(grants.conn, domid, [mfn])
    if mapping.mfns == [mfn]:
        return mapping
    mapping.close()
    return ForeignMapping(grants.conn, domid, [mfn])

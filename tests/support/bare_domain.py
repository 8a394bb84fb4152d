"""A domain that runs nothing, whose kernel's part the test plays: front ends made by hand."""

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ring3.abi import grant_table as abi
from ring3.libs import domctl, memory
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels
from ring3.libs.foreignmapping import ForeignMapping
from ring3.libs.gnttab import Grants
from ring3.libs.xenstore import XenstoreClient
from ring3.tools.devices import bus
from ring3.tools.services import Services
from support.command import Ring3
from support.waiting import wait_for

NR_PAGES = 40
GREF = 8
"""Page n is granted as GREF + n."""
_STORE = NR_PAGES - 1


@dataclass
class BareDomain:
    """Its memory, its grants and domain 0's ends of everything."""

    conn: Connection
    xenstore: XenstoreClient
    events: EventChannels
    services: Services
    domid: int
    pages: list[ForeignMapping]
    table: ForeignMapping
    run_dir: Path

    def grant(self, page: int, flags: int = abi.GTF_permit_access) -> None:
        """Grants a page to domain 0."""
        entry = abi.grant_entry_v1(flags=flags, domid=0, frame=self.pages[page].mfns[0])
        self.table.view[8 * (GREF + page) : 8 * (GREF + page) + 8] = bytes(entry)

    def flags(self, page: int) -> int:
        """Returns the flags of a page's grant: whether it is in use."""
        return int(struct.unpack_from("<H", self.table.view, 8 * (GREF + page))[0])

    def is_in_use(self, page: int) -> bool:
        """Returns whether domain 0 maps a page."""
        return bool(self.flags(page) & (abi.GTF_reading | abi.GTF_writing))

    def wait_for_state(self, node: str, *states: str) -> None:
        """Waits for a device's half to be in one of these states."""
        wait_for(
            lambda: self.xenstore.read_optional(f"{node}/state") in states,
            f"{node} is not in {states}, but {self.xenstore.read_optional(node + '/state')}",
        )


@contextmanager
def bare_domain(ring3: Ring3, before: Callable[[BareDomain], None] = lambda _domain: None) -> Iterator[BareDomain]:
    """Makes a domain in a machine that is up; its devices go with it, and nothing of it stays in use.

    `before` is called before xenstored is told of the domain.
    """
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    with (
        Connection.connect(run_dir / "control") as conn,
        XenstoreClient.connect(run_dir / "xenstore") as xenstore,
        EventChannels(conn) as events,
        Services(run_dir / "dom0") as services,
    ):
        domid = domctl.createdomain(conn, max_vcpus=1)
        domctl.max_vcpus(conn, domid, 1)
        domctl.max_mem(conn, domid, NR_PAGES * 4)
        mfns = memory.populate_physmap(conn, domid, range(NR_PAGES))
        [table] = Grants(conn).table_frames(domid, 1)
        pages = [ForeignMapping(conn, domid, [mfn]) for mfn in mfns]
        table_page = ForeignMapping(conn, domid, [table])
        made = BareDomain(conn, xenstore, events, services, domid, pages, table_page, run_dir)
        for page in range(NR_PAGES):
            made.grant(page)
        xenstore.mkdir(f"/local/domain/{domid}")
        before(made)
        xenstore.introduce(domid, mfns[_STORE], events.alloc_unbound(0, domid=domid))
        yield made
        xenstore.release(domid)
        bus.end_all(xenstore, services, domid)
        assert not any(made.is_in_use(page) for page in range(NR_PAGES))

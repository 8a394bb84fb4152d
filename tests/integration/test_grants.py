"""Grants as a back end uses them: mapped while held, given back by close and by death, safe from a domain's end."""

import contextlib
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ring3.abi import grant_table as abi
from ring3.errors import GrantError
from ring3.libs import domctl, memory, sysctl
from ring3.libs.connection import Connection
from ring3.libs.foreignmemory import ForeignMemory
from ring3.libs.gnttab import CopySide, GrantMapping, Grants
from support import guests
from support.command import Ring3, dom0_process
from support.waiting import wait_for

pytestmark = pytest.mark.guest

NR_PAGES = 16
GREF = 8


@dataclass
class Granter:
    """A domain that runs nothing; the test writes its grant table as its kernel would."""

    conn: Connection
    domid: int
    mfns: list[int]
    table_mfn: int

    def memory(self) -> ForeignMemory:
        return ForeignMemory(self.conn.memfd, self.conn.nr_frames)

    def grant(self, gref: int, page: int, *, flags: int = abi.GTF_permit_access, grantee: int = 0) -> None:
        entry = abi.grant_entry_v1(flags=flags, domid=grantee, frame=self.mfns[page])
        self.memory().write(self.table_mfn, bytes(entry), 8 * gref)

    def flags(self, gref: int) -> int:
        return int(struct.unpack("<H", self.memory().read(self.table_mfn, 8 * gref, 2))[0])


@pytest.fixture
def granter(conn: Connection) -> Granter:
    """A domain with pages 0 to 15, of which grants 8 to 23 are for domain 0."""
    domid = domctl.createdomain(conn, max_vcpus=1)
    domctl.max_vcpus(conn, domid, 1)
    domctl.max_mem(conn, domid, NR_PAGES * 4)
    mfns = list(memory.populate_physmap(conn, domid, range(NR_PAGES)))
    [table_mfn] = Grants(conn).table_frames(domid, 1)
    made = Granter(conn, domid, mfns, table_mfn)
    for page in range(NR_PAGES):
        made.grant(GREF + page, page)
    return made


@pytest.fixture
def backend(ring3: Ring3, granter: Granter) -> Iterator[Grants]:
    """A back end's connection, while the granter is there."""
    assert granter.mfns
    with Connection.connect(Path(ring3.environment["RING3_RUN_DIR"]) / "control") as connection:
        yield Grants(connection)


def test_mapped_pages_are_shared_and_lie_side_by_side(granter: Granter, backend: Grants) -> None:
    granter.memory().write(granter.mfns[3], b"from the guest")
    with backend.map(granter.domid, [GREF + 3, GREF, GREF + 7]) as mapping:
        assert bytes(mapping.view[:14]) == b"from the guest"
        mapping.view[2 * 4096 : 2 * 4096 + 4] = b"back"
        assert granter.memory().read(granter.mfns[7], 0, 4) == b"back"
        assert granter.flags(GREF + 3) == abi.GTF_permit_access | abi.GTF_reading | abi.GTF_writing
        assert mapping.mfns == [granter.mfns[page] for page in (3, 0, 7)]
    assert granter.flags(GREF + 3) == abi.GTF_permit_access
    with backend.map(granter.domid, [GREF], writable=False) as mapping:
        assert granter.flags(GREF) == abi.GTF_permit_access | abi.GTF_reading
        with pytest.raises(TypeError):
            mapping.view[0] = 1


def test_a_view_that_outlives_its_mapping_shows_zeros(granter: Granter, backend: Grants) -> None:
    mapping = backend.map(granter.domid, [GREF])
    mapping.view[:4] = b"data"
    kept = mapping.view[:4]
    mapping.close()
    mapping.close()
    assert mapping.is_closed
    assert bytes(kept) == bytes(4)
    kept[:] = b"lost"
    assert granter.memory().read(granter.mfns[0], 0, 4) == b"data"
    assert granter.flags(GREF) == abi.GTF_permit_access


def test_a_refused_grant_leaves_none_mapped(granter: Granter, backend: Grants) -> None:
    granter.grant(GREF + 1, 1, flags=abi.GTF_invalid)
    granter.grant(GREF + 2, 2, flags=abi.GTF_permit_access | abi.GTF_readonly)
    granter.grant(GREF + 3, 3, grantee=77)
    for gref in (GREF + 1, GREF + 2, GREF + 3):
        with pytest.raises(GrantError) as caught:
            backend.map(granter.domid, [GREF, gref])
        assert (caught.value.domid, caught.value.gref) == (granter.domid, gref)
        assert caught.value.status == abi.GNTST_general_error
        assert granter.flags(GREF) == abi.GTF_permit_access
    with pytest.raises(GrantError):
        backend.map(granter.domid, [100_000])
    with pytest.raises(GrantError):
        backend.map(granter.domid + 1, [GREF])
    backend.map(granter.domid, [GREF + 2], writable=False).close()


def test_copies_between_grants_need_no_mapping(granter: Granter, backend: Grants) -> None:
    granter.memory().write(granter.mfns[0], b"0123456789", 100)
    source, dest = CopySide(GREF, 100, granter.domid), CopySide(GREF + 1, 4090, granter.domid)
    statuses = backend.copy([(source, dest, 6), (source, dest, 7), (CopySide(5, 0), dest, 1)])
    assert statuses == [abi.GNTST_okay, abi.GNTST_bad_copy_arg, abi.GNTST_bad_page]
    assert granter.memory().read(granter.mfns[1], 4090, 6) == b"012345"
    assert granter.flags(GREF) == abi.GTF_permit_access


def test_a_domain_that_dies_leaves_its_frame_to_the_back_end(granter: Granter, backend: Grants) -> None:
    mapping = backend.map(granter.domid, [GREF])
    mapping.view[:6] = b"mapped"
    domctl.destroydomain(granter.conn, granter.domid)
    before = sysctl.physinfo(granter.conn).free_pages
    assert bytes(mapping.view[:6]) == b"mapped"
    mapping.close()
    assert sysctl.physinfo(granter.conn).free_pages == before + 1


def test_a_back_end_that_dies_leaves_no_mapping(ring3: Ring3, granter: Granter) -> None:
    program = (
        "from ring3.libs.gnttab import Grants",
        "grants = Grants(conn)",
        f"mapping = grants.map({granter.domid}, range({GREF}, {GREF + 16}))",
    )
    with dom0_process(ring3, *program) as process:
        assert all(granter.flags(GREF + page) & abi.GTF_writing for page in range(NR_PAGES))
        process.send_signal(signal.SIGKILL)
    idle = abi.GTF_permit_access
    wait_for(lambda: all(granter.flags(GREF + page) == idle for page in range(NR_PAGES)), "grants are still in use", 10)


def test_many_mappings_at_once(granter: Granter, backend: Grants) -> None:
    mappings = [backend.map(granter.domid, range(GREF, GREF + NR_PAGES)) for _ in range(100)]
    mappings[0].view[5 * 4096] = 9
    assert {mapping.view[5 * 4096] for mapping in mappings} == {9}
    for mapping in mappings:
        mapping.close()
    assert granter.flags(GREF) == abi.GTF_permit_access


def test_code_written_through_a_grant_runs_as_written(ring3: Ring3, tmp_path: Path) -> None:
    """The guest calls a function until it sees what the back end put there, again and again, in one mapping."""
    image = guests.build("written_outside", tmp_path)
    assert ring3("up", "--memory", "64").exit_code == 0
    assert ring3("create", "--kernel", str(image), "--memory", "16", "--name", "written").exit_code == 0
    with Connection.connect(Path(ring3.environment["RING3_RUN_DIR"]) / "control") as conn:
        domid = next(domain.domid for domain in sysctl.getdomaininfolist(conn) if domain.domid != 0)
        backend = Grants(conn)

        def mapped() -> GrantMapping | None:
            with contextlib.suppress(GrantError):
                return backend.map(domid, [GREF])
            return None

        end = time.monotonic() + 10
        while (mapping := mapped()) is None:
            assert time.monotonic() < end, "the guest grants nothing"
            time.sleep(0.01)
        with mapping:
            for number in range(2, 51):
                mapping.view[1] = number
                wait_for(lambda n=number: mapping.view[4092] == n, f"{number} does not run", 10)

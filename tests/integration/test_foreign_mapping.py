"""Frames of a running domain, mapped by number: they stay what they are meanwhile, and code in them runs as written."""

import struct
from pathlib import Path

import pytest

from ring3.abi import errno
from ring3.errors import HypercallError
from ring3.libs import domctl, memory, mmu, sysctl
from ring3.libs.connection import Connection
from ring3.libs.foreignmapping import ForeignMapping, write_foreign
from ring3.libs.foreignmemory import ForeignMemory
from ring3.libs.gnttab import Grants
from support import guests
from support.command import Ring3, dom0_process
from support.waiting import wait_for

pytestmark = pytest.mark.guest

GREF = 8
"""The guest `written_outside` names the frame of its code there."""


@pytest.fixture
def code(ring3: Ring3, conn: Connection, tmp_path: Path) -> tuple[int, int]:
    """Domain and frame of a guest that calls a function until it answers one more than it did, again and again."""
    image = guests.build("written_outside", tmp_path)
    assert ring3("create", "--kernel", str(image), "--memory", "16", "--name", "written").exit_code == 0
    domid = next(domain.domid for domain in sysctl.getdomaininfolist(conn) if domain.domid != 0)
    [table] = Grants(conn).table_frames(domid, 1)
    frames = ForeignMemory(conn.memfd, conn.nr_frames)

    def entry() -> tuple[int, int, int]:
        return struct.unpack("<HHI", frames.read(table, 8 * GREF, 8))

    wait_for(lambda: entry()[0] != 0, "the guest names no frame")
    return domid, entry()[2]


def test_code_written_through_a_mapping_runs_as_written(conn: Connection, code: tuple[int, int]) -> None:
    domid, mfn = code
    with ForeignMapping(conn, domid, [mfn]) as mapping:
        for number in range(2, 51):
            mapping.view[1] = number
            wait_for(lambda n=number: mapping.view[4092] == n, f"{number} does not run")


def test_code_written_once_in_a_while_runs_as_written(conn: Connection, code: tuple[int, int]) -> None:
    """Between two writes the guest has the time to have its code translated."""
    domid, mfn = code
    frames = ForeignMemory(conn.memfd, conn.nr_frames)
    for number in range(2, 51):
        write_foreign(conn, domid, mfn, bytes([number]), 1)
        wait_for(lambda n=number: frames.read(mfn, 4092, 1)[0] == n, f"{number} does not run")


@pytest.fixture
def domain(conn: Connection) -> tuple[int, list[int]]:
    """A domain that runs nothing, and its frames."""
    domid = domctl.createdomain(conn, max_vcpus=1)
    domctl.max_vcpus(conn, domid, 1)
    domctl.max_mem(conn, domid, 64)
    return domid, list(memory.populate_physmap(conn, domid, range(8)))


def refused(conn: Connection, domid: int, mfn: int, *, writable: bool = True) -> int:
    with pytest.raises(HypercallError) as raised:
        ForeignMapping(conn, domid, [mfn], writable=writable)
    return raised.value.errno


def test_a_table_is_mapped_for_reading_alone(conn: Connection, domain: tuple[int, list[int]]) -> None:
    domid, mfns = domain
    mmu.pin_table(conn, domid, 1, mfns[0])
    assert refused(conn, domid, mfns[0]) == errno.EBUSY
    with ForeignMapping(conn, domid, [mfns[0]], writable=False) as mapping, pytest.raises(TypeError):
        mapping.view[0] = 1
    mmu.unpin_table(conn, domid, mfns[0])
    with ForeignMapping(conn, domid, [mfns[0], mfns[1]]) as mapping:
        mapping.view[4096] = 1
        sysctl.debug_keys(conn, "k")
        assert "audit: all references" in sysctl.readconsole(conn)
        with pytest.raises(HypercallError):
            mmu.pin_table(conn, domid, 1, mfns[0])
    mmu.pin_table(conn, domid, 1, mfns[0])


def test_frames_of_others_are_refused(conn: Connection, domain: tuple[int, list[int]]) -> None:
    domid, mfns = domain
    other = domctl.createdomain(conn, max_vcpus=1)
    assert refused(conn, other, mfns[0]) == errno.EBUSY
    assert refused(conn, other, mfns[0], writable=False) == errno.EBUSY
    assert refused(conn, domid, 0) == errno.EBUSY
    assert refused(conn, domid, conn.nr_frames) == errno.EPERM
    assert refused(conn, 99, mfns[0]) == errno.ESRCH
    with pytest.raises(HypercallError):
        ForeignMapping(conn, domid, [*mfns, 0])
    # Those before the one that is refused were given back.
    mmu.pin_table(conn, domid, 1, mfns[0])


def test_a_frame_stays_the_domains_as_long_as_a_process_maps_it(
    ring3: Ring3, conn: Connection, domain: tuple[int, list[int]]
) -> None:
    domid, mfns = domain
    program = (
        "from ring3.libs.foreignmapping import ForeignMapping",
        f"mapping = ForeignMapping(conn, {domid}, [{mfns[3]}])",
    )
    with dom0_process(ring3, *program) as process:
        with pytest.raises(HypercallError):
            mmu.pin_table(conn, domid, 1, mfns[3])
        process.kill()

    def is_given_back() -> bool:
        try:
            mmu.pin_table(conn, domid, 1, mfns[3])
        except HypercallError:
            return False
        return True

    wait_for(is_given_back, "the dead process holds the frame")

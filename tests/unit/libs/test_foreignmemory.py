"""Foreign memory: mapping, copying, and runs of frames."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.errors import HypercallError
from ring3.libs import domctl, memory
from ring3.libs.connection import Connection
from ring3.libs.foreignmapping import ForeignMapping, write_foreign
from ring3.libs.foreignmemory import ForeignMemory, runs
from unit.libs.fake_hypervisor import FakeHypervisor


@given(st.lists(st.integers(0, 40), max_size=60))
def test_runs_cover_the_list_and_cannot_be_joined(mfns: list[int]) -> None:
    found = list(runs(mfns))
    rebuilt = [mfns[index] + step for index, length in found for step in range(length)]
    assert rebuilt == mfns
    for (index, length), (following, _) in itertools.pairwise(found):
        assert following == index + length
        assert mfns[following] != mfns[following - 1] + 1


def test_a_long_run_is_one() -> None:
    assert list(runs(range(7, 100_007))) == [(0, 100_000)]


def test_what_is_written_can_be_read(conn: Connection) -> None:
    frames = ForeignMemory(conn.memfd, conn.nr_frames)
    frames.write_frames([20, 21, 30], b"a" * 4096 + b"b" * 4096 + b"c" * 10)
    assert frames.read(30, 0, 11) == b"c" * 10 + b"\0"
    assert frames.read(20, 4090, 10) == b"a" * 6 + b"b" * 4


def test_frames_are_mapped_and_given_back(conn: Connection, hypervisor: FakeHypervisor) -> None:
    domid = domctl.createdomain(conn, max_vcpus=1)
    domctl.max_mem(conn, domid, 64)
    mfns = list(memory.populate_physmap(conn, domid, range(3)))
    frames = ForeignMemory(conn.memfd, conn.nr_frames)
    frames.write(mfns[0], b"a")
    with ForeignMapping(conn, domid, [mfns[1], mfns[0]]) as mapping:
        assert sorted(hypervisor.foreign_entries.values()) == sorted((mfn << 12 | 3, domid) for mfn in mfns[:2])
        assert mapping.view[4096] == ord("a")
        mapping.view[0] = 0x7A
        view = mapping.view[:1]
    assert hypervisor.foreign_entries == {}
    assert frames.read(mfns[1], 0, 1) == b"z"
    assert view[0] == 0, "who has a view still does not see the domain's memory any more"
    with ForeignMapping(conn, domid, mfns[:1], writable=False) as mapping, pytest.raises(TypeError):
        mapping.view[0] = 0
    with pytest.raises(HypercallError):
        ForeignMapping(conn, domid, [*mfns, 99])
    assert hypervisor.foreign_entries == {}
    write_foreign(conn, domid, mfns[2], b"bc", 5)
    assert frames.read(mfns[2], 4, 3) == b"\0bc"
    with pytest.raises(ValueError, match="different"):
        write_foreign(conn, domid, mfns[2], b"bc", 4095)
    assert hypervisor.foreign_entries == {}


@pytest.mark.parametrize(("mfn", "count"), [(-1, 1), (1 << 16, 1), ((1 << 16) - 1, 2)])
def test_frames_outside_the_machine(conn: Connection, mfn: int, count: int) -> None:
    frames = ForeignMemory(conn.memfd, conn.nr_frames)
    with pytest.raises(ValueError, match="outside the machine"):
        frames.read(mfn, 0, count << 12)


def test_more_data_than_frames(conn: Connection) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        ForeignMemory(conn.memfd, conn.nr_frames).write_frames([5], bytes(4097))

"""Foreign memory: mapping, copying, and runs of frames."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.libs.connection import Connection
from ring3.libs.foreignmemory import ForeignMemory, runs


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


def test_what_is_written_can_be_mapped_and_read(conn: Connection) -> None:
    frames = ForeignMemory(conn.memfd, conn.nr_frames)
    frames.write_frames([20, 21, 30], b"a" * 4096 + b"b" * 4096 + b"c" * 10)
    assert frames.read(30, 0, 11) == b"c" * 10 + b"\0"
    with frames.map(20, 2) as mapping:
        assert bytes(mapping.view[4090:4100]) == b"a" * 6 + b"b" * 4
        mapping.view[0] = 0x7A
    assert frames.read(20, 0, 2) == b"za"
    with frames.map(20, writable=False) as mapping, pytest.raises(TypeError):
        mapping.view[0] = 0


@pytest.mark.parametrize(("mfn", "count"), [(-1, 1), (1 << 16, 1), ((1 << 16) - 1, 2), (5, 0)])
def test_frames_outside_the_machine(conn: Connection, mfn: int, count: int) -> None:
    frames = ForeignMemory(conn.memfd, conn.nr_frames)
    with pytest.raises(ValueError, match="outside the machine"):
        frames.map(mfn, count)


def test_more_data_than_frames(conn: Connection) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        ForeignMemory(conn.memfd, conn.nr_frames).write_frames([5], bytes(4097))

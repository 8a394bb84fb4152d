"""A disk on plain memory, with an image of the test: errors of the host, order of barriers, grants that are shared."""

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from ring3.abi.blkif import PROTOCOLS, SEGMENT
from ring3.dom0.block.grants import GrantPool
from ring3.dom0.block.image import RawImage
from ring3.dom0.block.journal import Journal
from ring3.dom0.block.pool import Pool
from ring3.dom0.block.quick import QuickPath
from ring3.dom0.block.ring import BackRing
from ring3.dom0.block.vbd import Queue, Vbd

P64 = PROTOCOLS["x86_64-abi"]
READ, WRITE, BARRIER, FLUSH, DISCARD = 0, 1, 2, 3, 5


class FakeGrants:
    """Grant n is the page n of the memory."""

    def __init__(self) -> None:
        self.held: list[int] = []

    def hold(self, _domid: int, wanted: Sequence[tuple[int, bool]]) -> list[tuple[int, int] | None]:
        self.held += [gref for gref, _writable in wanted]
        return [(gref, gref << 12) for gref, _writable in wanted]

    def unmap(self, handles: Sequence[tuple[int, int]]) -> None:
        for handle, _address in handles:
            self.held.remove(handle)


class FakeImage:
    """Writes down what it is asked, and fails or waits as it is told."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.errors: dict[str, int] = {}
        self.gate = threading.Event()
        self.gate.set()

    def _do(self, what: str, offset: int = 0) -> None:
        self.gate.wait(10)
        self.log.append(f"{what} {offset >> 9}")
        if what in self.errors:
            raise OSError(self.errors[what], "told so")

    def read_cached(self, _buffers: Sequence[memoryview], _offset: int, _nr_bytes: int) -> bool:
        return False

    write_quickly = read_cached

    def read(self, buffers: Sequence[memoryview], offset: int, _nr_bytes: int) -> None:
        self._do("read", offset)
        for buffer in buffers:
            buffer[:] = b"\x77" * len(buffer)

    def write(self, _buffers: Sequence[memoryview], offset: int, _nr_bytes: int) -> None:
        self._do("write", offset)

    def flush(self) -> None:
        self._do("flush")

    def discard(self, offset: int, _nr_bytes: int) -> None:
        self._do("discard", offset)


class Bench:
    """A disk of 1000 sectors, and its front end."""

    def __init__(self, path: Path, *, is_persistent: bool = False) -> None:
        self.image, self.grants, self.pool = FakeImage(), FakeGrants(), Pool()
        self.memory = memoryview(bytearray(64 << 12))
        self.page = memoryview(bytearray(4096))
        self.words = self.page[:64].cast("I")
        journal = Journal(path, "bench", 32, P64.slot_bytes)
        ring = BackRing(1, memoryview(self.page), P64, journal)
        grants = GrantPool(cast(Any, self.grants), 1, self.memory, is_persistent=is_persistent)
        self.vbd = Vbd(
            *("disk", cast(Any, self.image), 1000, P64, grants, self.memory, self.pool),
            came_back=lambda _queue: None,
            is_read_only=False,
            has_discard=True,
        )
        self.queue = Queue(ring, cast(Any, None), journal, 1)
        self.vbd.queues.append(self.queue)

    def ask(self, operation: int, sector: int, *grefs: int) -> None:
        raw = P64.request.pack(operation, len(grefs), 0, sector, sector)
        raw += b"".join(SEGMENT.pack(gref, 0, 7) for gref in grefs)
        start = 64 + (self.words[0] & 31) * P64.slot_bytes
        self.page[start : start + len(raw)] = raw
        self.words[0] += 1

    def run(self, nr_answers: int) -> list[int]:
        """Serves until there are so many answers; returns their statuses."""
        while self.words[2] < nr_answers:
            self.vbd.serve(self.queue)
            if self.words[2] < nr_answers:
                assert select.select([self.pool.fileno()], [], [], 10)[0]
                self.pool.finish()
        slots = range(min(nr_answers, 32))
        return [P64.response.unpack_from(self.page, 64 + slot * P64.slot_bytes)[2] for slot in slots]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "journal")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_errors_of_the_host_are_errors_of_the_disk(bench: Bench, number: int) -> None:
    bench.image.errors = {"write": number, "flush": number}
    for operation, grefs in ((WRITE, [1]), (READ, [2]), (FLUSH, []), (BARRIER, [3])):
        bench.ask(operation, 8, *grefs)
    assert bench.run(4) == [-1, 0, -1, -1]
    assert bytes(bench.memory[2 << 12 : 3 << 12]) == b"\x77" * 4096
    assert bench.grants.held == [], "grants go back, whatever became of the request"


def test_what_the_host_cannot_do_is_not_supported(bench: Bench) -> None:
    bench.image.errors = {"discard": errno.EOPNOTSUPP}
    raw = P64.discard.pack(DISCARD, 0, 0, 7, 8, 16)
    bench.page[64 : 64 + len(raw)] = raw
    bench.words[0] += 1
    assert bench.run(1) == [-2]


def test_barrier_comes_after_all_before_it_and_before_all_after_it(bench: Bench) -> None:
    bench.image.gate.clear()
    for sector in (8, 16, 24):
        bench.ask(WRITE, sector, 1)
    bench.ask(BARRIER, 100, 2)
    for sector in (32, 40):
        bench.ask(WRITE, sector, 3)
    bench.ask(BARRIER, 200, 2)
    bench.ask(FLUSH, 0)
    bench.vbd.serve(bench.queue)
    bench.image.gate.set()
    assert bench.run(8) == [0] * 8
    log = bench.image.log
    assert sorted(log[:3]) == ["write 16", "write 24", "write 8"]
    assert log[3:5] == ["write 100", "flush 0"]
    assert sorted(log[5:7]) == ["write 32", "write 40"]
    assert log[7:] == ["write 200", "flush 0", "flush 0"]


def test_grant_that_several_requests_use_is_held_once(bench: Bench) -> None:
    bench.image.gate.clear()
    for sector in (8, 16, 24):
        bench.ask(READ, sector, 5, 5)
    bench.vbd.serve(bench.queue)
    assert bench.grants.held == [5]
    bench.image.gate.set()
    assert bench.run(3) == [0] * 3
    assert bench.grants.held == []


def test_persistent_grants_stay_until_the_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "journal", is_persistent=True)
    for _again in range(2):
        bench.ask(READ, 8, 5, 6)
    assert bench.run(2) == [0, 0]
    assert bench.grants.held == [5, 6]
    bench.vbd._grants.close()
    assert bench.grants.held == []


def test_quick_path_and_the_other_take_turns(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "journal", is_persistent=True)
    path = tmp_path / "image"
    path.write_bytes(b"".join(bytes([sector & 0xFF]) * 512 for sector in range(1000)))
    image = RawImage(os.open(path, os.O_RDWR))
    bench.vbd.image = image
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    notice = here.fileno(), b"event", b"lazy event"
    quick = QuickPath(bench.memory, bench.page, bench.queue.journal, P64, image, notice)
    bench.queue.quick = quick
    bench.vbd._grants.listeners.append(quick.hold)
    bench.words[3] = 1 << 20  # rsp_event
    for round_nr in range(40):  # more than the ring has slots
        bench.ask(READ, 8, 5)
        if round_nr % 3 == 1:
            bench.ask(FLUSH, 0)
        bench.ask(WRITE, 16, 5, 6 + round_nr % 2)
        bench.run(bench.words[0])
        assert bench.words[2] == bench.words[0] == bench.queue.ring.index
        assert bench.queue.journal.req_cons == bench.words[0]
    data = path.read_bytes()
    assert data[16 * 512 : 24 * 512] == data[8 * 512 : 16 * 512], "what was read is what was written"
    assert sorted(bench.grants.held) == [5, 6, 7]
    there.setblocking(False)
    bench.words[3] = bench.words[0] + 1  # rsp_event
    bench.ask(READ, 8, 5)
    bench.run(bench.words[0])
    assert (there.recv(64), bench.queue.has_news) == (b"event", False)
    bench.ask(READ, 999, 5)  # beyond the end
    index = bench.words[0]
    bench.run(index)
    status = P64.response.unpack_from(bench.page, 64 + ((index - 1) & 31) * P64.slot_bytes)[2]
    assert status == -1
    quick.close()
    bench.page.release()
    here.close()
    there.close()


def test_our_own_bug_is_an_error_and_no_hang(bench: Bench) -> None:
    def broken(*_arguments: object) -> None:
        raise KeyError("bug")

    bench.image.read = cast(Callable[..., None], broken)  # type: ignore[method-assign]
    bench.ask(READ, 8, 5)
    assert bench.run(1) == [-1]

"""The back end's side of a block ring, on plain memory: order, wild indices, and what a successor finds."""

from pathlib import Path

import pytest

from ring3.abi.blkif import PROTOCOLS, XEN_IO_PROTO_ABI_X86_32, XEN_IO_PROTO_ABI_X86_64, Protocol
from ring3.dom0.block.journal import Journal
from ring3.dom0.block.requests import parse
from ring3.dom0.block.ring import BackRing, nr_slots
from ring3.errors import RingError

P64, P32 = PROTOCOLS[XEN_IO_PROTO_ABI_X86_64], PROTOCOLS[XEN_IO_PROTO_ABI_X86_32]


class Front:
    """A front end, and back ends for it."""

    def __init__(self, path: Path, nr_pages: int = 1, protocol: Protocol = P64) -> None:
        self.memory = bytearray(4096 * nr_pages)
        self.words = memoryview(self.memory)[:64].cast("I")
        self.words[1] = self.words[3] = 1
        self.protocol = protocol
        self.nr_slots = nr_slots(len(self.memory), protocol)
        self.path = path

    def back(self, identity: str = "ring") -> BackRing:
        journal = Journal(self.path, identity, self.nr_slots, self.protocol.slot_bytes)
        ring = BackRing(1, memoryview(self.memory), self.protocol, journal)
        journal.begin()
        return ring

    def ask(self, number: int) -> None:
        start = 64 + (self.words[0] & self.nr_slots - 1) * self.protocol.slot_bytes
        raw = self.protocol.request.pack(0, 1, 0, number, 8)
        self.memory[start : start + len(raw)] = raw
        self.words[0] = self.words[0] + 1 & 0xFFFFFFFF

    def answers(self, first: int) -> list[int]:
        found = []
        for index in range(first, self.words[2]):
            start = 64 + (index & self.nr_slots - 1) * self.protocol.slot_bytes
            found.append(self.protocol.response.unpack_from(self.memory, start)[0])
        return found


def numbers(taken: list[tuple[int, bytes]]) -> list[int]:
    return [parse(raw, P64)[0].id for _index, raw in taken]


def answer(ring: BackRing, taken: list[tuple[int, bytes]]) -> None:
    for index, raw in taken:
        ring.answer(index, P64.response.pack(parse(raw, P64)[0].id, 0, 0))


@pytest.mark.parametrize(("pages", "slots"), [(1, 32), (2, 64), (4, 128), (16, 512)])
def test_rings_are_as_large_as_linux_makes_them(pages: int, slots: int) -> None:
    assert nr_slots(pages * 4096, P64) == slots
    assert nr_slots(pages * 4096, P32) == slots


def test_answers_come_in_the_order_of_requests(tmp_path: Path) -> None:
    front = Front(tmp_path / "journal")
    ring = front.back()
    for number in range(5):
        front.ask(100 + number)
    taken = ring.take(64)
    assert numbers(taken) == [100, 101, 102, 103, 104]
    answer(ring, taken[1:])
    assert not ring.publish()
    assert front.words[2] == 0
    answer(ring, taken[:1])
    assert ring.publish(), "the front end wants an event at the first"
    assert front.answers(0) == [100, 101, 102, 103, 104]
    assert not ring.has_more()
    assert front.words[1] == 6, "the next request raises an event"


@pytest.mark.parametrize("wild", [33, 1 << 31, 0xFFFFFFFF])
def test_index_that_is_too_far_is_an_error(tmp_path: Path, wild: int) -> None:
    front = Front(tmp_path / "journal")
    ring = front.back()
    front.words[0] = wild
    with pytest.raises(RingError):
        ring.take(64)


def test_indices_wrap(tmp_path: Path) -> None:
    front = Front(tmp_path / "journal")
    for word in (0, 2):
        front.words[word] = 0xFFFFFFFE
    front.words[3] = 0xFFFFFFFF
    ring = front.back()
    for number in range(4):
        front.ask(number)
    taken = ring.take(64)
    answer(ring, taken)
    assert ring.publish()
    assert (front.words[2], numbers(taken)) == (2, [0, 1, 2, 3])


def test_successor_gets_what_was_not_answered_even_if_the_slots_have_changed(tmp_path: Path) -> None:
    front = Front(tmp_path / "journal")
    ring = front.back()
    for number in range(6):
        front.ask(number)
    taken = ring.take(4)
    answer(ring, taken[:1])
    ring.publish()
    # Killed while it wrote responses, or the guest plays tricks: either way the copies count.
    front.memory[64 + 112 : 64 + 3 * 112] = b"\xff" * 224
    successor = front.back()
    assert successor.nr_taken_over == 3
    assert numbers(successor.take(2)) == [1, 2]
    assert numbers(successor.take(64)) == [3, 4, 5]


def test_journal_of_another_ring_is_none(tmp_path: Path) -> None:
    front = Front(tmp_path / "journal")
    front.ask(1)
    front.back().take(64)
    assert front.back("another").nr_taken_over == 0


def test_successor_refuses_a_ring_whose_index_was_changed(tmp_path: Path) -> None:
    front = Front(tmp_path / "journal")
    front.ask(1)
    front.back().take(64)
    front.words[2] = 5000
    with pytest.raises(RingError):
        front.back()


@pytest.mark.parametrize("protocol", [P64, P32])
def test_requests_that_break_rules(protocol: Protocol) -> None:
    def verdict(operation: int, nr_segments: int, segments: bytes = b"") -> str | None:
        raw = protocol.request.pack(operation, nr_segments, 0, 7, 1) + segments
        request, fault = parse(raw.ljust(protocol.slot_bytes, b"\0"), protocol)
        assert request.id == 7
        return fault

    good = b"\x05\0\0\0\x00\x07\0\0"
    assert verdict(0, 1, good) is None
    assert verdict(0, 0) == "no segments"
    assert verdict(1, 12, 12 * good) == "12 segments"
    assert verdict(1, 1, b"\x05\0\0\0\x03\x02\0\0") == "sectors 3 to 2 of a page"
    assert verdict(0, 1, b"\x05\0\0\0\x00\x08\0\0") == "sectors 0 to 8 of a page"
    assert verdict(3, 0) is None
    assert verdict(4, 0) == "operation 4"
    raw = protocol.indirect.pack(6, 1, 300, 9, 0, 0, *range(8)).ljust(protocol.slot_bytes, b"\0")
    assert parse(raw, protocol)[1] == "300 indirect segments"
    raw = protocol.indirect.pack(6, 5, 3, 9, 0, 0, *range(8)).ljust(protocol.slot_bytes, b"\0")
    assert parse(raw, protocol)[1] == "indirect operation 5"
    raw = protocol.indirect.pack(6, 1, 256, 9, 77, 0, *range(8)).ljust(protocol.slot_bytes, b"\0")
    request, fault = parse(raw, protocol)
    assert (fault, request.indirect_grefs, request.sector, request.operation) == (None, (0,), 77, 1)

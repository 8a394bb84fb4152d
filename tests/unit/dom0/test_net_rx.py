"""The receive ring: where packets go in the front end's buffers, and what becomes of those that find none."""

import struct

import pytest

from ring3.abi import netif
from ring3.abi.xen import DOMID_SELF
from ring3.dom0.net.hashing import Hashing
from ring3.dom0.net.packet import Packet
from ring3.dom0.net.rx import NR_WAITING_MAX, STALL_S, RxQueue
from ring3.errors import RingError

DOMID = 9


class Front:
    """The front end's half: buffer n is grant 100 + n."""

    def __init__(self, nr_buffers: int = 0, hashing: Hashing | None = None) -> None:
        self.page = bytearray(4096)
        struct.pack_into("<4I", self.page, 0, 0, 1, 0, 1)
        self.queue = RxQueue(memoryview(self.page), DOMID, hashing)
        self.prod = 0
        self.put(nr_buffers)

    def put(self, nr_buffers: int) -> None:
        for _ in range(nr_buffers):
            struct.pack_into("<HHI", self.page, 64 + self.prod % 256 * 8, self.prod % 256, 0, 100 + self.prod)
            self.prod += 1
        struct.pack_into("<I", self.page, 0, self.prod)

    def responses(self) -> list[tuple[int, int, int, int]]:
        (prod,) = struct.unpack_from("<I", self.page, 8)
        return [struct.unpack_from("<HHHh", self.page, 64 + index % 256 * 8) for index in range(prod)]


def copies(ops: list[bytes]) -> list[tuple[int, ...]]:
    """Returns (source, its domid, offset, dest, its domid, offset, bytes, flags) of each."""
    return [struct.unpack("<QHH4xQHH4xHHh2x", op)[:8] for op in ops]


def test_parts_go_where_they_fit_whole() -> None:
    front = Front(4)
    parts = [(5, DOMID_SELF, 256, 54), (50, 3, 54, 100), (51, 3, 0, 4096), (52, 3, 0, 10)]
    front.queue.offer(Packet(parts, 4260, is_blank=True), 0.0)
    ops: list[bytes] = []
    front.queue.fill(ops, 0.0)
    assert copies(ops) == [
        (5, DOMID_SELF, 256, 100, DOMID, 0, 54, 2),
        (50, 3, 54, 100, DOMID, 54, 100, 3),
        (51, 3, 0, 101, DOMID, 0, 4096, 3),
        (52, 3, 0, 102, DOMID, 0, 10, 3),
    ]
    assert front.responses() == []
    assert front.queue.finish(None)
    more, blank = netif.NETRXF_more_data, netif.NETRXF_csum_blank | netif.NETRXF_data_validated
    assert front.responses() == [(0, 0, more | blank, 154), (1, 0, more, 4096), (2, 0, 0, 10)]


def test_gso_has_a_slot_of_its_own() -> None:
    front = Front(4)
    front.queue.offer(Packet([(50, 3, 0, 4096), (51, 3, 0, 10)], 4106, gso_type=1, gso_size=1448), 0.0)
    ops: list[bytes] = []
    front.queue.fill(ops, 0.0)
    assert [op[3] for op in copies(ops)] == [100, 102]
    front.queue.finish(None)
    first, _extra, last = front.responses()
    assert first == (0, 0, netif.NETRXF_more_data | netif.NETRXF_extra_info, 4096)
    assert struct.unpack_from("<BBHBBH", front.page, 64 + 8) == (1, 0, 1448, 1, 0, 0)
    assert last == (2, 0, 0, 10)


def test_hash_that_was_ordered_comes_along() -> None:
    hashing = Hashing(algorithm=1, types=1, key=bytes(range(40)))
    front = Front(5, hashing)
    header = bytes(12) + b"\x08\x00\x45" + bytes(8) + b"\x06" + bytes(2) + bytes([10, 0, 0, 1, 10, 0, 0, 2]) + bytes(20)
    parts = [(50, 3, 0, 4096), (51, 3, 0, 10)]
    front.queue.offer(Packet(parts, 4106, gso_type=1, gso_size=1448, header=header), 0.0)
    front.queue.offer(Packet([(52, 3, 0, 60)], 60, header=bytes(60)), 0.0)
    front.queue.fill([], 0.0)
    front.queue.finish(None)
    first, _gso, _hash, second, other = front.responses()
    assert first == (0, 0, netif.NETRXF_more_data | netif.NETRXF_extra_info, 4096)
    assert struct.unpack_from("<BBHBBH", front.page, 64 + 8) == (1, 1, 1448, 1, 0, 0), "another info follows"
    found = hashing.packet_hash(header)
    assert found is not None
    assert struct.unpack_from("<BBBBI", front.page, 64 + 16) == (4, 0, 0, 1, found.value)
    assert second == (3, 0, 0, 10)
    assert other == (4, 0, 0, 60), "what is not IP has none"


@pytest.mark.parametrize("gso_type", [0, 1])
def test_packets_wait_when_the_last_buffer_has_gone_to_one_before(gso_type: int) -> None:
    """Issue 5: the service ended over it, each time that a front end had fewer buffers than there were packets."""
    front = Front(2)
    for _number in range(4):
        front.queue.offer(Packet([(50, 3, 0, 60)], 60, gso_type=gso_type, gso_size=1000), 0.0)
    ops: list[bytes] = []
    front.queue.fill(ops, 0.0)
    assert len(ops) == (1 if gso_type else 2)
    front.queue.finish(None)
    assert len(front.responses()) == 2
    assert len(front.queue.waiting) == (3 if gso_type else 2)


def test_packet_waits_until_all_of_it_has_room() -> None:
    front = Front(1)
    packet = Packet([(50, 3, 0, 4096), (51, 3, 0, 4096)], 8192)
    front.queue.offer(packet, 0.0)
    ops: list[bytes] = []
    front.queue.fill(ops, 0.0)
    assert (ops, packet.nr_users) == ([], 1)
    front.put(1)
    front.queue.fill(ops, 0.0)
    front.queue.finish(None)
    assert (len(ops), packet.nr_users) == (2, 0)


def test_failed_copy_gives_the_buffers_back_and_the_next_packet_comes() -> None:
    front = Front(3)
    for gref in (50, 60):
        front.queue.offer(Packet([(gref, 3, 0, 100)], 100), 0.0)
    ops: list[bytes] = []
    front.queue.fill(ops, 0.0)
    front.queue.finish([-3, 0])
    assert front.responses() == [(0, 0, 0, netif.NETIF_RSP_ERROR), (1, 0, 0, 100)]


def test_front_end_that_gives_no_buffers_holds_nobody_up_for_long() -> None:
    front = Front()
    packet = Packet([(50, 3, 0, 100)], 100)
    front.queue.offer(packet, 1.0)
    assert not front.queue.drop_stalled(1.0 + STALL_S / 2)
    assert front.queue.drop_stalled(1.0 + STALL_S)
    assert packet.nr_users == 0
    front.queue.offer(packet, 1.1)
    assert packet.nr_users == 0, "nothing waits for it any more"
    front.queue.wake()
    front.put(1)
    front.queue.offer(packet, 1.2)
    front.queue.fill([], 1.2)
    assert not front.queue.is_stalled


def test_waiting_is_bounded() -> None:
    front = Front()
    for _ in range(NR_WAITING_MAX + 5):
        front.queue.offer(Packet([(50, 3, 0, 100)], 100), 0.0)
    assert (len(front.queue.waiting), front.queue.nr_dropped) == (NR_WAITING_MAX, 5)


def test_index_far_away_ends_the_service() -> None:
    front = Front()
    front.queue.offer(Packet([(50, 3, 0, 100)], 100), 0.0)
    struct.pack_into("<I", front.page, 0, 300)
    with pytest.raises(RingError):
        front.queue.fill([], 0.0)


def test_successor_of_a_killed_back_end_gives_all_buffers_back() -> None:
    front = Front(5)
    successor = RxQueue(memoryview(front.page), DOMID)
    successor.give_up()
    assert front.responses() == [(number, 0, 0, netif.NETIF_RSP_ERROR) for number in range(5)]

"""The transmit ring: requests of an honest front end, and of one that lies."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.abi import netif
from ring3.dom0.net.tx import NR_MULTICAST_MAX, NR_SLOTS_FATAL, TxQueue
from ring3.errors import RingError

MORE, EXTRA, BLANK = netif.NETTXF_more_data, netif.NETTXF_extra_info, netif.NETTXF_csum_blank
DOMID = 7


class Front:
    """The front end's half."""

    def __init__(self) -> None:
        self.page = bytearray(4096)
        struct.pack_into("<4I", self.page, 0, 0, 1, 0, 1)
        self.multicast: set[bytes] = set()
        self.queue = TxQueue(memoryview(self.page), DOMID, self.multicast)
        self.prod = 0

    def put(self, *slots: bytes) -> None:
        for slot in slots:
            at = 64 + self.prod % 256 * 12
            self.page[at : at + len(slot)] = slot
            self.prod += 1
        struct.pack_into("<I", self.page, 0, self.prod & 0xFFFFFFFF)

    def responses(self) -> list[tuple[int, int]]:
        (prod,) = struct.unpack_from("<I", self.page, 8)
        return [struct.unpack_from("<Hh", self.page, 64 + index % 256 * 12) for index in range(prod)]


def request(gref: int, offset: int, flags: int, number: int, size: int) -> bytes:
    return struct.pack("<IHHHH", gref, offset, flags, number, size)


def gso(size: int, kind: int = 1, *, is_more: bool = False) -> bytes:
    return struct.pack("<BBHBBH", 1, int(is_more), size, kind, 0, 0)


def take(front: Front, nr_max: int = 256) -> list[tuple[list[tuple[int, int, int, int]], int]]:
    return [(packet.parts, packet.nr_bytes) for packet in front.queue.take(nr_max, 256)]


def test_first_slot_has_what_the_others_leave() -> None:
    front = Front()
    front.put(request(8, 100, MORE | BLANK, 1, 5000), request(9, 0, MORE, 2, 4096), request(10, 8, 0, 3, 800))
    [packet] = front.queue.take(256, 256)
    assert packet.parts == [(8, DOMID, 100, 104), (9, DOMID, 0, 4096), (10, DOMID, 8, 800)]
    assert (packet.nr_bytes, packet.is_blank, packet.is_validated) == (5000, True, True)
    assert front.queue.complete() is True
    assert front.responses() == [(1, 0), (2, 0), (3, 0)]


def test_gso_comes_along_and_its_slot_is_answered_null() -> None:
    front = Front()
    front.put(request(8, 0, MORE | EXTRA, 1, 4000), gso(1448), request(9, 0, 0, 2, 3000))
    [packet] = front.queue.take(256, 256)
    assert (packet.gso_type, packet.gso_size, packet.parts[0][3]) == (1, 1448, 1000)
    front.queue.complete()
    assert [status for _id, status in front.responses()] == [0, netif.NETIF_RSP_NULL, 0]


def test_answers_come_in_the_order_of_requests() -> None:
    front = Front()
    front.put(*(request(8 + number, 0, 0, number, 60) for number in range(3)))
    first, second, third = front.queue.take(256, 256)
    first.nr_users = second.nr_users = 1
    assert front.queue.complete() is False
    second.drop_user()
    assert front.queue.complete() is False
    first.drop_user()
    third.is_failed = True
    front.queue.complete()
    assert front.responses() == [(0, 0), (1, 0), (2, netif.NETIF_RSP_ERROR)]


@pytest.mark.parametrize(
    "slots",
    [
        [request(8, 0, 0, 1, 13)],
        [request(8, 0, MORE, 1, 100), request(9, 0, 0, 2, 101)],
        [request(8, 0, MORE, 1, 100), request(9, 0, 0, 2, 95)],
        [request(8, 0, MORE, 1, 100), request(9, 0, 0, 2, 0)],
        [request(8, 0, MORE, 1, 1000), *(request(9, 0, MORE, 2, 10) for _ in range(17)), request(9, 0, 0, 2, 10)],
    ],
    ids=["shorter than a header", "parts longer than the whole", "no header left", "empty part", "19 slots"],
)
def test_lie_about_sizes_is_answered_with_errors(slots: list[bytes]) -> None:
    front = Front()
    front.put(*slots, request(20, 0, 0, 3, 60))
    assert take(front) == [([(20, DOMID, 0, 60)], 60)]
    front.queue.complete()
    statuses = [status for _id, status in front.responses()]
    assert statuses == [netif.NETIF_RSP_ERROR] * len(slots) + [0]


@pytest.mark.parametrize(
    "slots",
    [
        [request(8, 4000, 0, 1, 97)],
        [request(8, 0, MORE, 1, 200), request(9, 4090, 0, 2, 7)],
        [request(8, 0, MORE, 1, 200)],
        [request(8, 0, EXTRA, 1, 200)],
        [request(8, 0, EXTRA, 1, 200), gso(0)],
        [request(8, 0, EXTRA, 1, 200), gso(1448, 3)],
        [request(8, 0, EXTRA, 1, 200), struct.pack("<BB", 0, 0)],
        [request(8, 0, EXTRA, 1, 200), struct.pack("<BB", 5, 0)],
        [request(8, 0, EXTRA, 1, 200), *(gso(1448, is_more=True) for _ in range(255))],
        [request(8, 0, MORE, 1, 60000), *(request(9, 0, MORE, 2, 10) for _ in range(NR_SLOTS_FATAL))],
    ],
    ids=[
        "past the page",
        "a part past the page",
        "more, but nothing follows",
        "no extra",
        "GSO of 0 bytes",
        "GSO of no kind",
        "extra of type 0",
        "extra of no type",
        "endless extras",
        "endless parts",
    ],
)
def test_nonsense_ends_the_service(slots: list[bytes]) -> None:
    front = Front()
    front.put(*slots)
    with pytest.raises(RingError):
        front.queue.take(256, 256)


@pytest.mark.parametrize("prod", [257, 0x80000000, 0xFFFFFFFF])
def test_index_far_away_ends_the_service(prod: int) -> None:
    front = Front()
    struct.pack_into("<I", front.page, 0, prod)
    with pytest.raises(RingError):
        front.queue.take(256, 256)


def test_multicast_orders_are_no_packets() -> None:
    front = Front()
    address = bytes.fromhex("01005e000001")
    front.put(request(8, 0, EXTRA, 1, 60), bytes([netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD, 0]) + address)
    assert take(front) == []
    assert front.multicast == {address} and front.queue.has_changed_filter
    front.put(request(8, 0, EXTRA, 1, 60), bytes([netif.XEN_NETIF_EXTRA_TYPE_MCAST_DEL, 0]) + address)
    assert take(front) == [] and not front.multicast
    front.queue.complete()
    assert [status for _id, status in front.responses()] == [0, netif.NETIF_RSP_NULL] * 2


def test_filter_that_is_full_takes_no_more_addresses() -> None:
    front = Front()
    kind = netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD
    for number in (*range(NR_MULTICAST_MAX + 1), 0):
        front.put(request(8, 0, EXTRA, 1, 60), bytes([kind, 0]) + bytes.fromhex("01005e0000") + bytes([number]))
    take(front)
    front.queue.complete()
    statuses = [status for _id, status in front.responses()][::2]
    assert statuses == [0] * NR_MULTICAST_MAX + [netif.NETIF_RSP_ERROR, 0], "one that is there may come again"


def test_successor_of_a_killed_back_end_answers_what_is_open() -> None:
    """The predecessor had answered the first packet, and written (not shown) the answers of the second."""
    front = Front()
    front.put(request(8, 0, 0, 1, 60))
    front.put(request(9, 0, MORE | EXTRA, 2, 4000), gso(1448, is_more=True), gso(1448), request(9, 0, 0, 3, 3000))
    front.queue.take(1, 256)
    front.queue.complete()
    front.queue.take(256, 256)
    front.queue._answer(front.queue.in_flight[0].ids, 0)
    successor = TxQueue(memoryview(front.page), DOMID)
    successor.give_up()
    error = netif.NETIF_RSP_ERROR
    answers = front.responses()
    assert [status for _id, status in answers] == [0, error, 1, 1, error]
    assert [answers[index][0] for index in (0, 1, 4)] == [1, 2, 3]


@given(st.lists(st.binary(min_size=12, max_size=12), max_size=256), st.integers(0, 300))
def test_random_slots_do_no_harm(slots: list[bytes], prod: int) -> None:
    front = Front()
    front.put(*slots)
    struct.pack_into("<I", front.page, 0, prod)
    try:
        for packet in front.queue.take(256, 256):
            assert sum(part[3] for part in packet.parts) == packet.nr_bytes
            assert all(part[2] + part[3] <= 4096 and part[3] > 0 for part in packet.parts)
            assert len(packet.parts) <= 18
    except RingError:
        pass
    front.queue.complete()

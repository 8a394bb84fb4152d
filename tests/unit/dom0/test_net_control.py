"""The control ring of a vif: the hash that a front end orders, and which queue it leads to."""

import ipaddress
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.abi import netif
from ring3.dom0.net.control import ControlRing
from ring3.dom0.net.hashing import ALL_TYPES, Hashing, PacketHash
from ring3.dom0.net.kept import Kept
from ring3.errors import RingError

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
NR_QUEUES = 4
SUCCESS, NOT_SUPPORTED, INVALID, OVERFLOW = range(4)
GET_FLAGS, SET_FLAGS, SET_KEY = range(1, 4)
GET_SIZE, SET_SIZE, SET_MAPPING, SET_ALGORITHM = range(4, 8)


def ip_header(source: str, destination: str, ports: tuple[int, int], *, protocol: int = 6, flags: int = 0) -> bytes:
    addresses = [ipaddress.ip_address(text).packed for text in (source, destination)]
    if len(addresses[0]) == 4:
        head = b"\x08\x00\x45" + bytes(5) + bytes([flags, 0, 64, protocol, 0, 0])
    else:
        head = b"\x86\xdd\x60" + bytes(5) + bytes([protocol, 64])
    return bytes(12) + head + b"".join(addresses) + struct.pack(">HH", *ports) + bytes(12)


V4 = ip_header("66.9.149.187", "161.142.100.80", (2794, 1766))
V6 = ip_header("3ffe:2501:200:1fff::7", "3ffe:2501:200:3::1", (2794, 1766))


@pytest.mark.parametrize(
    ("header", "types", "found"),
    [  # the values are those by which Microsoft has drivers of RSS verified
        (V4, 15, PacketHash(1, 0x51CCC178)),
        (V4, 1, PacketHash(0, 0x323E8FC2)),
        (V6, 15, PacketHash(3, 0x40207D3D)),
        (V6, 4, PacketHash(2, 0x2CC18CD5)),
        (ip_header("66.9.149.187", "161.142.100.80", (2794, 1766), protocol=17), 15, PacketHash(0, 0x323E8FC2)),
        (ip_header("66.9.149.187", "161.142.100.80", (2794, 1766), flags=0x20), 15, PacketHash(0, 0x323E8FC2)),
        (V4[:12] + b"\x81\x00\x00\x07" + V4[12:], 15, PacketHash(1, 0x51CCC178)),
        (V4, 12, None),
        (V6, 3, None),
        (V4[:30], 15, None),
        (bytes(60), 15, None),
    ],
)
def test_hash_is_toeplitz_of_what_says_most(header: bytes, types: int, found: PacketHash | None) -> None:
    assert Hashing(1, types, KEY).packet_hash(header) == found


def test_key_that_is_not_there_gives_zero() -> None:
    assert Hashing(1, 15).packet_hash(V4) == PacketHash(1, 0)


class Front:
    """The front end's half. Grant 1 holds the key, 2 a mapping; there are no others."""

    def __init__(self, hashing: Hashing | None = None) -> None:
        self.page = bytearray(4096)
        struct.pack_into("<4I", self.page, 0, 0, 1, 0, 1)
        self.hashing = hashing or Hashing()
        self.pages = {
            1: KEY.ljust(4096, b"\0"),
            2: struct.pack("<1024I", *(index % NR_QUEUES for index in range(1024))),
        }
        self.pages[3] = struct.pack("<1024I", *[NR_QUEUES] * 1024)
        self.nr_kept = 0
        self.ring = ControlRing(memoryview(self.page), 7, self.hashing, NR_QUEUES, self.fetch)
        self.prod = 0

    def fetch(self, gref: int, nr_bytes: int) -> bytes | None:
        return self.pages[gref][:nr_bytes] if gref in self.pages else None

    def keep(self) -> None:
        assert struct.unpack_from("<I", self.page, 8)[0] < self.prod, "the front end is told afterwards"
        self.nr_kept += 1

    def ask(self, kind: int, *data: int) -> tuple[int, int]:
        request = netif.NETIF_CTRL_REQUEST.pack(self.prod, kind, *[*data, 0, 0, 0][:3])
        at = 64 + self.prod % 128 * 16
        self.page[at : at + 16] = request
        self.prod += 1
        struct.pack_into("<I", self.page, 0, self.prod)
        self.ring.serve(self.keep)
        assert struct.unpack_from("<I", self.page, 8) == (self.prod,)
        number, answered_kind, status, answer = netif.NETIF_CTRL_RESPONSE.unpack_from(self.page, at)
        assert (number, answered_kind) == (self.prod - 1, kind)
        return status, answer


def test_hash_is_ordered_and_leads_to_queues() -> None:
    front = Front()
    assert front.ask(GET_FLAGS) == (NOT_SUPPORTED, 0), "no algorithm yet"
    assert front.ask(SET_FLAGS, 1) == (NOT_SUPPORTED, 0)
    assert front.ask(SET_ALGORITHM, 1) == (SUCCESS, 0)
    assert front.ask(GET_FLAGS) == (SUCCESS, ALL_TYPES)
    assert front.ask(SET_FLAGS, 15) == (SUCCESS, 0)
    assert front.ask(SET_KEY, 1, 40) == (SUCCESS, 0)
    found = front.hashing.packet_hash(V4)
    assert found is not None and found.value == 0x51CCC178
    assert front.hashing.queue(found, NR_QUEUES) == 0x51CCC178 % NR_QUEUES, "without a table"
    assert front.ask(GET_SIZE) == (SUCCESS, 128)
    assert front.ask(SET_SIZE, 8) == (SUCCESS, 0)
    assert front.hashing.mapping == [0] * 8
    assert front.ask(SET_MAPPING, 2, 4, 4) == (SUCCESS, 0)
    assert front.hashing.mapping == [0, 0, 0, 0, 0, 1, 2, 3]
    assert [front.hashing.queue(PacketHash(0, value), NR_QUEUES) for value in (4, 13, 7)] == [0, 1, 3]
    assert front.ask(SET_KEY, 99, 0) == (SUCCESS, 0), "no key, no page"
    assert front.hashing.packet_hash(V4) == PacketHash(1, 0)
    assert front.ask(SET_ALGORITHM, 0) == (SUCCESS, 0)
    assert not front.hashing.is_on
    assert front.nr_kept == front.prod


def test_orders_that_cannot_be_are_refused_as_the_header_says() -> None:
    front = Front(Hashing(1, 15, KEY, [1, 2]))
    before = front.hashing.state()
    for kind in (0, 8, 9, 10, 11, 65535):
        assert front.ask(kind, 1, 1, 1) == (NOT_SUPPORTED, 0)
    assert front.ask(SET_ALGORITHM, 2) == (INVALID, 0)
    assert front.ask(SET_FLAGS, 16) == (INVALID, 0)
    assert front.ask(SET_KEY, 1, 41) == (OVERFLOW, 0)
    assert front.ask(SET_KEY, 77, 40) == (INVALID, 0), "a grant that is none"
    assert front.ask(SET_SIZE, 129) == (INVALID, 0)
    assert front.ask(SET_MAPPING, 2, 129, 0) == (OVERFLOW, 0)
    assert front.ask(SET_MAPPING, 2, 1, 2) == (INVALID, 0)
    assert front.ask(SET_MAPPING, 2, 2, 0xFFFFFFFF) == (INVALID, 0)
    assert front.ask(SET_MAPPING, 3, 2, 0) == (INVALID, 0), "there is no such queue"
    assert front.hashing.state() == before


def test_wild_index_ends_the_service() -> None:
    front = Front()
    struct.pack_into("<I", front.page, 0, 129)
    with pytest.raises(RingError):
        front.ring.serve(lambda: None)


@given(st.lists(st.binary(min_size=16, max_size=16), max_size=128), st.binary(max_size=80))
def test_random_orders_do_no_harm(slots: list[bytes], header: bytes) -> None:
    front = Front()
    for index, slot in enumerate(slots):
        front.page[64 + 16 * index : 80 + 16 * index] = slot
    struct.pack_into("<I", front.page, 0, len(slots))
    while front.ring.is_pending:
        front.ring.serve(lambda: None)
    assert struct.unpack_from("<I", front.page, 8) == (len(slots),)
    assert 0 <= front.hashing.queue(front.hashing.packet_hash(header), NR_QUEUES) < NR_QUEUES


def test_successor_finds_what_was_ordered(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "1-0.orders")
    assert kept.load() == (Hashing(), set())
    hashing, addresses = Hashing(1, 15, KEY, [3, 1]), {bytes.fromhex("01005e000001")}
    kept.save(hashing, addresses)
    assert kept.load() == (hashing, addresses)
    kept.path.write_text(json.dumps({"hashing": 3}))
    assert kept.load() == (Hashing(), set()), "a file that makes no sense"
    kept.clear()
    kept.clear()
    assert kept.load() == (Hashing(), set())

"""The switch, the offloads done here, and the limit of speed."""

import ipaddress
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.dom0.net import offload
from ring3.dom0.net.credit import Credit
from ring3.dom0.net.ip_guard import IpGuard
from ring3.dom0.net.packet import Packet
from ring3.dom0.net.switch import AGE_S, NR_ADDRESSES_PER_PORT_MAX, Switch

NOBODY = str(ipaddress.IPv4Address(0))
BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    return b"\x00\x16\x3e" + number.to_bytes(3, "big")


class Port:
    def __init__(self, number: int, *, is_guarded: bool = True) -> None:
        self.mac = mac(number)
        self.is_guarded = is_guarded
        self.seen: list[bytes] = []

    def deliver(self, packet: Packet, _now: float) -> None:
        self.seen.append(packet.header)


def frame(to: bytes, source: bytes) -> Packet:
    return Packet([], 60, header=to + source + b"\x08\x00" + bytes(46))


def network(*ports: Port) -> Switch:
    switch = Switch("s")
    for port in ports:
        switch.add(port)
    return switch


def ipv4(source: str, protocol: int = 6, ports: tuple[int, int] = (1, 2), fragment: int = 0) -> bytes:
    address = ipaddress.ip_address(source).packed
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, fragment, 64, protocol, 0, address, bytes(4))
    return mac(2) + mac(1) + b"\x08\x00" + ip + struct.pack("!HH", *ports)


def ipv6(source: str) -> bytes:
    address = ipaddress.ip_address(source).packed
    return mac(2) + mac(1) + b"\x86\xdd" + bytes(8) + address + bytes(16)


def arp(source: str, sender: bytes | None = None) -> bytes:
    address = ipaddress.ip_address(source).packed
    return BROADCAST + mac(1) + b"\x08\x06\0\x01\x08\0\x06\x04\0\x01" + (sender or mac(1)) + address + bytes(10)


@pytest.mark.parametrize(
    ("header", "is_allowed"),
    [
        (ipv4("10.0.0.1"), True),
        (ipv4("10.0.0.2"), False),
        (ipv4("10.1.255.9"), True),
        (ipv4("10.2.0.1"), False),
        (ipv4(NOBODY, 17, (68, 67)), True),
        (ipv4(NOBODY, 17, (68, 53)), False),
        (ipv4(NOBODY, 6, (68, 67)), False),
        (ipv4(NOBODY, 17, (68, 67), 1), False),
        (ipv4("10.0.0.2", 17, (68, 67)), False),
        (arp("10.0.0.1"), True),
        (arp(NOBODY), True),
        (arp("10.0.0.2"), False),
        (arp("10.0.0.1", mac(9)), False),
        (ipv6("fd00::1"), True),
        (ipv6("fd00::2"), False),
        (ipv6("fe80::2"), True),
        (ipv6("::"), True),
        (mac(2) + mac(1) + b"\x81\0\0\x01" + ipv4("10.0.0.2")[12:], False),
        (ipv4("10.0.0.1")[:28], False),
        (ipv4(NOBODY)[:30], False),
        (mac(2) + mac(1), False),
    ],
)
def test_domain_may_use_the_addresses_of_ip_alone(header: bytes, is_allowed: bool) -> None:
    guard = IpGuard.parse("10.0.0.1 10.1.0.0/16 fd00::1")
    assert guard is not None
    assert guard.allows(header) == is_allowed
    only_v4 = IpGuard.parse("10.0.0.1")
    assert only_v4 is not None
    assert not only_v4.allows(ipv6("fe80::2"))


@given(st.binary(max_size=60))
def test_hostile_headers_are_judged(header: bytes) -> None:
    guard = IpGuard.parse("10.0.0.1 fd00::/64")
    assert guard is not None
    guard.allows(header)
    guard.allows(mac(2) + mac(1) + b"\x08\x00" + header)


def test_switch_delivers_to_the_owner_alone_and_floods_the_rest() -> None:
    one, two, three = Port(1), Port(2), Port(3)
    switch = network(one, two, three)
    switch.forward(one, frame(mac(2), mac(1)), 0.0)
    assert (len(one.seen), len(two.seen), len(three.seen)) == (0, 1, 0)
    switch.forward(one, frame(BROADCAST, mac(1)), 0.0)
    switch.forward(one, frame(mac(77), mac(1)), 0.0)
    assert (len(one.seen), len(two.seen), len(three.seen)) == (0, 3, 2)
    switch.forward(one, frame(mac(1), mac(1)), 0.0)
    assert len(one.seen) == 0


def test_guarded_port_cannot_send_by_another_address_nor_take_one() -> None:
    one, two, nested = Port(1), Port(2), Port(3, is_guarded=False)
    switch = network(one, two, nested)
    switch.forward(one, frame(mac(2), mac(9)), 0.0)
    assert (two.seen, switch.nr_spoofed) == ([], 1)
    switch.forward(nested, frame(BROADCAST, mac(1)), 0.0)
    switch.forward(two, frame(mac(1), mac(2)), 0.0)
    assert len(one.seen) == 2, "an address of a guarded port is not learned elsewhere"


def test_unguarded_port_is_learned_and_forgotten() -> None:
    one, nested, other = Port(1), Port(2, is_guarded=False), Port(3)
    switch = network(one, nested, other)
    switch.forward(nested, frame(mac(1), mac(50)), 0.0)
    switch.forward(one, frame(mac(50), mac(1)), 1.0)
    assert (len(nested.seen), len(other.seen)) == (1, 0)
    switch.forward(one, frame(mac(50), mac(1)), AGE_S + 1)
    assert (len(nested.seen), len(other.seen)) == (2, 1)
    for number in range(3 * NR_ADDRESSES_PER_PORT_MAX):
        switch.forward(nested, frame(mac(1), mac(1000 + number)), 2.0 + number)
    assert len(switch._table) == NR_ADDRESSES_PER_PORT_MAX
    switch.remove(nested)
    assert not switch._table


def tcp_v4(payload: bytes, flags: int = 0x18) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 5_000, 9, 5 << 4, flags, 512, 0, 0) + payload
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(tcp), 7, 0, 64, 6, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    return mac(2) + mac(1) + b"\x08\x00" + ip + tcp


def tcp_v6(payload: bytes) -> bytes:
    tcp = struct.pack("!HHIIBBHHH", 1000, 2000, 5_000, 9, 5 << 4, 0x10, 512, 0, 0) + payload
    ip = struct.pack("!IHBB16s16s", 6 << 28, len(tcp), 6, 64, bytes(15) + b"\1", bytes(15) + b"\2")
    return mac(2) + mac(1) + b"\x86\xdd" + ip + tcp


def plain_sum(data: bytes) -> int:
    """The internet checksum as RFC 1071 tells it."""
    total = 0
    for index in range(0, len(data), 2):
        total += int.from_bytes(data[index : index + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def is_right(data: bytes) -> bool:
    """Whether all checksums of a frame hold."""
    if data[12:14] == b"\x08\x00":
        if plain_sum(data[14:34]) != 0xFFFF:
            return False
        addresses, at = data[26:34], 34
    else:
        addresses, at = data[22:54], 54
    return plain_sum(addresses + struct.pack("!HH", 6, len(data) - at) + data[at:]) == 0xFFFF


@given(st.binary(max_size=300))
def test_checksums_are_filled_in(payload: bytes) -> None:
    for made, header_sum_at in ((tcp_v4(payload), 24), (tcp_v6(payload), None)):
        data = bytearray(made)
        offload.fill_checksum(data)
        if header_sum_at is not None:
            data[header_sum_at : header_sum_at + 2] = (0xFFFF - plain_sum(bytes(data[14:34]))).to_bytes(2, "big")
        assert is_right(bytes(data))


@pytest.mark.parametrize("make", [tcp_v4, tcp_v6])
def test_large_packet_is_cut(make: Callable[[bytes], bytes]) -> None:
    payload = bytes(range(256)) * 40
    segments = [bytes(piece) for piece in offload.segment(make(payload), 1448)]
    at = 54 if make is tcp_v4 else 74
    assert all(map(is_right, segments))
    assert b"".join(piece[at:] for piece in segments) == payload
    assert [len(piece) - at for piece in segments] == [1448] * 7 + [104]
    assert [int.from_bytes(piece[at - 16 : at - 12], "big") for piece in segments] == [
        5000 + 1448 * index for index in range(8)
    ]
    if make is tcp_v4:
        assert [piece[47] for piece in segments] == [0x10] * 7 + [0x18], "PSH is the last one's"
        assert [int.from_bytes(piece[18:20], "big") for piece in segments] == list(range(7, 15))


@pytest.mark.parametrize("make", [tcp_v4, tcp_v6])
@given(st.integers(1, 60_000), st.lists(st.integers(1, 9000), max_size=20), st.integers(200, 70_000))
def test_large_packet_is_cut_by_views(
    make: Callable[[bytes], bytes], nr_bytes: int, slots: list[int], nr_bytes_max: int
) -> None:
    payload = (bytes(range(251)) * 240)[:nr_bytes]
    whole = memoryview(make(payload))
    views, rest = [], whole
    for size in slots:
        views.append(rest[:size])
        rest = rest[size:]
    views = [view for view in [*views, rest] if view]
    pieces = [b"".join(piece) for piece in offload.cut(views, bytes(whole[:256]), len(whole), nr_bytes_max)]
    at = 54 if make is tcp_v4 else 74
    assert all(len(piece) <= nr_bytes_max for piece in pieces)
    assert len(pieces) == max(1, -(-nr_bytes // (nr_bytes_max - at)) if len(whole) > nr_bytes_max else 1)
    assert b"".join(piece[at:] for piece in pieces) == payload
    starts = [sum(len(piece) - at for piece in pieces[:index]) for index in range(len(pieces))]
    assert [int.from_bytes(piece[at - 16 : at - 12], "big") for piece in pieces] == [5000 + start for start in starts]
    for index, piece in enumerate(pieces):
        if make is tcp_v4:
            assert len(pieces) == 1 or plain_sum(piece[14:34]) == 0xFFFF
            assert int.from_bytes(piece[16:18], "big") == len(piece) - 14
            assert piece[47] == (0x18 if index == len(pieces) - 1 else 0x10), "PSH is the last one's"
        else:
            assert int.from_bytes(piece[18:20], "big") == len(piece) - 54


@given(st.binary(max_size=300), st.integers(1, 100))
def test_what_cannot_be_cut_stays_whole(data: bytes, nr_bytes_max: int) -> None:
    pieces = offload.cut([memoryview(data)], data[:256], len(data), nr_bytes_max)
    assert b"".join(pieces[0]) == data or len(pieces) > 1


@given(st.binary(min_size=14, max_size=200), st.integers(0, 65535))
def test_nonsense_is_left_alone(data: bytes, size: int) -> None:
    copy = bytearray(data)
    offload.fill_checksum(copy)
    assert offload.segment(data, size)


def test_credit_is_spent_and_renewed() -> None:
    credit = Credit.parse("1000,50000")
    assert credit is not None
    assert credit.renew(10.0) == 0
    credit.spend(2500)
    assert credit.renew(10.0) == pytest.approx(0.05)
    assert credit.renew(10.051) > 0, "it owes still"
    assert credit.renew(10.102) == 0
    for text in ("", "1000", "0,50000", "1000,0", "x,y", "-1,5"):
        assert Credit.parse(text) is None

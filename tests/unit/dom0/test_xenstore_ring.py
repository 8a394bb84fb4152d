"""A domain's xenstore page, with a guest that behaves and one that does not."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.abi import xs_wire
from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.ring import NR_REQUESTS_PER_TURN, DomainConnection
from ring3.dom0.xenstored.wire import Message


class Page:
    """A mapping that is no guest's."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(4096))

    def close(self) -> None:
        self.view.release()


class Guest:
    """The other side of the page."""

    def __init__(self) -> None:
        self.page = Page()
        self.client = Client(3, is_privileged=False)
        self.connection = DomainConnection(self.client, self.page, 1)  # type: ignore[arg-type]
        view = self.page.view
        self.requests = ByteRing(view, 3, data_offset=0, size=1024, cons_offset=2048, prod_offset=2052)
        self.replies = ByteRing(view, 3, data_offset=1024, size=1024, cons_offset=2056, prod_offset=2060)

    def word(self, offset: int) -> int:
        return int.from_bytes(self.page.view[offset : offset + 4], "little")

    def poke(self, offset: int, value: int) -> None:
        self.page.view[offset : offset + 4] = value.to_bytes(4, "little")


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_features_are_announced(guest: Guest) -> None:
    assert guest.word(xs_wire.SERVER_FEATURES_OFFSET) == 3
    assert guest.word(xs_wire.CONNECTION_OFFSET) == xs_wire.XENSTORE_CONNECTED


def test_a_reply_larger_than_the_ring_arrives_in_pieces(guest: Guest) -> None:
    guest.client.reply(Message(2, 1, 0, b""), bytes(3000))
    received = b""
    while guest.connection.has_output():
        assert guest.connection.flush()
        assert not guest.connection.flush()
        received += guest.replies.read(1024)
    assert received == struct.pack("<4I", 2, 1, 0, 3000) + bytes(3000)


def test_nothing_is_read_while_replies_wait(guest: Guest) -> None:
    guest.client.reply(Message(2, 1, 0, b""), bytes(2000))
    guest.connection.flush()
    guest.requests.write(Message(2, 1, 0, b"a\0").encode())
    assert guest.connection.receive() == ([], False)
    assert not guest.connection.has_input()
    guest.replies.read(1024)
    guest.connection.flush()
    assert len(guest.connection.receive()[0]) == 1


def test_one_turn_is_bounded(guest: Guest) -> None:
    for _number in range(60):
        guest.requests.write(Message(2, 1, 0, b"").encode())
    messages, has_read = guest.connection.receive()
    assert (len(messages), has_read) == (NR_REQUESTS_PER_TURN, True)
    assert guest.connection.has_input()


def test_oversized_payload_makes_the_domain_ignored_until_it_reconnects(guest: Guest) -> None:
    guest.requests.write(struct.pack("<4I", 2, 1, 0, 5000))
    guest.connection.receive()
    assert guest.word(xs_wire.ERROR_OFFSET) == xs_wire.XENSTORE_ERROR_PROTO
    guest.requests.write(Message(2, 1, 0, b"").encode())
    assert guest.connection.receive() == ([], False)
    assert not guest.connection.has_input()
    guest.poke(xs_wire.CONNECTION_OFFSET, xs_wire.XENSTORE_RECONNECT)
    assert guest.connection.wants_reset()
    guest.connection.reset()
    assert guest.word(xs_wire.ERROR_OFFSET) == 0
    guest.requests.write(Message(2, 1, 0, b"").encode())
    assert len(guest.connection.receive()[0]) == 1


@given(st.binary(min_size=28, max_size=28), st.binary(max_size=64))
def test_any_bytes_in_the_page_harm_nobody(control: bytes, requests: bytes) -> None:
    guest = Guest()
    guest.page.view[: len(requests)] = requests
    guest.page.view[2048:2076] = control
    guest.client.event(b"path", b"token")
    for _turn in range(4):
        guest.connection.receive()
        guest.connection.flush()
    if guest.connection.is_ignored:
        assert guest.word(xs_wire.ERROR_OFFSET) != 0
        assert not guest.client.outgoing

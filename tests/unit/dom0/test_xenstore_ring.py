"""A domain's xenstore page, with a guest that behaves and one that does not, and a daemon that is killed."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ring3.abi import xs_wire
from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.ring import FEATURES, NR_REQUESTS_PER_TURN, DomainConnection
from ring3.dom0.xenstored.wire import Message

NR_OUTSTANDING = 20


class Page:
    """A mapping that is no guest's."""

    def __init__(self, data: bytearray | None = None) -> None:
        self.data = data if data is not None else bytearray(4096)
        self.view = memoryview(self.data)

    def close(self) -> None:
        self.view.release()


class Guest:
    """The other side of the page."""

    def __init__(self) -> None:
        self.page = Page()
        self.client = Client(3, is_privileged=False)
        self.connection = DomainConnection(self.client, self.page, 1)
        self.connection.connect()
        view = self.page.view
        self.requests = ByteRing(view, 3, data_offset=0, size=1024, cons_offset=2048, prod_offset=2052)
        self.replies = ByteRing(view, 3, data_offset=1024, size=1024, cons_offset=2056, prod_offset=2060)

    def word(self, offset: int) -> int:
        return int.from_bytes(self.page.view[offset : offset + 4], "little")

    def poke(self, offset: int, value: int) -> None:
        self.page.view[offset : offset + 4] = value.to_bytes(4, "little")

    def receive(self) -> list[Message]:
        return self.connection.receive(NR_OUTSTANDING)

    def has_input(self) -> bool:
        return self.connection.has_input(NR_OUTSTANDING)

    def restart(self) -> None:
        """Kills the daemon and starts another, which knows what was saved last."""
        saved = self.connection.save()
        self.client = Client(3, is_privileged=False)
        self.connection = DomainConnection(self.client, Page(self.page.data), 2)
        self.connection.restore(saved)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_features_are_announced(guest: Guest) -> None:
    assert guest.word(xs_wire.SERVER_FEATURES_OFFSET) == FEATURES
    assert guest.word(xs_wire.CONNECTION_OFFSET) == xs_wire.XENSTORE_CONNECTED


def test_a_reply_larger_than_the_ring_arrives_in_pieces(guest: Guest) -> None:
    guest.client.reply(Message(2, 1, 0, b""), bytes(3000))
    received = b""
    while guest.connection.has_output():
        assert guest.connection.publish()
        assert not guest.connection.publish()
        received += guest.replies.read(1024)
    received += guest.replies.read(1024)
    assert received == struct.pack("<4I", 2, 1, 0, 3000) + bytes(3000)


def test_nothing_is_read_while_too_many_replies_wait(guest: Guest) -> None:
    for _number in range(NR_OUTSTANDING + 2):
        guest.client.reply(Message(2, 1, 0, b""), bytes(1008))
    guest.connection.publish()
    guest.requests.write(Message(2, 1, 0, b"a\0").encode())
    assert guest.receive() == []
    assert not guest.has_input()
    guest.replies.read(1024)
    guest.connection.publish()
    assert guest.has_input()
    assert len(guest.receive()) == 1


def test_events_that_wait_do_not_stop_requests(guest: Guest) -> None:
    for number in range(NR_OUTSTANDING + 2):
        guest.client.event(b"x" * 1000 + b"%d" % number, b"t")
    guest.connection.publish()
    guest.requests.write(Message(2, 1, 0, b"a\0").encode())
    assert len(guest.receive()) == 1


def test_one_turn_is_bounded(guest: Guest) -> None:
    for _number in range(60):
        guest.requests.write(Message(2, 1, 0, b"").encode())
    assert len(guest.connection.receive(1000)) == NR_REQUESTS_PER_TURN
    assert guest.connection.has_input(1000)


def test_guest_sees_its_request_taken_only_when_it_is_published(guest: Guest) -> None:
    guest.requests.write(Message(2, 1, 0, b"a\0").encode())
    assert len(guest.receive()) == 1
    assert guest.word(xs_wire.REQ_CONS_OFFSET) == 0
    assert guest.connection.publish()
    assert guest.word(xs_wire.REQ_CONS_OFFSET) == 18


def test_oversized_payload_makes_the_domain_ignored_until_it_reconnects(guest: Guest) -> None:
    guest.requests.write(struct.pack("<4I", 2, 1, 0, 5000))
    guest.receive()
    assert guest.connection.is_ignored
    assert guest.word(xs_wire.ERROR_OFFSET) == xs_wire.XENSTORE_ERROR_PROTO
    guest.requests.write(Message(2, 1, 0, b"").encode())
    assert guest.receive() == []
    assert not guest.has_input()
    guest.poke(xs_wire.CONNECTION_OFFSET, xs_wire.XENSTORE_RECONNECT)
    assert guest.connection.wants_reset()
    guest.connection.reset()
    guest.connection.finish_reset()
    assert not guest.connection.wants_reset()
    assert guest.word(xs_wire.ERROR_OFFSET) == 0
    guest.requests.write(Message(2, 1, 0, b"").encode())
    assert len(guest.receive()) == 1


@given(st.binary(min_size=28, max_size=28), st.binary(max_size=64))
def test_any_bytes_in_the_page_harm_nobody(control: bytes, requests: bytes) -> None:
    guest = Guest()
    guest.page.view[: len(requests)] = requests
    guest.page.view[2048:2076] = control
    guest.client.event(b"path", b"token")
    for _turn in range(4):
        guest.receive()
        guest.connection.publish()
        guest.restart()
    if guest.connection.is_ignored:
        assert guest.word(xs_wire.ERROR_OFFSET) != 0


# -- a daemon that is killed


@given(
    st.lists(st.tuples(st.binary(max_size=1500), st.integers(0, 2000), st.booleans()), max_size=12),
    st.sampled_from([0, 2**32 - 700]),
)
def test_replies_arrive_once_and_in_order_whenever_the_daemon_is_killed(
    steps: list[tuple[bytes, int, bool]], start: int
) -> None:
    """Each step queues a reply and publishes; the guest reads some; the daemon may be killed after any."""
    guest = Guest()
    for offset in (xs_wire.RSP_CONS_OFFSET, xs_wire.RSP_PROD_OFFSET):
        guest.poke(offset, start)
    guest.connection = DomainConnection(guest.client, guest.page, 1)
    sent, received = b"", b""
    for payload, nr_read, is_killed in steps:
        guest.client.reply(Message(2, 1, 0, b""), payload)
        sent += Message(2, 1, 0, payload).encode()
        saved = guest.connection.save()
        guest.connection.publish()
        received += guest.replies.read(nr_read)
        if is_killed:  # with what it had made last before it published
            guest.client = Client(3, is_privileged=False)
            guest.connection = DomainConnection(guest.client, Page(guest.page.data), 2)
            guest.connection.restore(saved)
            assert not guest.connection.is_ignored
    for _turn in range(40):
        guest.connection.publish()
        received += guest.replies.read(1024)
    assert received == sent


@given(st.lists(st.binary(max_size=1500), max_size=8), st.lists(st.booleans(), min_size=40, max_size=40))
def test_requests_are_taken_once_and_in_order_whenever_the_daemon_is_killed(
    payloads: list[bytes], kills: list[bool]
) -> None:
    """A turn that is killed before it made anything last happens again; one that is killed after it does not."""
    guest = Guest()
    stream = b"".join(Message(2, 1, 0, payload).encode() for payload in payloads)
    taken: list[bytes] = []
    for is_killed_early in kills:
        stream = stream[guest.requests.write(stream) :]
        before = guest.connection.save()
        messages = guest.receive()
        after = guest.connection.save()
        guest.client = Client(3, is_privileged=False)
        guest.connection = DomainConnection(guest.client, Page(guest.page.data), 2)
        if is_killed_early:
            guest.connection.restore(before)
        else:
            taken += [message.payload for message in messages]
            guest.connection.restore(after)
    if sum(not killed for killed in kills) > 24:
        assert taken == payloads


def test_a_guest_that_asked_to_start_over_while_the_daemon_was_away_is_heard(guest: Guest) -> None:
    guest.client.reply(Message(2, 1, 0, b""), bytes(10))
    guest.poke(xs_wire.CONNECTION_OFFSET, xs_wire.XENSTORE_RECONNECT)
    guest.poke(xs_wire.RSP_PROD_OFFSET, 77777)
    guest.restart()
    assert not guest.connection.is_ignored
    assert guest.connection.wants_reset()


def test_a_guest_that_moves_our_index_while_the_daemon_is_away_is_ignored(guest: Guest) -> None:
    guest.client.reply(Message(2, 1, 0, b""), bytes(10))
    guest.poke(xs_wire.RSP_PROD_OFFSET, 500)
    guest.restart()
    assert guest.connection.is_ignored
    assert guest.word(xs_wire.ERROR_OFFSET) == xs_wire.XENSTORE_ERROR_RINGIDX

"""Event channels: binding, and taking pending events without losing one."""

import select
import threading
from collections.abc import Iterator

import pytest

from ring3.abi import errno, event_channel
from ring3.errors import HypercallError
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels
from unit.libs.fake_hypervisor import FakeHypervisor


@pytest.fixture
def channels(conn: Connection) -> Iterator[EventChannels]:
    with EventChannels(conn) as opened:
        yield opened


def readable(channels: EventChannels) -> bool:
    return bool(select.select([channels], [], [], 0)[0])


def test_binding_returns_ports(channels: EventChannels) -> None:
    assert [channels.alloc_unbound(3), channels.bind_interdomain(3, 9), channels.bind_virq(3)] == [1, 2, 3]
    assert channels.status(1).status == event_channel.EVTCHNSTAT_unbound


def test_notify_and_close(channels: EventChannels, hypervisor: FakeHypervisor) -> None:
    port = channels.alloc_unbound(3)
    channels.notify(port)
    assert hypervisor.sent == [port]
    channels.close(port)
    with pytest.raises(HypercallError) as caught:
        channels.notify(port)
    assert caught.value.errno == errno.EINVAL


def test_pending_takes_each_event_once(channels: EventChannels, hypervisor: FakeHypervisor) -> None:
    assert channels.pending() == []
    for port in (5, 64, 4095, 6):
        hypervisor.raise_event(port)
    assert readable(channels)
    assert sorted(channels.pending()) == [5, 6, 64, 4095]
    assert not readable(channels)
    assert channels.pending() == []
    hypervisor.raise_event(5)
    assert channels.pending() == [5]


def test_a_masked_event_waits_for_unmask(channels: EventChannels, hypervisor: FakeHypervisor) -> None:
    port = channels.alloc_unbound(1)
    channels.mask(port)
    hypervisor.raise_event(port)
    assert not readable(channels)
    assert channels.pending() == []
    channels.unmask(port)
    assert readable(channels)
    assert channels.pending() == [port]


def test_closing_drops_what_is_pending(channels: EventChannels, hypervisor: FakeHypervisor) -> None:
    port = channels.alloc_unbound(1)
    hypervisor.raise_event(port)
    channels.close(port)
    assert channels.pending() == []


def test_ports_that_do_not_exist(channels: EventChannels) -> None:
    with pytest.raises(ValueError, match="port 0"):
        channels.mask(0)
    with pytest.raises(ValueError, match="port 4096"):
        channels.mask(4096)


def test_clearing_bits_does_not_lose_those_that_are_set_meanwhile(channels: EventChannels) -> None:
    words, rounds = channels._words, 20000

    def setter() -> None:
        for _ in range(rounds):
            words.set_bits(0x800, 1)

    thread = threading.Thread(target=setter)
    thread.start()
    kept = True
    for _ in range(rounds):
        words.set_bits(0x800, 2)
        words.clear_bits(0x800, 1)
        kept &= bool(words.swap(0x800, 0) & 2)
    thread.join()
    assert kept

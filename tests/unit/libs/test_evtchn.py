"""Event channels: binding, and taking pending events without losing one."""

import select
import threading
import time
from collections.abc import Iterator

import pytest

from ring3.abi import errno, event_channel
from ring3.errors import HypercallError
from ring3.libs.connection import Connection
from ring3.libs.evtchn import REBIND_TIMEOUT_S, EventChannels
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


def test_port_that_a_killed_predecessor_holds_is_waited_for(
    channels: EventChannels, hypervisor: FakeHypervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 5: killed between bind and Connected, a back end left its successor a port that could not be bound yet."""
    hypervisor.nr_refused_binds = 3
    assert channels.rebind_interdomain(3, 9) == 1
    # Later there is no predecessor: a port that cannot be bound is the domain's lie, which delays nobody.
    hypervisor.nr_refused_binds = 2
    later = time.monotonic() + REBIND_TIMEOUT_S
    monkeypatch.setattr(time, "monotonic", lambda: later)
    with pytest.raises(HypercallError) as caught:
        channels.rebind_interdomain(3, 9)
    assert (caught.value.errno, hypervisor.nr_refused_binds) == (errno.EINVAL, 1)


def test_notify_and_close(channels: EventChannels, hypervisor: FakeHypervisor) -> None:
    port = channels.alloc_unbound(3)
    channels.notify(port)
    assert hypervisor.sent == [port]
    channels.close(port)
    with pytest.raises(HypercallError) as caught:
        channels.notify(port)
    assert caught.value.errno == errno.EINVAL


def test_posted_events_have_no_answer(channels: EventChannels, hypervisor: FakeHypervisor) -> None:
    ports = [channels.alloc_unbound(3) for _ in range(3)]
    packets = [channels.packet(port) for port in ports]
    assert len(set(packets)) == 3
    for port in [*ports, ports[0]]:
        channels.post(port)
    channels.notify(ports[1])  # and its answer is its own
    assert hypervisor.sent == [*ports, ports[0], ports[1]]
    channels.close(ports[1])
    channels.post(ports[2])
    again = channels.alloc_unbound(3)
    assert channels.packet(again) == packets[1], "what a closed port had is used again"
    channels.post(again)
    channels.status(again)
    assert hypervisor.sent[-2:] == [ports[2], again]


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

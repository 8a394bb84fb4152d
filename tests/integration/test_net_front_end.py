"""A network front end made by hand: packets from one domain to another, and what a hostile one may try."""

import os
import signal
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from ring3.abi import grant_table as abi
from ring3.abi import netif
from ring3.errors import Error
from ring3.libs.device import Device
from ring3.tools.devices import bus
from ring3.tools.devices.vif import VifConfig
from support.bare_domain import GREF, BareDomain, bare_domain
from support.command import Ring3
from support.waiting import wait_for

pytestmark = pytest.mark.guest

MACS = [bytes.fromhex("00163e0000") + bytes([number]) for number in (1, 2)]
TX, RX, DATA, BUFFERS, NR_BUFFERS = 0, 1, 2, 10, 16
MORE, EXTRA = netif.NETTXF_more_data, netif.NETTXF_extra_info
OKAY, ERROR = netif.NETIF_RSP_OKAY, netif.NETIF_RSP_ERROR
FRAME = MACS[1] + MACS[0] + b"\x08\x00" + bytes(range(100))


@dataclass
class Front:
    """One of two vifs of a domain that runs nothing; all its pages are `base` and after."""

    domain: BareDomain
    number: int
    base: int
    nr_asked: int = 0

    def __post_init__(self) -> None:
        self.path = f"/local/domain/{self.domain.domid}/device/vif/{self.number}"
        self.back = f"/local/domain/0/backend/vif/{self.domain.domid}/{self.number}"

    def view(self, page: int) -> memoryview:
        return self.domain.pages[self.base + page].view

    def begin(self) -> None:
        """Empty rings, with buffers for what comes."""
        self.nr_asked = 0
        for page in (TX, RX):
            self.view(page)[:] = bytes(4096)
            struct.pack_into("<4I", self.view(page), 0, 0, 1, 0, 1)

    def give_buffers(self, nr: int) -> None:
        for slot in range(nr):
            request = netif.NETIF_RX_REQUEST.pack(slot, 0, GREF + self.base + BUFFERS + slot % 8)
            self.view(RX)[64 + 8 * slot : 72 + 8 * slot] = request
        struct.pack_into("<I", self.view(RX), 0, nr)

    def put(self, raw: bytes) -> None:
        at = 64 + self.nr_asked * 12
        self.view(TX)[at : at + len(raw)] = raw
        self.nr_asked += 1
        struct.pack_into("<I", self.view(TX), 0, self.nr_asked)

    def send(self, page: int, offset: int, nr_bytes: int, flags: int = 0, *, gref: int | None = None) -> None:
        ref = GREF + self.base + page if gref is None else gref
        self.put(netif.NETIF_TX_REQUEST.pack(ref, offset, flags, 500 + self.nr_asked, nr_bytes))

    def connect(self, port: int | None = None, lies: Mapping[str, str] | None = None) -> None:
        if port is None:
            port = self.domain.events.alloc_unbound(0, domid=self.domain.domid)
        rings = {"tx-ring-ref": str(GREF + self.base + TX), "rx-ring-ref": str(GREF + self.base + RX)}
        values = {**rings, "event-channel": str(port), "request-rx-copy": "1", "feature-sg": "1"}
        for name, value in {**values, **(lies or {})}.items():
            self.domain.xenstore.write(f"{self.path}/{name}", value)
        self.domain.xenstore.write(f"{self.path}/state", "4")

    def disconnect(self) -> None:
        for state in ("5", "6", "1"):
            self.domain.xenstore.write(f"{self.path}/state", state)
        self.wait_for_state("2")

    def wait_for_state(self, *states: str) -> None:
        self.domain.wait_for_state(self.back, *states)

    def statuses(self) -> list[int]:
        """Waits for all answers; returns their statuses."""
        ring = self.view(TX)
        wait_for(lambda: struct.unpack_from("<I", ring, 8)[0] == self.nr_asked, "not all requests are answered")
        answers = [netif.NETIF_TX_RESPONSE.unpack_from(ring, 64 + 12 * slot) for slot in range(self.nr_asked)]
        return [status for _number, status in answers]

    def received(self, nr: int) -> list[tuple[int, int, int, int]]:
        """Waits for that many slots; returns number, offset, flags and bytes of each."""
        ring = self.view(RX)
        wait_for(lambda: struct.unpack_from("<I", ring, 8)[0] >= nr, "nothing is delivered")
        return [netif.NETIF_RX_RESPONSE.unpack_from(ring, 64 + 8 * slot) for slot in range(nr)]

    def log(self) -> str:
        return (self.domain.run_dir / "net.log").read_text()


@pytest.fixture
def fronts(ring3: Ring3) -> Iterator[tuple[Front, Front]]:
    """Two vifs on one switch; the second is connected, with buffers."""
    assert ring3("up", "--memory", "64").exit_code == 0
    with bare_domain(ring3) as domain:
        made = []
        for number, mac in enumerate(MACS):
            spec = f"network=switch,switch=lab,mac={mac.hex(':')}"
            bus.attach(domain.xenstore, domain.services, domain.domid, VifConfig.parse(spec, number))
            made.append(Front(domain, number, 19 * number))
        first, second = made
        first.begin()
        first.view(DATA)[: len(FRAME)] = FRAME
        second.begin()
        second.give_buffers(NR_BUFFERS)
        second.connect()
        second.wait_for_state("4")
        yield first, second


def pid(front: Front) -> int:
    return int((front.domain.run_dir / "net.pid").read_text())


def test_packets_that_lie_fail_and_the_others_arrive(fronts: tuple[Front, Front]) -> None:
    first, second = fronts
    first.domain.grant(DATA + 1, abi.GTF_invalid)
    first.send(DATA, 0, len(FRAME))
    first.send(DATA + 1, 0, len(FRAME))  # not granted
    first.send(DATA, 0, len(FRAME), gref=1 << 31)
    first.send(DATA, 0, 13)  # less than a header
    first.send(DATA, 0, 0)
    first.send(DATA, 0, 100, MORE)  # the second slot is longer than the whole
    first.send(DATA, 0, 200)
    first.send(DATA, 0, 600, MORE)  # the page with the rest, which no switch looks at, is not granted
    first.send(DATA + 1, 0, 500)
    first.send(DATA, 0, len(FRAME))
    first.connect()
    assert first.statuses() == [OKAY, *[ERROR] * 6, OKAY, OKAY, OKAY]
    good = (0, 0, len(FRAME))
    assert second.received(3) == [(0, *good), (1, 0, 0, ERROR), (2, *good)]
    for slot in (0, 2):
        assert bytes(second.view(BUFFERS + slot)[: len(FRAME)]) == FRAME
    first.wait_for_state("4")
    first.disconnect()


def extra(kind: int, flags: int, size: int = 1448, gso: int = 1) -> bytes:
    return netif.NETIF_EXTRA_GSO.pack(kind, flags, size, gso, 0, 0) + bytes(4)


def _endless_extras(front: Front) -> None:
    front.send(DATA, 0, len(FRAME), EXTRA)
    for _number in range(255):
        front.put(extra(1, 1))


def _unknown_extra(front: Front) -> None:
    front.send(DATA, 0, len(FRAME), EXTRA)
    front.put(extra(200, 0))


def _gso_of_nothing(front: Front) -> None:
    front.send(DATA, 0, len(FRAME), EXTRA)
    front.put(extra(1, 0, size=0))


def _endless_slots(front: Front) -> None:
    for _number in range(256):
        front.send(DATA, 0, 60, MORE)


def _past_the_page(front: Front) -> None:
    front.send(DATA, 4090, len(FRAME))


def _second_past_the_page(front: Front) -> None:
    front.send(DATA, 0, 200, MORE)
    front.send(DATA, 4000, 97)


def _index(value: int) -> Callable[[Front], None]:
    return lambda front: struct.pack_into("<I", front.view(TX), 0, value)


@pytest.mark.parametrize(
    "attack",
    [
        *(_endless_extras, _unknown_extra, _gso_of_nothing, _endless_slots, _past_the_page, _second_past_the_page),
        *(_index(257), _index(0x80000000), _index(0xFFFFFFFF)),
    ],
)
def test_ring_that_makes_no_sense_ends_its_vif_alone(
    fronts: tuple[Front, Front], attack: Callable[[Front], None]
) -> None:
    first, second = fronts
    before = pid(first)
    attack(first)
    first.connect()
    first.wait_for_state("5")
    assert not first.domain.is_in_use(TX) and not first.domain.is_in_use(RX), "nothing of it is mapped"
    assert f"vif{first.domain.domid}.0: " in first.log(), "the log names it"
    assert first.domain.xenstore.read_text(Device("vif", first.domain.domid, 0).error)
    second.wait_for_state("4")
    # It stays so, and may begin again.
    for _again in range(20):
        time.sleep(0.01)
        assert first.domain.xenstore.read_text(f"{first.back}/state") == "5"
    first.disconnect()
    first.begin()
    first.send(DATA, 0, len(FRAME))
    first.connect()
    assert first.statuses() == [OKAY]
    assert second.received(1)[0][3] == len(FRAME)
    first.disconnect()
    assert pid(first) == before, "the service has not ended over it"


_NO_NUMBERS = ("", "-1", "x", "4294967296", "9" * 300, "7\n8", "\xff")
_KEYS = {
    "tx-ring-ref": ("20000", "4294967295"),
    "rx-ring-ref": ("20000", "4294967295"),
    "event-channel": ("0", "65536", "4294967295"),
    "multi-queue-num-queues": ("0", "2", "5", "4294967295"),
    "request-rx-copy": ("0",),
    **dict.fromkeys(
        (
            *("feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-no-csum-offload"),
            *("feature-ipv6-csum-offload", "request-multicast-control", "ctrl-ring-ref"),
        ),
        (),
    ),
}


def test_nonsense_in_every_key(fronts: tuple[Front, Front]) -> None:
    first, second = fronts
    before = pid(first)
    port = first.domain.events.alloc_unbound(0, domid=first.domain.domid)
    for name, values in _KEYS.items():
        for value in (*_NO_NUMBERS, *values):
            first.connect(port, {name: value})
            first.wait_for_state("5", "6")
            assert f"vif{first.domain.domid}.0: " in first.log().splitlines()[-1], (name, value)
            first.domain.xenstore.rm(f"{first.path}/{name}")
            first.disconnect()
            assert not first.domain.is_in_use(TX) and not first.domain.is_in_use(RX), (name, value)
    for state in (*_NO_NUMBERS, "99", "7", "0", "6", "1"):
        first.domain.xenstore.write(f"{first.path}/state", state)
    first.begin()
    first.send(DATA, 0, len(FRAME))
    first.connect()
    assert first.statuses() == [OKAY]
    assert second.received(1)[0][3] == len(FRAME), "the other one has noticed nothing"
    first.disconnect()
    assert pid(first) == before, "the service has not ended over it"
    assert "Traceback" not in first.log()


@pytest.mark.parametrize("wild", [257, 0x80000000, 0xFFFFFFFF])
def test_wild_index_of_the_receive_ring_ends_its_vif_alone(fronts: tuple[Front, Front], wild: int) -> None:
    first, second = fronts
    struct.pack_into("<I", second.view(RX), 0, wild)
    first.send(DATA, 0, len(FRAME))
    first.connect()
    second.wait_for_state("5")
    assert f"vif{second.domain.domid}.1: domain {second.domain.domid}: ring index {wild:#x}" in second.log()
    first.wait_for_state("4")
    assert first.statuses() == [OKAY]
    first.disconnect()


def test_address_that_is_used_twice_is_refused(ring3: Ring3) -> None:
    assert ring3("up", "--memory", "64").exit_code == 0
    with bare_domain(ring3) as domain:
        spec = f"network=switch,switch=lab,mac={MACS[0].hex(':')}"
        bus.attach(domain.xenstore, domain.services, domain.domid, VifConfig.parse(spec, 0))
        with pytest.raises(Error, match=rf"^vif/1: the address {MACS[0].hex(':')} is vif{domain.domid}\.0's"):
            bus.attach(domain.xenstore, domain.services, domain.domid, VifConfig.parse(spec, 1))


CTRL, KEY_PAGE = 3, 4
KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
GROUPS = [bytes.fromhex("01005e0000") + bytes([number]) for number in (1, 2)]
SEGMENT = bytes.fromhex("0800 4500003c00004000 4006 0000 420995bb a18e6450 0aea06e6") + bytes(36)
HASH = (netif.XEN_NETIF_EXTRA_TYPE_HASH, 0, 1, netif.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ, 0x51CCC178)
"""Of that segment by that key, as Microsoft has drivers of RSS verified."""


def test_hash_and_multicast_filter_are_what_the_front_end_orders(fronts: tuple[Front, Front]) -> None:
    first, second = fronts
    second.disconnect()
    second.begin()
    orders = (
        (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM, 1, 0, 0, OKAY),
        (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS, 15, 0, 0, OKAY),
        (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, GREF + second.base + KEY_PAGE, 40, 0, OKAY),
        (netif.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY, 20000, 40, 0, netif.XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER),
        (netif.XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING, 0, 0, 0, netif.XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED),
    )
    second.view(KEY_PAGE)[:40] = KEY
    struct.pack_into("<4I", second.view(CTRL), 0, len(orders), 1, 0, 1)
    for number, (kind, *data, _status) in enumerate(orders):
        netif.NETIF_CTRL_REQUEST.pack_into(second.view(CTRL), 64 + 16 * number, number, kind, *data)
    second.send(DATA, 0, 60, EXTRA)
    second.put(bytes([netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD, 0]) + GROUPS[0] + bytes(4))
    second.give_buffers(NR_BUFFERS)
    port = second.domain.events.alloc_unbound(0, domid=second.domain.domid)
    control = {"ctrl-ring-ref": str(GREF + second.base + CTRL), "event-channel-ctrl": str(port)}
    second.connect(lies={**control, "request-multicast-control": "1"})
    ring = second.view(CTRL)
    wait_for(lambda: struct.unpack_from("<I", ring, 8)[0] == len(orders), "not all orders are answered")
    answers = [netif.NETIF_CTRL_RESPONSE.unpack_from(ring, 64 + 16 * number) for number in range(len(orders))]
    assert answers == [(number, kind, status, 0) for number, (kind, *_data, status) in enumerate(orders)]
    assert second.statuses()[0] == OKAY
    nr_slots = _both_groups(first, second, 0, nr_arriving=1)

    # Each of the two answers to the other: nothing is forgotten over a kill, and the filter is asked about anew.
    before = pid(first)
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: pid(first) != before, "the service does not come back")
    wait_for(lambda: struct.unpack_from("<I", second.view(RX), 8)[0] == NR_BUFFERS, "the buffers do not come back")
    second.give_buffers(2 * NR_BUFFERS)
    nr_slots = _both_groups(first, second, NR_BUFFERS, nr_arriving=1)
    second.domain.xenstore.write(f"{second.path}/request-multicast-control", "0")
    nr_slots = _both_groups(first, second, nr_slots, nr_arriving=2)
    second.disconnect()
    for page in (TX, RX, CTRL, KEY_PAGE):
        assert not second.domain.is_in_use(second.base + page)


def _both_groups(first: Front, second: Front, nr_slots: int, *, nr_arriving: int) -> int:
    """Sends a packet to each group, and sees what comes; returns how many slots that makes in all."""
    first.begin()
    for number, group in enumerate(GROUPS):
        frame = group + MACS[0] + SEGMENT
        first.view(DATA)[128 * number : 128 * number + len(frame)] = frame
        first.send(DATA, 128 * number, len(frame))
    first.connect()
    assert first.statuses() == [OKAY, OKAY]
    slots = second.received(nr_slots + 2 * nr_arriving)[nr_slots:]
    assert len(slots) >= 2 * nr_arriving
    for at in range(0, 2 * nr_arriving, 2):
        assert slots[at][2:] == (netif.NETRXF_extra_info, 12 + len(SEGMENT))
        assert netif.NETIF_EXTRA_HASH.unpack_from(second.view(RX), 64 + 8 * (nr_slots + at + 1)) == HASH
    first.disconnect()
    assert struct.unpack_from("<I", second.view(RX), 8)[0] == nr_slots + 2 * nr_arriving, "and no more"
    return nr_slots + 2 * nr_arriving

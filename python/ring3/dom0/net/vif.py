"""A vif: a network device of a domain, connected to something that takes its packets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from ring3.abi.netif import XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6
from ring3.abi.xen import PAGE_SIZE
from ring3.dom0.net.area import Area
from ring3.dom0.net.control import ControlRing
from ring3.dom0.net.credit import Credit
from ring3.dom0.net.hashing import Hashing
from ring3.dom0.net.ip_guard import IpGuard
from ring3.dom0.net.kept import Kept
from ring3.dom0.net.packet import Packet
from ring3.dom0.net.rx import RxQueue
from ring3.dom0.net.switch import Sink
from ring3.dom0.net.tx import TxQueue
from ring3.libs.device import Device
from ring3.libs.gnttab import GrantMapping

NR_WAITING_MAX: Final = 24
"""Packets that wait for the front end's buffers, above which a network has to wait."""


class Network(Protocol):
    """What a vif is connected to."""

    @property
    def wants_bytes(self) -> bool:
        """Whether packets must be in this process's memory, and not only their headers."""

    def forward(self, vif: Vif, packet: Packet, now: float) -> None:
        """Takes a packet that the vif's domain sends."""


@dataclass(frozen=True, slots=True)
class Features:
    """What a front end can receive. The defaults are those of a front end that says nothing."""

    scatter: bool = False
    """Packets of more than one slot."""
    gso_v4: bool = False
    gso_v6: bool = False
    blank_v4: bool = True
    blank_v6: bool = False
    multicast_filter: bool = False

    def takes(self, packet: Packet) -> bool:
        """Returns whether a packet can be delivered as it is."""
        if packet.gso_type == XEN_NETIF_GSO_TYPE_TCPV4 and not self.gso_v4:
            return False
        if packet.gso_type == XEN_NETIF_GSO_TYPE_TCPV6 and not self.gso_v6:
            return False
        if not packet.is_blank or (self.blank_v4 and self.blank_v6):
            return True
        return self.blank_v6 if packet.header[12:14] == b"\x86\xdd" else self.blank_v4


@dataclass(slots=True, eq=False)
class Queue:
    """A pair of rings, and the ports that tell of them (one port for both, or two)."""

    tx: TxQueue
    rx: RxQueue
    tx_port: int
    rx_port: int
    pages: list[GrantMapping]
    is_tx_pending: bool = True
    must_notify_tx: bool = False
    must_notify_rx: bool = False

    def wake(self) -> None:
        """Its front end has said something."""
        self.is_tx_pending = True
        self.rx.wake()


@dataclass(slots=True, eq=False)
class Control:
    """A control ring, and the port that tells of it."""

    ring: ControlRing
    port: int
    page: GrantMapping
    must_notify: bool = False

    def wake(self) -> None:
        """Its front end has said something."""
        self.ring.is_pending = True


@dataclass(slots=True, eq=False)
class Vif:
    """One device; `queues` is empty while its front end is not connected."""

    device: Device
    mac: bytes
    network: Network
    area: Area
    kept: Kept
    is_guarded: bool = True
    ip_guard: IpGuard | None = None
    credit: Credit | None = None
    features: Features = field(default_factory=Features)
    queues: list[Queue] = field(default_factory=list)
    control: Control | None = None
    hashing: Hashing = field(default_factory=Hashing)
    multicast: set[bytes] = field(default_factory=set)
    unfit: list[Packet] = field(default_factory=list)
    """Packets for it that must be made fit what it takes; each counts this as a user."""
    captures: list[Sink] = field(default_factory=list)
    nr_packets_in: int = 0
    nr_packets_out: int = 0
    nr_spoofed: int = 0

    @property
    def name(self) -> str:
        """As Xen's scripts name it."""
        return f"vif{self.device.domid}.{self.device.number}"

    def is_full(self) -> bool:
        """Returns whether a network has to wait with packets for it, until its front end has given buffers."""
        return bool(self.queues) and all(len(queue.rx.waiting) >= NR_WAITING_MAX for queue in self.queues)

    def has_room(self, *, is_starved: bool) -> bool:
        """Returns whether a network may go on: if it had no buffer, only once no packets wait any more."""
        return not any(queue.rx.waiting for queue in self.queues) if is_starved else not self.is_full()

    def keep(self) -> None:
        """Has a successor know what the front end has ordered."""
        self.kept.save(self.hashing, self.multicast)

    def deliver(self, packet: Packet, now: float) -> None:
        """Takes a packet for the domain."""
        if not self.queues:
            return
        for capture in self.captures:
            capture.take(packet)
        if self.features.multicast_filter and packet.header[0] & 1:
            destination = packet.destination
            if destination != b"\xff" * 6 and destination not in self.multicast:
                return
        if not self.features.takes(packet):
            packet.nr_users += 1
            self.unfit.append(packet)
            return
        self.offer(packet, now)

    def offer(self, packet: Packet, now: float) -> None:
        """Takes a packet that fits."""
        queues = self.queues
        if not queues or (packet.nr_bytes > PAGE_SIZE and not self.features.scatter):
            return  # it would not know what to do with a second slot
        if len(queues) == 1:
            index = 0
        elif self.hashing.algorithm:
            index = self.hashing.queue(self.hashing.packet_hash(packet.header), len(queues))
        else:  # packets of a flow stay in order: addresses and ports (where IPv4 has no options) choose the queue
            index = hash(packet.header[26:38]) % len(queues)
        self.nr_packets_in += 1
        queues[index].rx.offer(packet, now)

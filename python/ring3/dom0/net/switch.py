"""A learning switch of Ethernet between vifs. It decides where packets go, and does nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from ring3.dom0.net.packet import Packet

AGE_S: Final = 300.0
"""An address that was not heard of for so long is forgotten."""
NR_ADDRESSES_PER_PORT_MAX: Final = 256


class Sink(Protocol):
    """Who wants a copy of each packet."""

    def take(self, packet: Packet) -> None: ...


class Port(Protocol):
    """What the switch has a cable to."""

    mac: bytes
    is_guarded: bool
    """Whether it may send by its own address only."""

    def deliver(self, packet: Packet, now: float) -> None: ...


@dataclass(slots=True)
class _Address:
    port: Port
    heard_at: float


@dataclass(slots=True, eq=False)
class Switch:
    """One switch. Ports that are guarded have their address from the start; others are learned from what they send."""

    name: str
    ports: list[Port] = field(default_factory=list)
    nr_spoofed: int = 0
    captures: list[Sink] = field(default_factory=list)
    wants_bytes: bool = False
    """While somebody captures: on the switch or on a port of it."""
    _table: dict[bytes, _Address] = field(default_factory=dict)

    def add(self, port: Port) -> None:
        """Connects a port."""
        self.ports.append(port)

    def remove(self, port: Port) -> None:
        """Disconnects a port."""
        self.ports.remove(port)
        for mac in [mac for mac, address in self._table.items() if address.port is port]:
            del self._table[mac]

    def forward(self, source: Port, packet: Packet, now: float) -> None:
        """Delivers a packet where it belongs."""
        mac = packet.source
        if source.is_guarded:
            if mac != source.mac:
                self.nr_spoofed += 1
                return
        elif not mac[0] & 1 and self._find_guarded(mac) is None:
            self._learn(mac, source, now)
        for capture in self.captures:
            capture.take(packet)
        destination = packet.destination
        if not destination[0] & 1:
            target = self._find_guarded(destination)
            if target is None:
                known = self._table.get(destination)
                target = known.port if known is not None and now - known.heard_at < AGE_S else None
            if target is not None:
                if target is not source:
                    target.deliver(packet, now)
                return
        for port in self.ports:
            if port is not source:
                port.deliver(packet, now)

    def _find_guarded(self, mac: bytes) -> Port | None:
        return next((port for port in self.ports if port.is_guarded and port.mac == mac), None)

    def _learn(self, mac: bytes, port: Port, now: float) -> None:
        known = self._table.get(mac)
        if known is not None and known.port is port:
            known.heard_at = now
            return
        mine = [(address.heard_at, other) for other, address in self._table.items() if address.port is port]
        if len(mine) >= NR_ADDRESSES_PER_PORT_MAX:
            del self._table[min(mine)[1]]
        self._table[mac] = _Address(port, now)

"""The transmit ring of one queue: requests to packets, and their responses in the order of the requests.

In order, although netif allows any: a successor of a killed back end then finds in the ring which were answered.
Errors are those of Linux' back end: a packet that makes no sense is answered with an error; a ring that makes no sense
ends the device's service until the front end connects anew.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from ring3.abi import netif
from ring3.abi.netif import (
    NETIF_EXTRA_GSO,
    NETIF_RSP_ERROR,
    NETIF_RSP_NULL,
    NETIF_RSP_OKAY,
    NETIF_TX_REQUEST,
    NETIF_TX_RESPONSE,
    XEN_NETIF_EXTRA_FLAG_MORE,
    XEN_NETIF_NR_SLOTS_MIN,
    NETTXF_csum_blank,
    NETTXF_data_validated,
    NETTXF_extra_info,
    NETTXF_more_data,
)
from ring3.abi.xen import PAGE_SIZE
from ring3.dom0.net.packet import Packet, Part
from ring3.dom0.shared_ring import SharedRing
from ring3.errors import RingError

ETH_HEADER_BYTES: Final = 14
NR_SLOTS_FATAL: Final = 20
"""A packet with more slots is an attack. Source: Linux, drivers/net/xen-netback, fatal_skb_slots."""
NR_MULTICAST_MAX: Final = 64
"""Addresses in a filter. Source: Linux, XEN_NETBK_MCAST_MAX."""
_EXTRA: Final = -1
"""Stands for the request id of an extra info, which has none."""
_NULL_STATUS: Final = NETIF_RSP_NULL.to_bytes(2, "little")

Request = tuple[int, int, int, int, int]
"""gref, offset, flags, id, size."""


@dataclass(slots=True, eq=False)
class _InFlight:
    """A packet that was taken and not yet answered, or (None) one that was refused."""

    packet: Packet | None
    ids: list[int]
    status: int = NETIF_RSP_OKAY


class TxQueue:
    """One transmit ring. Who takes packets sets `nr_users` of each, and calls complete() when some have none left."""

    def __init__(self, page: memoryview, domid: int, multicast: set[bytes] | None = None) -> None:
        """`multicast` is the filter that orders of the front end change."""
        self.ring = SharedRing(page, domid, NETIF_TX_REQUEST, netif.NR_TX_ENTRIES)
        self.domid = domid
        self.in_flight: deque[_InFlight] = deque()
        self.nr_slots_in_flight = 0
        self._multicast = multicast if multicast is not None else set()
        self.has_changed_filter = False
        """Whether orders have come; who takes packets resets it."""

    def take(self, nr_packets_max: int, nr_slots_max: int) -> list[Packet]:
        """Takes packets off the ring: no more once so many slots are taken. Raises RingError: what ends the service."""
        nr_slots = self.ring.nr_requests()
        if nr_slots == 0:
            return []
        requests: list[Request] = self.ring.peek(nr_slots)
        packets: list[Packet] = []
        at = 0
        while at < nr_slots and at < nr_slots_max and len(packets) < nr_packets_max:
            flight, nr_taken = self._one(requests, at)
            at += nr_taken
            self.in_flight.append(flight)
            self.nr_slots_in_flight += nr_taken
            if flight.packet is not None:
                packets.append(flight.packet)
        self.ring.advance(at)
        return packets

    def _one(self, requests: list[Request], at: int) -> tuple[_InFlight, int]:
        """Returns what becomes of the packet that begins there, and how many slots it has."""
        first = at
        gref, offset, flags, number, size = requests[at]
        ids = [number]
        packet = Packet(
            [],
            size,
            is_blank=bool(flags & NETTXF_csum_blank),
            is_validated=bool(flags & (NETTXF_data_validated | NETTXF_csum_blank)),
        )
        at += 1
        order_status = None
        if flags & NETTXF_extra_info:
            at, order_status = self._extras(requests, at, packet)
            ids += [_EXTRA] * (at - first - 1)
        parts: list[Part] = []
        domid, left, is_lie = self.domid, size, False
        nr_slots = 1
        while flags & NETTXF_more_data:
            if at >= len(requests):
                raise RingError(domid, "a packet goes on past the end of the requests")
            ref, start, flags, number, nr_bytes = requests[at]
            at += 1
            nr_slots += 1
            ids.append(number)
            if nr_slots > NR_SLOTS_FATAL:
                raise RingError(domid, f"a packet of more than {NR_SLOTS_FATAL} slots")
            if start + nr_bytes > PAGE_SIZE:
                raise RingError(domid, f"a slot with bytes {start} to {start + nr_bytes} of a page")
            is_lie = is_lie or nr_bytes > left or nr_bytes == 0
            left -= nr_bytes
            parts.append((ref, domid, start, nr_bytes))
        nr_taken = at - first
        if order_status is not None:
            return _InFlight(None, ids, order_status), nr_taken
        if is_lie or size < ETH_HEADER_BYTES or left < ETH_HEADER_BYTES or nr_slots > XEN_NETIF_NR_SLOTS_MIN:
            return _InFlight(None, ids, NETIF_RSP_ERROR), nr_taken
        if offset + left > PAGE_SIZE:
            raise RingError(domid, f"a slot with bytes {offset} to {offset + left} of a page")
        packet.parts = [(gref, domid, offset, left), *parts]
        return _InFlight(packet, ids), nr_taken

    def _extras(self, requests: list[Request], at: int, packet: Packet) -> tuple[int, int | None]:
        """Reads the extra infos from there on; returns where they end, and the status of an order for the filter."""
        status = None
        while True:
            if at >= len(requests):
                raise RingError(self.domid, "an extra info is missing")
            raw = NETIF_TX_REQUEST.pack(*requests[at])
            at += 1
            kind, flags, size, gso_type, _pad, _features = NETIF_EXTRA_GSO.unpack_from(raw)
            if not 0 < kind < netif.XEN_NETIF_EXTRA_TYPE_MAX:
                raise RingError(self.domid, f"an extra info of type {kind}")
            if kind == netif.XEN_NETIF_EXTRA_TYPE_GSO:
                if size == 0 or gso_type not in (netif.XEN_NETIF_GSO_TYPE_TCPV4, netif.XEN_NETIF_GSO_TYPE_TCPV6):
                    raise RingError(self.domid, f"GSO of type {gso_type} and size {size}")
                packet.gso_type, packet.gso_size = gso_type, size
            elif kind != netif.XEN_NETIF_EXTRA_TYPE_HASH:
                status = self._change_filter(raw[2:8], is_added=kind == netif.XEN_NETIF_EXTRA_TYPE_MCAST_ADD)
            if not flags & XEN_NETIF_EXTRA_FLAG_MORE:
                return at, status

    def _change_filter(self, address: bytes, *, is_added: bool) -> int:
        """Carries out an order; returns its status."""
        addresses = self._multicast
        if is_added and address not in addresses and len(addresses) >= NR_MULTICAST_MAX:
            return NETIF_RSP_ERROR
        (addresses.add if is_added else addresses.discard)(address)
        self.has_changed_filter = True
        return NETIF_RSP_OKAY

    def complete(self) -> bool:
        """Answers what is done, from the oldest on; returns whether the front end wants to be notified."""
        ring, in_flight = self.ring, self.in_flight
        while in_flight:
            flight = in_flight[0]
            packet = flight.packet
            if packet is not None and packet.nr_users > 0:
                break
            in_flight.popleft()
            status = NETIF_RSP_ERROR if packet is not None and packet.is_failed else flight.status
            self._answer(flight.ids, status)
            self.nr_slots_in_flight -= len(flight.ids)
        return ring.push()

    def _answer(self, ids: list[int], status: int) -> None:
        put = self.ring.put
        for number in ids:
            if number == _EXTRA:
                # Type and flags stay: a successor may have to read this slot as a request.
                put(_NULL_STATUS, 2)
            else:
                put(NETIF_TX_RESPONSE.pack(number, status))

    def give_up(self) -> None:
        """Answers with an error what a killed predecessor may have begun: it may have been sent, or half answered.

        Raises RingError.
        """
        self.take(self.ring.nr_entries, self.ring.nr_entries)
        for flight in self.in_flight:
            self._answer(flight.ids, NETIF_RSP_ERROR)
        self.in_flight.clear()
        self.nr_slots_in_flight = 0
        self.ring.push()

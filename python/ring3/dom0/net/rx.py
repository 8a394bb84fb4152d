"""The receive ring of one queue: packets that wait for buffers of the front end, and the copies into these."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

from ring3.abi import netif
from ring3.abi.netif import (
    NETIF_EXTRA_GSO,
    NETIF_EXTRA_HASH,
    NETIF_RSP_ERROR,
    NETIF_RX_REQUEST,
    NETIF_RX_RESPONSE,
    XEN_NETIF_EXTRA_FLAG_MORE,
    NETRXF_csum_blank,
    NETRXF_data_validated,
    NETRXF_extra_info,
    NETRXF_more_data,
)
from ring3.abi.xen import PAGE_SIZE
from ring3.dom0.net.hashing import Hashing
from ring3.dom0.net.packet import Packet
from ring3.dom0.shared_ring import SharedRing
from ring3.libs.gnttab_copy import copy_op

NR_WAITING_MAX: Final = 256
"""Packets that wait for one queue; more are dropped."""
STALL_S: Final = 1.0
"""A front end that gives no buffer for so long loses what waits: others wait with it."""


@dataclass(slots=True, eq=False)
class _Delivery:
    """A packet whose copies are under way: these operations, these slots."""

    packet: Packet
    first_op: int
    end_op: int
    ids: list[int]
    slots: list[int]
    """Bytes in each buffer."""
    extras: list[bytes]
    """Infos, each in a slot after the first."""


class RxQueue:
    """One receive ring. A turn: fill(), then the copies are made, then finish()."""

    def __init__(self, page: memoryview, domid: int, hashing: Hashing | None = None) -> None:
        self.ring = SharedRing(page, domid, NETIF_RX_REQUEST, netif.NR_RX_ENTRIES)
        self._hashing = hashing if hashing is not None else Hashing()
        self.domid = domid
        self.waiting: deque[Packet] = deque()
        self.progress_at = 0.0
        """When it last had a buffer, or had nothing to wait for."""
        self.is_stalled = False
        self.nr_dropped = 0
        self._deliveries: list[_Delivery] = []

    def offer(self, packet: Packet, now: float) -> None:
        """Takes a packet for delivery, or drops it where the front end takes none."""
        if self.is_stalled or len(self.waiting) >= NR_WAITING_MAX:
            self.nr_dropped += 1
            return
        if not self.waiting:
            self.progress_at = now
        packet.nr_users += 1
        self.waiting.append(packet)

    def fill(self, ops: list[bytes], now: float) -> None:
        """Appends the copies for as many packets as there are buffers for. Raises RingError."""
        if not self.waiting:
            return
        nr_free = self.ring.nr_requests()
        if nr_free == 0:
            return
        requests = self.ring.peek(nr_free)
        at = 0
        while self.waiting:
            packet = self.waiting[0]
            if packet.is_dead:
                self.waiting.popleft()
                packet.drop_user()
                continue
            nr_slots = self._place(packet, requests, at, ops)
            if nr_slots == 0:
                break
            at += nr_slots
            self.waiting.popleft()
        if at:
            self.is_stalled = False
            self.progress_at = now
            self.ring.advance(at)

    def _place(self, packet: Packet, requests: list[tuple[int, int, int]], at: int, ops: list[bytes]) -> int:
        """Appends the copies of one packet; returns the slots that it takes, 0 if there are too few.

        A part goes where it fits whole, so that a copy never has to be split and a packet takes no more slots here
        than it took where it comes from.
        """
        first_op, domid = len(ops), self.domid
        extras = self._extras(packet) if packet.gso_type or self._hashing.is_on else []
        next_at = at + 1 + len(extras)
        nr_requests = len(requests)
        if next_at > nr_requests:
            return 0
        number, _pad, gref = requests[at]
        ids, slots = [number, *(other for other, _pad, _gref in requests[at + 1 : next_at])], []
        used = 0
        for ref, source, offset, nr_bytes in packet.parts:
            if used + nr_bytes > PAGE_SIZE:
                if next_at >= nr_requests:
                    del ops[first_op:]
                    return 0
                slots.append(used)
                number, _pad, gref = requests[next_at]
                ids.append(number)
                next_at += 1
                used = 0
            ops.append(copy_op(ref, source, offset, gref, domid, used, nr_bytes))
            used += nr_bytes
        slots.append(used)
        self._deliveries.append(_Delivery(packet, first_op, len(ops), ids, slots, extras))
        return next_at - at

    def _extras(self, packet: Packet) -> list[bytes]:
        """Returns the infos that go with a packet."""
        found = self._hashing.packet_hash(packet.header) if self._hashing.is_on else None
        more = XEN_NETIF_EXTRA_FLAG_MORE if found is not None else 0
        extras = []
        if packet.gso_type:
            gso = (packet.gso_size, packet.gso_type, 0, 0)
            extras.append(NETIF_EXTRA_GSO.pack(netif.XEN_NETIF_EXTRA_TYPE_GSO, more, *gso))
        if found is not None:
            extras.append(
                NETIF_EXTRA_HASH.pack(
                    netif.XEN_NETIF_EXTRA_TYPE_HASH, 0, found.kind, self._hashing.algorithm, found.value
                )
            )
        return extras

    def finish(self, statuses: list[int] | None) -> bool:
        """Answers the requests that were used, when the copies were made; returns whether to notify."""
        for delivery in self._deliveries:
            packet = delivery.packet
            if statuses is not None and any(statuses[delivery.first_op : delivery.end_op]):
                for number in delivery.ids:
                    self.ring.put(NETIF_RX_RESPONSE.pack(number, 0, 0, NETIF_RSP_ERROR))
            else:
                self._answer(delivery)
            packet.drop_user()
        self._deliveries.clear()
        return self.ring.push()

    def _answer(self, delivery: _Delivery) -> None:
        packet, slots, ids = delivery.packet, delivery.slots, iter(delivery.ids)
        put, pack = self.ring.put, NETIF_RX_RESPONSE.pack
        flags = NETRXF_csum_blank | NETRXF_data_validated if packet.is_blank else 0
        if packet.is_validated:
            flags |= NETRXF_data_validated
        if delivery.extras:
            flags |= NETRXF_extra_info
        last = len(slots) - 1
        put(pack(next(ids), 0, flags | (NETRXF_more_data if last else 0), slots[0]))
        for extra in delivery.extras:
            next(ids)
            put(extra)
        for index, number in enumerate(ids, 1):
            put(pack(number, 0, NETRXF_more_data if index < last else 0, slots[index]))

    def drop_stalled(self, now: float) -> bool:
        """Drops what has waited too long; returns whether that was so."""
        if not self.waiting or now - self.progress_at < STALL_S:
            return False
        self.is_stalled = True
        self.drop_all()
        return True

    def drop_all(self) -> None:
        """Drops all that waits."""
        self.nr_dropped += len(self.waiting)
        while self.waiting:
            self.waiting.popleft().drop_user()

    def wake(self) -> None:
        """The front end has said something: it may take packets again."""
        self.is_stalled = False

    def give_up(self) -> None:
        """Answers with an error the buffers that a killed predecessor may have begun to answer: they come back.

        Raises RingError.
        """
        nr = self.ring.nr_requests()
        for number, _pad, _gref in self.ring.peek(nr):
            self.ring.put(NETIF_RX_RESPONSE.pack(number, 0, 0, NETIF_RSP_ERROR))
        self.ring.advance(nr)
        self.ring.push()

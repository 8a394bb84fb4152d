"""A turn of all vifs: packets are taken off the rings, routed, and copied, with two hypercalls however many there are.

First what must be looked at comes to domain 0 (headers, or whole packets for those who want bytes); then everything
goes straight from the sender's pages to the receiver's. What was looked at is what is delivered: a header is delivered
from domain 0's copy, since the sender may change its own meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from ring3.abi.xen import DOMID_SELF, PAGE_SIZE
from ring3.dom0.net import offload
from ring3.dom0.net.packet import HEADER_BYTES, HEADER_BYTES_USUAL, Packet, Part
from ring3.dom0.net.rx import STALL_S
from ring3.dom0.net.vif import Queue, Vif
from ring3.errors import RingError
from ring3.libs.connection import Connection
from ring3.libs.gnttab_copy import copy_op, run_copies

_log = logging.getLogger(__name__)
_NR_SLOTS_RESERVE: Final = 20
"""A packet may have so many slots more than were asked for."""


class Plumbing:
    """All vifs that are connected."""

    def __init__(self, conn: Connection, break_vif: Callable[[Vif, str], None]) -> None:
        """`break_vif` is told of a front end whose ring makes no sense."""
        self._conn = conn
        self._break_vif = break_vif
        self.vifs: list[Vif] = []
        self._look: list[tuple[Vif, Packet, int, int]] = []
        self._ops: list[bytes] = []

    def turn(self, now: float) -> float | None:
        """Moves what can be moved. Returns the seconds until the next turn is due, None if only an event brings one."""
        self._control()
        delay = self._take(now)
        self._route(now)
        self._fit(now)
        self._deliver(now)
        self.complete()
        for vif in self.vifs:
            if vif.control is not None and vif.control.ring.is_pending:
                delay = 0.0
            for queue in vif.queues:
                if queue.is_tx_pending:
                    # Unless it waits for its credit, or for its own packets to be taken.
                    delay = 0.0 if self._may_take(vif, now) else delay
                if queue.rx.waiting and not queue.rx.drop_stalled(now):
                    delay = STALL_S if delay is None else min(delay, STALL_S)
        return delay

    @staticmethod
    def _may_take(vif: Vif, now: float) -> bool:
        if vif.credit is not None and vif.credit.renew(now) > 0:
            return False
        return vif.area.nr_slots > _NR_SLOTS_RESERVE if vif.network.wants_bytes else vif.area.nr_cells > 0

    def _control(self) -> None:
        for vif in list(self.vifs):
            control = vif.control
            if control is not None and control.ring.is_pending:
                try:
                    control.must_notify |= control.ring.serve(vif.keep)
                except RingError as error:
                    self._break_vif(vif, str(error))

    # -- out of the rings

    def _take(self, now: float) -> float | None:
        delay: float | None = None
        self._look.clear()
        self._ops = []
        for vif in list(self.vifs):
            for queue in vif.queues:
                if not queue.is_tx_pending:
                    continue
                if vif.credit is not None and (wait_s := vif.credit.renew(now)) > 0:
                    delay = wait_s if delay is None else min(delay, wait_s)
                    continue
                try:
                    self._take_from(vif, queue)
                except RingError as error:
                    self._break_vif(vif, str(error))
                    break
        return delay

    def _take_from(self, vif: Vif, queue: Queue) -> None:
        area, is_whole = vif.area, vif.network.wants_bytes
        nr_packets_max = area.nr_slots if is_whole else area.nr_cells
        nr_slots_max = area.nr_slots - _NR_SLOTS_RESERVE if is_whole else queue.tx.ring.nr_entries
        if nr_packets_max <= 0 or nr_slots_max <= 0:
            return
        packets = queue.tx.take(nr_packets_max, nr_slots_max)
        if queue.tx.has_changed_filter:
            queue.tx.has_changed_filter = False
            vif.keep()
        ops, mfns = self._ops, area.mfns
        for packet in packets:
            first = len(ops)
            copies = area.take_whole(packet) if is_whole else area.take_header(packet)
            for (ref, domid, offset, nr_bytes), page, at in copies:
                ops.append(copy_op(ref, domid, offset, mfns[page], DOMID_SELF, at, nr_bytes))
            packet.nr_users = 1  # until it is routed
            self._look.append((vif, packet, first, len(ops)))
            if vif.credit is not None:
                vif.credit.spend(packet.nr_bytes)
        vif.nr_packets_out += len(packets)
        queue.is_tx_pending = queue.tx.ring.arm()

    def _route(self, now: float) -> None:
        if not self._look:
            return
        statuses = run_copies(self._conn, self._ops) if self._ops else None
        for vif, packet, first, end in self._look:
            if statuses is not None and any(statuses[first:end]):
                packet.is_failed = True
            elif vif.queues:
                packet.header = _header(vif, packet)
                for capture in vif.captures:
                    capture.take(packet)
                if vif.ip_guard is None or vif.ip_guard.allows(packet.header):
                    vif.network.forward(vif, packet, now)
                else:
                    vif.nr_spoofed += 1
            packet.drop_user()

    # -- into the rings

    def _fit(self, now: float) -> None:
        """Makes packets fit front ends that lack an offload."""
        for vif in self.vifs:
            if not vif.unfit:
                continue
            packets, vif.unfit = vif.unfit, []
            for packet in packets:
                data = self._bytes_of(vif, packet)
                if data is not None:
                    for fitting in _fitting(vif, packet, data):
                        vif.offer(fitting, now)
                packet.drop_user()

    def _bytes_of(self, vif: Vif, packet: Packet) -> bytes | None:
        """Returns a copy of a packet's bytes; None if they cannot be had."""
        if packet.views:
            return b"".join(packet.views)
        buffer = vif.area.take_buffer(max(packet.nr_bytes, PAGE_SIZE + 1))
        if buffer is None:
            return None
        page, _view = buffer
        try:
            ops, at = [], 0
            for part in packet.parts:
                for (ref, domid, offset, nr_bytes), where in _split(part, at):
                    mfn = vif.area.mfns[page + where // PAGE_SIZE]
                    ops.append(copy_op(ref, domid, offset, mfn, DOMID_SELF, where % PAGE_SIZE, nr_bytes))
                at += part[3]
            if run_copies(self._conn, ops) is not None:
                return None
            return vif.area.read(page, packet.nr_bytes)
        finally:
            vif.area.give_buffer(page)

    def _deliver(self, now: float) -> None:
        ops: list[bytes] = []
        queues = []
        for vif in list(self.vifs):
            for queue in vif.queues:
                if not queue.rx.waiting:
                    continue
                before = len(ops)
                try:
                    queue.rx.fill(ops, now)
                    if queue.rx.waiting and queue.rx.ring.arm():
                        queue.rx.fill(ops, now)
                except RingError as error:
                    del ops[before:]
                    self._break_vif(vif, str(error))
                    break
                if len(ops) > before:
                    queues.append(queue)
        statuses = run_copies(self._conn, ops) if ops else None
        for queue in queues:
            queue.must_notify_rx |= queue.rx.finish(statuses)

    def complete(self) -> None:
        """Answers the requests of packets that have no user any more."""
        for vif in self.vifs:
            for queue in vif.queues:
                if queue.tx.in_flight:
                    queue.must_notify_tx |= queue.tx.complete()


def _header(vif: Vif, packet: Packet) -> bytes:
    """Returns what was copied of a packet's start."""
    if packet.views:
        first = packet.views[0]
        if len(first) >= HEADER_BYTES_USUAL or len(packet.views) == 1:
            return bytes(first[:HEADER_BYTES])
        return b"".join(packet.views[:4])[:HEADER_BYTES]
    return vif.area.header_of(packet)


def _fitting(vif: Vif, packet: Packet, data: bytes) -> list[Packet]:
    if packet.gso_type:
        frames = offload.segment(data, packet.gso_size)
    else:
        frame = bytearray(data)
        offload.fill_checksum(frame)
        frames = [frame]
    fitting = []
    for frame in frames:
        made = vif.area.packet_of(frame)
        if made is not None:
            made.is_validated = packet.is_validated
            fitting.append(made)
    return fitting


def _split(part: Part, at: int) -> list[tuple[Part, int]]:
    """Returns the pieces of a part that is copied to `at`, so that none crosses a page there."""
    ref, domid, offset, nr_bytes = part
    pieces: list[tuple[Part, int]] = []
    while nr_bytes:
        step = min(nr_bytes, PAGE_SIZE - at % PAGE_SIZE)
        pieces.append(((ref, domid, offset, step), at))
        offset, at, nr_bytes = offset + step, at + step, nr_bytes - step
    return pieces

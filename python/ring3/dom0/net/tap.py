"""A vif's way to a bridge of the host: a tap that the toolstack has opened. Packets have virtio's header before them.

Source: Linux, linux/virtio_net.h; Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import logging
import os
import select
import struct
from collections import deque
from typing import TYPE_CHECKING, Final

from ring3.abi.netif import XEN_NETIF_GSO_TYPE_NONE, XEN_NETIF_GSO_TYPE_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6
from ring3.dom0.net import offload
from ring3.dom0.net.packet import Packet

if TYPE_CHECKING:
    from ring3.dom0.net.vif import Vif
    from ring3.dom0.poller import Poller

_log = logging.getLogger(__name__)
_HEADER: Final = struct.Struct("<BBHHHH")
"""flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; 10 bytes."""
_NEEDS_CSUM, _DATA_VALID = 1, 2
_GSO_TCPV4, _GSO_TCPV6, _GSO_ECN = 1, 4, 0x80
_TO_VIRTIO: Final = {XEN_NETIF_GSO_TYPE_TCPV4: _GSO_TCPV4, XEN_NETIF_GSO_TYPE_TCPV6: _GSO_TCPV6}
_FROM_VIRTIO: Final = {value: key for key, value in _TO_VIRTIO.items()}
_FRAME_BYTES_MAX: Final = 0xFFFF
_NR_FRAMES_PER_TURN: Final = 64
_TCP: Final = 6


class TapNetwork:
    """A vif's tap."""

    wants_bytes = True
    is_connected = True

    def __init__(self, fd: int, vif: Vif, poller: Poller) -> None:
        """Takes over the descriptor."""
        self._fd = fd
        self._vif = vif
        self._poller = poller
        self._queue: deque[Packet] = deque()
        self._is_readable = True
        self._is_blocked = False
        self._is_starved = False
        """Whether there was no buffer for what comes next."""
        os.set_blocking(fd, False)

    def connect(self, _now: float) -> bool:
        """It is connected from the start."""
        return True

    def close(self) -> None:
        """Closes it."""
        self._poller.forget(self._fd)
        os.close(self._fd)
        while self._queue:
            self._queue.popleft().drop_user()

    def forward(self, vif: Vif, packet: Packet, _now: float) -> None:
        """Sends a packet, unless it comes from an address that is not the vif's."""
        if vif.is_guarded and packet.source != vif.mac:
            return
        packet.nr_users += 1
        self._queue.append(packet)

    def flush(self) -> None:
        """Sends what the host takes."""
        while self._queue and not self._is_blocked:
            packet = self._queue[0]
            try:
                os.writev(self._fd, [_header_of(packet), *packet.views])
            except BlockingIOError:
                self._is_blocked = True
                self._watch()
                return
            except OSError as error:
                _log.info("%s: %s", self._vif.name, error)  # the host refuses it
            self._queue.popleft()
            packet.drop_user()

    def has_more(self) -> bool:
        """Returns whether receive() would find something, and room for it: to be asked when packets were delivered."""
        return self._is_readable and self._vif.has_room(is_starved=self._is_starved)

    def receive(self, now: float) -> None:
        """Delivers what has come, as far as the domain takes it."""
        vif = self._vif
        if not self._is_readable:
            return
        self._is_starved = False
        for _number in range(_NR_FRAMES_PER_TURN):
            if vif.is_full():
                return
            taken = vif.area.take_buffer(_FRAME_BYTES_MAX)
            if taken is None:
                self._is_starved = True
                return
            page, buffer = taken
            header = bytearray(_HEADER.size)
            try:
                nr_bytes = os.readv(self._fd, [header, buffer]) - _HEADER.size
            except OSError as error:
                vif.area.give_buffer(page)
                self._is_readable = False
                if isinstance(error, BlockingIOError):
                    self._watch()
                else:  # the tap was removed
                    _log.warning("%s: its tap: %s", vif.name, error.strerror)
                    self._poller.forget(self._fd)
                return
            self._deliver(page, nr_bytes, header, now)

    def _deliver(self, page: int, nr_bytes: int, header: bytearray, now: float) -> None:
        packet = self._vif.area.packet_in(page, nr_bytes)
        packet.nr_users = 1
        flags, gso_type, _length, gso_size, _start, _offset = _HEADER.unpack(header)
        packet.is_blank = bool(flags & _NEEDS_CSUM)
        packet.is_validated = bool(flags & (_NEEDS_CSUM | _DATA_VALID))
        kind = _FROM_VIRTIO.get(gso_type & ~_GSO_ECN, XEN_NETIF_GSO_TYPE_NONE)
        if kind and gso_size:
            packet.gso_type, packet.gso_size = kind, gso_size
        if nr_bytes >= 14:
            self._vif.deliver(packet, now)
        packet.drop_user()

    def _watch(self) -> None:
        events = (0 if self._is_readable else select.EPOLLIN) | (select.EPOLLOUT if self._is_blocked else 0)
        self._poller.watch(self._fd, events, self._ready)

    def _ready(self, events: int) -> None:
        self._is_readable = self._is_readable or bool(events & (select.EPOLLIN | select.EPOLLERR))
        self._is_blocked = self._is_blocked and not events & (select.EPOLLOUT | select.EPOLLERR)
        self._watch()


def _header_of(packet: Packet) -> bytes:
    """Returns virtio's header for a packet of a domain; a blank checksum that cannot be placed is left as it is."""
    found = offload.transport(packet.header) if packet.is_blank or packet.gso_type else None
    if found is None:
        return _HEADER.pack(_DATA_VALID if packet.is_validated and not packet.is_blank else 0, 0, 0, 0, 0, 0)
    _ip, at, protocol = found
    where = 16 if protocol == _TCP else 6
    if not packet.gso_type or protocol != _TCP:
        return _HEADER.pack(_NEEDS_CSUM, 0, 0, 0, at, where)
    head_bytes = at + (packet.header[at + 12] >> 4) * 4
    return _HEADER.pack(_NEEDS_CSUM, _TO_VIRTIO[packet.gso_type], head_bytes, packet.gso_size, at, where)

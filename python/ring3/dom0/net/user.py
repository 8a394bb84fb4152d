"""A vif's way out without root: a passt process, which does NAT, DHCP, DNS and port forwards with ordinary sockets.

Packets go over a Unix stream socket, each after its length (big-endian, 32 bits), as to QEMU. passt takes packets of
any length up to 64 KiB, does not look at checksums of TCP and UDP that come from here, and makes right ones.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import struct
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.dom0.net import offload
from ring3.dom0.net.packet import Packet

if TYPE_CHECKING:
    from ring3.dom0.net.vif import Vif
    from ring3.dom0.poller import Poller

_log = logging.getLogger(__name__)
_LENGTH: Final = struct.Struct("!I")
_FRAME_BYTES_MAX: Final = 0xFFFF
_NR_VECTORS_MAX: Final = 512
_ATOMIC_BYTES: Final = 34_000
"""What the socket takes as one buffer (Linux: 36,544 bytes), so that a reader finds all or none. passt reads a frame by
two reads at most: one that comes in three buffers may be lost, with all that has come along.
"""
_NR_FRAMES_PER_TURN: Final = 64
RETRY_S: Final = 0.05
_BUFFER_BYTES: Final = 4 << 20


class UserNetwork:
    """A vif's connection to its passt. Connects again when that ends: what is under way is lost, as on a wire."""

    wants_bytes = True

    def __init__(self, path: Path, poller: Poller) -> None:
        self._path = path
        self._poller = poller
        self._sock: socket.socket | None = None
        self._queue: deque[tuple[Packet, list[memoryview], int]] = deque()
        """Frames: the packet, what is not sent of them, and the length."""
        self._is_blocked = False
        self.vif: Vif | None = None
        self.retry_at = 0.0
        self.is_readable = False
        self._is_starved = False
        """Whether there was no buffer for what comes next."""
        self._length = b""
        """What has come of the next frame's length."""
        self._nr_frame_bytes = 0
        self._nr_read = 0
        """Of the frame, and of the next one's length, which is read along."""
        self._page = -1
        self._buffer: memoryview | None = None

    @property
    def is_connected(self) -> bool:
        """Whether passt is there."""
        return self._sock is not None

    def connect(self, now: float) -> bool:
        """Tries to connect; returns whether it is connected."""
        if self._sock is not None:
            return True
        if now < self.retry_at:
            return False
        self.retry_at = now + RETRY_S
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            return False
        sock.setblocking(False)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
        self._sock = sock
        self._begin_frame()
        self._is_blocked = False
        self.is_readable = True
        self._watch()
        return True

    def close(self) -> None:
        """Disconnects, and drops what was to be sent."""
        if self._sock is not None:
            self._poller.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None
        for packet, _views, _nr_bytes in self._queue:
            packet.drop_user()
        self._queue.clear()
        self._give_up_frame()

    # -- from the domain

    def forward(self, vif: Vif, packet: Packet, _now: float) -> None:
        """Sends a packet, unless it comes from an address that is not the vif's."""
        if self._sock is None or (vif.is_guarded and packet.source != vif.mac):
            return
        for views in offload.cut(packet.views, packet.header, packet.nr_bytes, _ATOMIC_BYTES):
            nr_bytes = sum(map(len, views))
            packet.nr_users += 1
            self._queue.append((packet, [memoryview(_LENGTH.pack(nr_bytes)), *views], nr_bytes))

    def flush(self) -> None:
        """Sends what the socket takes, in messages that it takes whole."""
        while self._queue and self._sock is not None and not self._is_blocked:
            vectors: list[memoryview] = []
            nr_bytes = 0
            for _packet, views, nr_frame_bytes in self._queue:
                nr_bytes += nr_frame_bytes + _LENGTH.size
                if vectors and (nr_bytes > _ATOMIC_BYTES + _LENGTH.size or len(vectors) > _NR_VECTORS_MAX):
                    break
                vectors += views
            try:
                nr_sent = self._sock.sendmsg(vectors)
            except BlockingIOError:
                self._is_blocked = True
                self._watch()
                return
            except OSError as error:
                self._lose(error)
                return
            self._sent(nr_sent)

    def _sent(self, nr_bytes: int) -> None:
        while nr_bytes:
            packet, views, _nr_bytes = self._queue[0]
            while views and nr_bytes >= len(views[0]):
                nr_bytes -= len(views.pop(0))
            if views:
                views[0] = views[0][nr_bytes:]
                return
            self._queue.popleft()
            packet.drop_user()

    # -- to the domain

    def has_more(self) -> bool:
        """Returns whether receive() would find something, and room for it: to be asked when packets were delivered."""
        vif = self.vif
        if self._sock is None or vif is None or not self.is_readable:
            return False
        return vif.has_room(is_starved=self._is_starved)

    def receive(self, now: float) -> None:
        """Delivers what has come, as far as the domain takes it."""
        vif = self.vif
        if self._sock is None or vif is None or not self.is_readable:
            return
        self._is_starved = False
        for _number in range(_NR_FRAMES_PER_TURN):
            if vif.is_full():
                return
            try:
                if not self._receive_some(vif, now):
                    self._is_starved = True
                    return
            except BlockingIOError:
                self.is_readable = False
                self._watch()
                return
            except OSError as error:
                self._lose(error)
                return

    def _receive_some(self, vif: Vif, now: float) -> bool:
        """Reads once: the frame that has begun, and the length of the next. Returns False for lack of a buffer."""
        sock = self._sock
        if sock is None:
            return False
        if self._nr_frame_bytes == 0:
            self._length += self._read(sock, _LENGTH.size - len(self._length))
            if len(self._length) == _LENGTH.size:
                self._set_length(self._length)
            return True
        if self._buffer is None:
            taken = vif.area.take_buffer(self._nr_frame_bytes + _LENGTH.size)
            if taken is None:
                return False
            self._page, self._buffer = taken
        nr_bytes = sock.recv_into(self._buffer[self._nr_read :])
        if nr_bytes == 0:
            raise ConnectionResetError("passt has ended")
        self._nr_read += nr_bytes
        nr_more = self._nr_read - self._nr_frame_bytes
        if nr_more < 0:
            return True
        following = bytes(self._buffer[self._nr_frame_bytes : self._nr_read])
        page, nr_frame_bytes = self._page, self._nr_frame_bytes
        self._begin_frame()
        packet = vif.area.packet_in(page, nr_frame_bytes)
        packet.is_validated = True
        packet.nr_users = 1
        if nr_frame_bytes >= 14:
            vif.deliver(packet, now)
        packet.drop_user()
        self._length = following
        if nr_more == _LENGTH.size:
            self._set_length(following)
        return True

    @staticmethod
    def _read(sock: socket.socket, nr_bytes: int) -> bytes:
        data = sock.recv(nr_bytes)
        if not data:
            raise ConnectionResetError("passt has ended")
        return data

    def _set_length(self, raw: bytes) -> None:
        (self._nr_frame_bytes,) = _LENGTH.unpack(raw)
        self._length = b""
        if not 0 < self._nr_frame_bytes <= _FRAME_BYTES_MAX:
            raise ConnectionResetError(f"passt sends a frame of {self._nr_frame_bytes} bytes")

    def _begin_frame(self) -> None:
        self._length = b""
        self._nr_frame_bytes = 0
        self._nr_read = 0
        self._page = -1
        self._buffer = None

    def _give_up_frame(self) -> None:
        if self._buffer is not None and self.vif is not None:
            self.vif.area.give_buffer(self._page)
        self._begin_frame()

    # -- the socket

    def _lose(self, error: OSError) -> None:
        _log.warning("%s: %s; connecting again", self.vif.name if self.vif is not None else self._path, error)
        self.close()

    def _watch(self) -> None:
        if self._sock is not None:
            events = (0 if self.is_readable else select.EPOLLIN) | (select.EPOLLOUT if self._is_blocked else 0)
            self._poller.watch(self._sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
            self.is_readable = True
        if events & (select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR):
            self._is_blocked = False
        self._watch()

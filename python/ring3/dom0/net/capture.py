"""Captures: copies of the packets of a switch or a vif, for whoever asks at a Unix socket (`libs.capture` says how).

Packets are as a back end sees them: large ones are not yet cut into segments, and the checksum of one that has not left
the machine may still be blank.
"""

from __future__ import annotations

import logging
import select
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.dom0.net.switch import Switch
from ring3.errors import Error
from ring3.libs.capture import RECORD, SNAPLEN_MAX, SOCKET_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

    from ring3.dom0.net.networks import Networks
    from ring3.dom0.net.packet import Packet
    from ring3.dom0.net.vif import Vif
    from ring3.dom0.poller import Poller

_log = logging.getLogger(__name__)
_QUEUE_BYTES_MAX: Final = 8 << 20
_REQUEST_BYTES_MAX: Final = 256
_NR_CLIENTS_MAX: Final = 16


class Capture:
    """One client. It never makes a packet wait: what it does not read is left out, and counted."""

    def __init__(self, sock: socket.socket, poller: Poller, changed: Callable[[Capture], None]) -> None:
        """`changed` is told when it has asked for something (`source`), and when it is gone (`is_over`)."""
        self._sock = sock
        self._poller = poller
        self._changed = changed
        self._request = b""
        self._queue = bytearray()
        self._nr_lost = 0
        self._is_loss_told = True
        self._is_blocked = False
        self.snaplen = 0
        self.source: str | None = None
        self.is_over = False
        sock.setblocking(False)
        self._watch()

    def take(self, packet: Packet) -> None:
        """Keeps a copy of a packet."""
        # One that was under way when the capture began has its header here only.
        data = b"".join(packet.views) if packet.views else packet.header
        self.add(data[: self.snaplen], packet.nr_bytes, time.time())

    def add(self, data: bytes, nr_bytes: int, now: float) -> None:
        """Queues a record."""
        if len(self._queue) > _QUEUE_BYTES_MAX:
            self._nr_lost += 1
            self._is_loss_told = False
            return
        self._queue += RECORD.pack(int(now), int(now % 1 * 1e6), len(data), nr_bytes)
        self._queue += data

    def answer(self, text: str) -> None:
        """Queues a line."""
        self._queue += text.encode(errors="replace") + b"\n"

    def flush(self) -> None:
        """Sends what the client takes."""
        while self._queue and not self._is_blocked and not self.is_over:
            try:
                nr_sent = self._sock.send(self._queue)
            except BlockingIOError:
                self._is_blocked = True
                self._watch()
                return
            except OSError:
                self.close()
                return
            del self._queue[:nr_sent]
            if not self._is_loss_told and not self._queue:
                self._queue += RECORD.pack(0, 0, 0, self._nr_lost)
                self._is_loss_told = True

    def close(self) -> None:
        """Ends it. What the socket has not taken is lost."""
        if not self.is_over:
            self.is_over = True
            self._poller.forget(self._sock.fileno())
            self._sock.close()
            self._changed(self)

    def _watch(self) -> None:
        events = select.EPOLLIN | (select.EPOLLOUT if self._is_blocked else 0)
        self._poller.watch(self._sock.fileno(), events, self._ready)

    def _ready(self, events: int) -> None:
        if events & select.EPOLLOUT:
            self._is_blocked = False
            self._watch()
            self.flush()
        if events & ~select.EPOLLOUT and not self.is_over:
            self._receive()

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_REQUEST_BYTES_MAX)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or self.source is not None or len(self._request + data) > _REQUEST_BYTES_MAX:
            self.close()  # nobody says anything more than once
            return
        self._request += data
        line, newline, rest = self._request.partition(b"\n")
        if rest:
            self.close()
        elif newline:
            source, _blank, snaplen = line.decode(errors="replace").strip().rpartition(" ")
            self.snaplen = min(int(snaplen), SNAPLEN_MAX) if snaplen.isdecimal() and len(snaplen) < 10 else SNAPLEN_MAX
            self.source = source
            self._changed(self)
            self.flush()


class Captures:
    """The socket, and who captures what."""

    def __init__(self, directory: Path, poller: Poller, networks: Networks) -> None:
        self._poller = poller
        self._networks = networks
        self._clients: list[Capture] = []
        path = directory / SOCKET_NAME
        path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._listener.bind(str(path))
        self._listener.listen()
        self._listener.setblocking(False)
        networks.on_leave = self._forget
        poller.watch(self._listener.fileno(), select.EPOLLIN, self._accept)

    def flush(self) -> None:
        """Sends what was captured."""
        for client in list(self._clients):
            client.flush()

    def close(self) -> None:
        """Ends them all."""
        for client in list(self._clients):
            client.close()
        self._poller.forget(self._listener.fileno())
        self._listener.close()

    def _accept(self, _events: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError:
            return
        if len(self._clients) >= _NR_CLIENTS_MAX:
            sock.close()
            return
        self._clients.append(Capture(sock, self._poller, self._changed))

    def _changed(self, client: Capture) -> None:
        if client.is_over:
            self._clients.remove(client)
            for captures in (point.captures for point in self._networks.points()):
                if client in captures:
                    captures.remove(client)
        elif client.source is not None:
            try:
                self._find(client.source).captures.append(client)
                client.answer("ok")
                _log.info("%s is captured", client.source)
            except Error as error:
                client.answer(f"error {error}")
        self._networks.want_bytes()

    def _find(self, source: str) -> Vif | Switch:
        kind, _blank, rest = source.partition(" ")
        domid, _blank, number = rest.partition(" ")
        for point in self._networks.points():
            if isinstance(point, Switch):
                if kind == "switch" and point.name == rest:
                    return point
            elif kind == "vif" and (domid, number) == (str(point.device.domid), str(point.device.number)):
                return point
        raise Error(f"there is no {'vif ' + domid + '.' + number if kind == 'vif' else source}")

    def _forget(self, point: Vif | Switch) -> None:
        """Ends the captures of what is gone."""
        for client in [client for client in self._clients if client in point.captures]:
            client.flush()
            client.close()

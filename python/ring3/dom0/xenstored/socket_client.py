"""A dom0 process that speaks to xenstored over the Unix socket."""

from __future__ import annotations

import socket
from typing import Final

from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.image import SavedConnection
from ring3.dom0.xenstored.wire import Decoder, Message, ProtocolError

UNSENT_BYTES_MAX: Final = 8 << 20
"""A client that leaves more than this unread is disconnected."""
FIRST_CONN_ID: Final = 0x10000
"""Above every domid: the connection of descriptor n has this plus n."""
_CHUNK_BYTES: Final = 8 << 10
"""Of what is read at once: room for a request of any size; more would cost each small one the allocation."""


class SocketConnection:
    """One accepted, non-blocking connection; privileged, as all of domain 0."""

    def __init__(self, sock: socket.socket, waiting: set[Client] | None = None) -> None:
        self.sock = sock
        self.client = Client(0, is_privileged=True, waiting=waiting)
        self.is_blocked = False
        """Whether bytes wait for the socket to take them."""
        self._decoder = Decoder()
        self._unsent = b""

    def receive(self) -> list[Message] | None:
        """Returns complete requests, or None when the client is gone or speaks nonsense."""
        try:
            data = self.sock.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        if not data:
            return None
        try:
            return self._decoder.feed(data)
        except ProtocolError:
            return None

    def flush(self) -> bool:
        """Sends what is queued, as far as possible. Returns False when the client has to go."""
        client = self.client
        outgoing = client.outgoing
        if len(outgoing) == 1 and not self._unsent:
            unsent = outgoing.popleft()
            client.taken(unsent)
        else:
            for encoded in outgoing:
                client.taken(encoded)
            unsent = self._unsent + b"".join(outgoing)
            outgoing.clear()
        while unsent:
            try:
                nr_sent = self.sock.send(unsent)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                return False
            if nr_sent == len(unsent):
                unsent = b""
                break
            unsent = unsent[nr_sent:]
        self._unsent = unsent
        self.is_blocked = bool(unsent)
        return len(unsent) <= UNSENT_BYTES_MAX

    def save(self) -> SavedConnection:
        """Returns what a program that takes the place of this one has to know; the core adds watches, transactions."""
        fd = self.sock.fileno()
        return SavedConnection(
            conn_id=FIRST_CONN_ID + fd,
            fd=fd,
            partial=self._decoder.partial,
            begun=self._unsent,
            output=list(self.client.outgoing),
        )

    def restore(self, saved: SavedConnection) -> None:
        """Goes on where the program before this one stopped."""
        self._decoder = Decoder(saved.partial)
        self._unsent = saved.begun
        for encoded in saved.output:
            self.client.queue_again(encoded)
        self.client.waiting.add(self.client)

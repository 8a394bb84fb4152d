"""A dom0 process that speaks to xenstored over the Unix socket."""

from __future__ import annotations

import socket
from typing import Final

from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.wire import Decoder, Message, ProtocolError

UNSENT_BYTES_MAX: Final = 8 << 20
"""A client that leaves more than this unread is disconnected."""
_CHUNK_BYTES: Final = 64 << 10


class SocketConnection:
    """One accepted, non-blocking connection; privileged, as all of domain 0."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.client = Client(0, is_privileged=True)
        self._decoder = Decoder()
        self._unsent = bytearray()

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
            return list(self._decoder.feed(data))
        except ProtocolError:
            return None

    def flush(self) -> bool:
        """Sends what is queued, as far as possible. Returns False when the client has to go."""
        while self.client.outgoing:
            encoded = self.client.outgoing.popleft()
            self.client.taken(encoded)
            self._unsent += encoded
        while self._unsent:
            try:
                nr_sent = self.sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                return False
            del self._unsent[:nr_sent]
        return len(self._unsent) <= UNSENT_BYTES_MAX

    def has_unsent(self) -> bool:
        """Returns whether bytes wait for the socket to take them."""
        return bool(self._unsent)

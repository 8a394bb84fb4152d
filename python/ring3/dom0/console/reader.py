"""Someone attached to a console: a raw byte stream both ways over a Unix socket."""

from __future__ import annotations

import socket
from typing import Final

UNSENT_BYTES_MAX: Final = 4 << 20
"""What waits for one reader; beyond this the oldest output is dropped, and a note takes its place."""
_INPUT_CHUNK_BYTES: Final = 4096


class Reader:
    """One attached client. `is_leaving` once it is to be closed when all is sent."""

    def __init__(self, sock: socket.socket, backlog: bytes) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.is_leaving = False
        self._unsent = bytearray(backlog)

    def queue(self, data: bytes) -> None:
        """Adds output to what waits."""
        self._unsent += data
        if len(self._unsent) > UNSENT_BYTES_MAX:
            nr_lost = len(self._unsent) - UNSENT_BYTES_MAX // 2
            self._unsent[:nr_lost] = b"\r\n[console: %d bytes dropped for a slow reader]\r\n" % nr_lost

    def flush(self) -> bool:
        """Sends what the socket takes. Returns False when the reader is gone, or has left and got everything."""
        while self._unsent:
            try:
                nr_sent = self.sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return True
            except OSError:
                return False
            del self._unsent[:nr_sent]
        return not self.is_leaving

    def has_unsent(self) -> bool:
        """Returns whether output waits."""
        return bool(self._unsent)

    def receive(self) -> bytes | None:
        """Returns input (empty when there is none now), or None when the reader sends no more."""
        try:
            return self.sock.recv(_INPUT_CHUNK_BYTES) or None
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            return None

"""Who is attached to a console: a raw byte stream both ways, over a Unix socket or a pseudo-terminal."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING, Final

from ring3.libs.console_log import OFFSET

if TYPE_CHECKING:
    from collections.abc import Callable

UNSENT_BYTES_MAX: Final = 4 << 20
"""What waits for one reader; beyond this the oldest output is dropped, and a note takes its place."""
PTY_UNSENT_BYTES_MAX: Final = 64 << 10
"""The same for a pseudo-terminal, which nobody may ever open."""
_INPUT_CHUNK_BYTES: Final = 4096


class Reader:
    """One attached client. `is_leaving` once it is to be closed when all is sent."""

    def __init__(self, sock: socket.socket, backlog: bytes = b"") -> None:
        sock.setblocking(False)
        self._sock: socket.socket | None = sock
        self._fd = sock.fileno()
        self.is_leaving = False
        self._unsent = bytearray(backlog)

    def fileno(self) -> int:
        """Returns the descriptor to wait for."""
        return self._fd

    def queue(self, data: bytes) -> None:
        """Adds output to what waits."""
        self._unsent += data
        if len(self._unsent) > UNSENT_BYTES_MAX:
            nr_lost = len(self._unsent) - UNSENT_BYTES_MAX // 2
            self._unsent[:nr_lost] = b"\r\n[console: %d bytes dropped for a slow reader]\r\n" % nr_lost

    def flush(self) -> bool:
        """Sends what there is room for. Returns False when the reader is gone, or has left and got everything."""
        while self._unsent:
            try:
                nr_sent = os.write(self._fd, self._unsent)
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
            return os.read(self._fd, _INPUT_CHUNK_BYTES) or None
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            return None

    def close(self) -> None:
        """Lets the reader go."""
        if self._sock is not None:
            self._sock.close()


class StreamReader(Reader):
    """A reader that counts: it says where to begin, is told where the output begins, and may so come back later.

    Nothing is ever left out in the middle: one that is too slow is let go, and comes back.
    """

    def __init__(self, sock: socket.socket, output_from: Callable[[int], tuple[int, bytes]]) -> None:
        super().__init__(sock)
        self._output_from = output_from
        self._wanted: bytes | None = b""

    def queue(self, data: bytes) -> None:
        """Adds output to what waits, once it is known where to begin."""
        if self._wanted is None:
            self._unsent += data
            self.is_leaving = self.is_leaving or len(self._unsent) > UNSENT_BYTES_MAX

    def receive(self) -> bytes | None:
        """Returns input, after the offset that comes first."""
        data = super().receive()
        if self._wanted is None or not data:
            return data
        self._wanted += data
        if len(self._wanted) < OFFSET.size:
            return b""
        (wanted,) = OFFSET.unpack_from(self._wanted)
        rest, self._wanted = self._wanted[OFFSET.size :], None
        begin, output = self._output_from(wanted)
        self._unsent += OFFSET.pack(begin) + output
        return rest


class PtyReader(Reader):
    """A pseudo-terminal, for tools that expect one (xenconsole, screen). The supervisor keeps its other side open."""

    def __init__(self, master_fd: int, backlog: bytes) -> None:
        """Takes the descriptor over."""
        self._fd = master_fd
        self._sock = None
        self.is_leaving = False
        self._unsent = bytearray(backlog[-PTY_UNSENT_BYTES_MAX:])

    def queue(self, data: bytes) -> None:
        """Adds output to what waits; drops the oldest."""
        self._unsent += data
        del self._unsent[: max(0, len(self._unsent) - PTY_UNSENT_BYTES_MAX)]

    def close(self) -> None:
        """Lets go of the terminal."""
        os.close(self._fd)

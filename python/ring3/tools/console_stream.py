"""A console's output and input, over a connection that is made again should the console daemon be started again."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ring3.errors import Error
from ring3.libs import console_log
from ring3.libs.closeable import Closeable
from ring3.libs.console_log import OFFSET

_FROM_BACKLOG: Final = (1 << 64) - 1
_APPEAR_TIMEOUT_S: Final = 60.0
"""A busy host may let the console daemon wait for long."""
_APPEAR_POLL_MIN_S: Final = 0.001
_APPEAR_POLL_MAX_S: Final = 0.05
_AWAY_TIMEOUT_S: Final = 10.0
_AWAY_POLL_S: Final = 0.02
_CHUNK_BYTES: Final = 64 << 10


class ConsoleStream(Closeable):
    """A console, attached to until close(). Bytes of the output come once and in order, whatever happens to the daemon;
    input that it had not passed on when it ended is lost.
    """

    def __init__(self, path: Path, is_expected: Callable[[], bool]) -> None:
        """Attaches; waits for the console daemon to make the socket, as long as `is_expected()`. Raises Error."""
        self.is_over = False
        """Whether resume() has found the end of the console."""
        self._path = path
        self._offset = _FROM_BACKLOG
        self._sock = self._connect(time.monotonic() + _APPEAR_TIMEOUT_S, is_expected)

    def fileno(self) -> int:
        """Returns the descriptor to wait for; another one after resume()."""
        return self._sock.fileno()

    def receive(self) -> bytes | None:
        """Returns output (empty when there is none now), or None when the connection has ended."""
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            return None
        self._offset += len(data)
        return data or None

    def send(self, data: bytes | bytearray) -> int:
        """Sends input as far as there is room; returns how many bytes that were."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            return 0  # receive() will find the end

    def resume(self) -> bytes | None:
        """Connects again after the end, and returns None. If the console is no more, or the daemon does not come back,
        returns the output that was missed: there is nothing after it.
        """
        if self.is_over:
            return b""
        self._sock.close()
        try:
            self._sock = self._connect(time.monotonic() + _AWAY_TIMEOUT_S, self._path.exists, _AWAY_POLL_S)
        except Error:
            self.is_over = True
            return console_log.output_from(
                self._path.with_suffix(".log"), self._path.with_suffix(".state"), self._offset
            )
        return None

    def set_timeout(self, timeout_s: float) -> None:
        """Makes receive() wait, so long."""
        self._sock.settimeout(timeout_s)

    def close(self) -> None:
        """Detaches."""
        self._sock.close()

    def _connect(
        self, deadline: float, is_expected: Callable[[], bool], pause_s: float = _APPEAR_POLL_MIN_S
    ) -> socket.socket:
        while True:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                sock.settimeout(max(0.1, deadline - time.monotonic()))
                sock.connect(str(self._path))
                sock.sendall(OFFSET.pack(self._offset))
                self._offset = _receive_offset(sock)
                sock.setblocking(False)
            except (OSError, EOFError) as error:
                sock.close()
                if time.monotonic() > deadline or not is_expected():
                    reason = getattr(error, "strerror", None) or str(error) or "it ended"
                    raise Error(f"{self._path}: there is no console to attach to: {reason}") from error
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _APPEAR_POLL_MAX_S)
            else:
                return sock


def _receive_offset(sock: socket.socket) -> int:
    data = b""
    while len(data) < OFFSET.size:
        chunk = sock.recv(OFFSET.size - len(data))
        if not chunk:
            raise EOFError
        data += chunk
    (offset,) = OFFSET.unpack(data)
    return int(offset)

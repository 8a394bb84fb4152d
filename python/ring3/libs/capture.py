"""Captures of packets: what the network back end and its clients say to each other, and the client's side.

A client connects to the back end's socket and sends one line, `vif DOMID NUMBER SNAPLEN` or `switch NAME SNAPLEN`. It
gets a line, `ok` or `error REASON`. Then come records as pcap has them: seconds, microseconds, bytes that follow, bytes
of the packet; those are little-endian 32-bit numbers. A record of no bytes at time 0 counts the packets that were left
out so far, because the client did not read.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ring3.errors import ConnectionLostError, Error
from ring3.libs.closeable import Closeable

RECORD: Final = struct.Struct("<IIII")
SOCKET_NAME: Final = "capture.sock"
SNAPLEN_MAX: Final = 0x40000
"""Source: libpcap, MAXIMUM_SNAPLEN."""
_CHUNK_BYTES: Final = 1 << 20
_RETRY_S: Final = 0.05
_RETRY_LIMIT_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class CapturedPacket:
    """A packet, or as much of it as was wanted; `raw` is its whole record."""

    raw: bytes
    nr_lost: int = 0
    """Not a packet: so many were left out until now."""


class CaptureStream(Closeable):
    """The packets of a source. A back end that is killed is connected to again: what passes meanwhile is not seen."""

    def __init__(self, path: Path, source: str, snaplen: int) -> None:
        """Connects. Raises Error for what cannot be captured, ConnectionLostError where there is no back end."""
        self._path = path
        self._request = f"{source} {snaplen}\n".encode()
        self._sock = self._connect()

    def packets(self) -> Iterator[CapturedPacket]:
        """Yields packets as they come, until their source is no more."""
        buffer = b""
        while True:
            data = self._receive()
            if not data:
                if not self._reconnect():
                    return
                buffer = b""
                continue
            buffer += data
            at = 0
            while len(buffer) - at >= RECORD.size:
                seconds, _us, nr_here, nr_bytes = RECORD.unpack_from(buffer, at)
                end = at + RECORD.size + nr_here
                if end > len(buffer):
                    break
                yield CapturedPacket(buffer[at:end], 0 if nr_here or seconds else nr_bytes)
                at = end
            buffer = buffer[at:]

    def close(self) -> None:
        """Ends the capture."""
        self._sock.close()

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(_CHUNK_BYTES)
        except ConnectionError:
            return b""

    def _connect(self) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(str(self._path))
            sock.sendall(self._request)
            answer = b""
            while not answer.endswith(b"\n"):
                byte = sock.recv(1)
                if not byte:
                    raise ConnectionResetError("it has ended")
                answer += byte
        except OSError as error:
            sock.close()
            raise ConnectionLostError(f"the network back end does not answer: {error}") from error
        if answer != b"ok\n":
            sock.close()
            raise Error(answer.decode(errors="replace").strip().removeprefix("error "))
        return sock

    def _reconnect(self) -> bool:
        """Returns False where the source, or the back end, is gone for good."""
        self._sock.close()
        deadline = time.monotonic() + _RETRY_LIMIT_S
        while self._path.exists() and time.monotonic() < deadline:
            try:
                self._sock = self._connect()
            except ConnectionLostError:
                time.sleep(_RETRY_S)
            except Error:
                return False
            else:
                return True
        return False

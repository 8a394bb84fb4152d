"""The byte stream below a xenstore client: messages in and out, and a descriptor that outlives the connection."""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ring3.abi.xs_wire import XSD_SOCKMSG
from ring3.errors import ConnectionLostError

_CHUNK_BYTES: Final = 64 << 10


class XenstoreSocket:
    """A connected socket, and what has been received from it."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = b""
        self._last_req_id = 0
        self._poll: select.epoll | None = None
        self._news_fd = -1
        self._has_news = False

    @staticmethod
    def open(path: str | Path) -> socket.socket:
        """Connects. Raises ConnectionLostError, whose cause says how it failed."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise ConnectionLostError(f"{path}: {error.strerror or error}") from error
        return sock

    def replace(self, sock: socket.socket) -> None:
        """Goes on with another connection; what was received from the old one and is incomplete is dropped."""
        if self._poll is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(self._sock)
            self._poll.register(sock, select.EPOLLIN)
        self._sock.close()
        self._sock = sock
        self._buffer = b""

    def fileno(self) -> int:
        """Returns a descriptor that is readable while the connection is, whichever that is then, or there is news."""
        if self._poll is None:
            self._news_fd = os.eventfd(int(self._has_news), os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._poll = select.epoll()
            for fd in (self._sock.fileno(), self._news_fd):
                self._poll.register(fd, select.EPOLLIN)
        return self._poll.fileno()

    def set_news(self, *, has_news: bool) -> None:
        """Says whether something that was received waits for who polls: no byte is left in the socket to tell of it."""
        if has_news == self._has_news:
            return
        self._has_news = has_news
        if self._poll is not None:
            if has_news:
                os.eventfd_write(self._news_fd, 1)
            else:
                os.eventfd_read(self._news_fd)

    def is_readable(self, timeout_s: float | None) -> bool:
        """Waits until something has come, or the connection has ended; False after the timeout."""
        return bool(select.select([self._sock], [], [], timeout_s)[0])

    def send_all(self, requests: Iterable[tuple[int, bytes]], tx_id: int) -> None:
        """Sends requests: types and payloads. Raises ConnectionLostError."""
        data = b""
        for kind, payload in requests:
            self._last_req_id = self._last_req_id % 0xFFFFFFFF + 1
            data += XSD_SOCKMSG.pack(kind, self._last_req_id, tx_id, len(payload)) + payload
        try:
            self._sock.sendall(data)
        except OSError as error:
            raise ConnectionLostError(f"xenstored is gone: {error}") from error

    def receive(self) -> None:
        """Waits for bytes and takes them. Raises ConnectionLostError."""
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except OSError as error:
            raise ConnectionLostError(f"xenstored is gone: {error}") from error
        if not data:
            raise ConnectionLostError("xenstored closed the connection")
        self._buffer += data

    def next_message(self) -> tuple[int, bytes] | None:
        """Returns type and payload of the next message, or None if there is no whole one."""
        if len(self._buffer) < XSD_SOCKMSG.size:
            return None
        kind, _req_id, _tx_id, length = XSD_SOCKMSG.unpack_from(self._buffer)
        end = XSD_SOCKMSG.size + length
        if len(self._buffer) < end:
            return None
        payload = self._buffer[XSD_SOCKMSG.size : end]
        self._buffer = self._buffer[end:]
        return kind, payload

    def close(self) -> None:
        """Closes the connection."""
        if self._poll is not None:
            self._poll.close()
            os.close(self._news_fd)
            self._poll, self._news_fd = None, -1
        self._sock.close()

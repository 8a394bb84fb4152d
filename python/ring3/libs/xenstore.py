"""A xenstore client over xenstored's Unix socket: blocking requests, watches, transactions.

Source: xen/include/public/io/xs_wire.h and docs/misc/xenstore.txt of Xen. For one thread at a time.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from ring3.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XSD_SOCKMSG, XsType
from ring3.errors import ConnectionLostError, XenstoreRequestError

_CHUNK_BYTES: Final = 64 << 10
_NR_ATTEMPTS_MAX: Final = 1000
NO_TRANSACTION: Final = 0

T = TypeVar("T")


class XenstoreClient:
    """A connection to xenstored. Paths are text; values are bytes, and text where the name says so."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._events: deque[tuple[str, str]] = deque()
        self._last_req_id = 0

    @classmethod
    def connect(cls, path: str | Path) -> Self:
        """Connects to xenstored's socket. Raises ConnectionLostError."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.connect(str(path))
        except OSError as error:
            sock.close()
            raise ConnectionLostError(f"{path}: {error.strerror or error}") from error
        return cls(sock)

    # -- nodes

    def read(self, path: str, *, tx_id: int = NO_TRANSACTION) -> bytes:
        """Returns a node's value. Raises XenstoreRequestError."""
        return self._request(XsType.READ, _text(path), tx_id)

    def read_text(self, path: str, *, tx_id: int = NO_TRANSACTION) -> str:
        """Returns a node's value as text."""
        return self.read(path, tx_id=tx_id).decode(errors="replace")

    def read_optional(self, path: str, *, tx_id: int = NO_TRANSACTION) -> str | None:
        """Returns a node's value as text, or None where there is no such node."""
        try:
            return self.read_text(path, tx_id=tx_id)
        except XenstoreRequestError as error:
            if error.errno_name == "ENOENT":
                return None
            raise

    def write(self, path: str, value: str | bytes, *, tx_id: int = NO_TRANSACTION) -> None:
        """Writes a node, and makes it and its ancestors if missing."""
        self._request(XsType.WRITE, _text(path) + (value.encode() if isinstance(value, str) else value), tx_id)

    def mkdir(self, path: str, *, tx_id: int = NO_TRANSACTION) -> None:
        """Makes a node, if it is missing."""
        self._request(XsType.MKDIR, _text(path), tx_id)

    def rm(self, path: str, *, tx_id: int = NO_TRANSACTION) -> None:
        """Removes a node and all below it."""
        self._request(XsType.RM, _text(path), tx_id)

    def directory(self, path: str, *, tx_id: int = NO_TRANSACTION) -> list[str]:
        """Returns the names of a node's children."""
        try:
            return _strings(self._request(XsType.DIRECTORY, _text(path), tx_id))
        except XenstoreRequestError as error:
            if error.errno_name != "E2BIG":
                raise
        return self._directory_parts(path, tx_id)

    def get_perms(self, path: str, *, tx_id: int = NO_TRANSACTION) -> list[str]:
        """Returns the permissions, such as ["n0", "r7"]."""
        return _strings(self._request(XsType.GET_PERMS, _text(path), tx_id))

    def set_perms(self, path: str, perms: list[str], *, tx_id: int = NO_TRANSACTION) -> None:
        """Sets the permissions; the first names the owner and what others may."""
        self._request(XsType.SET_PERMS, _text(path) + b"".join(_text(perm) for perm in perms), tx_id)

    # -- watches

    def watch(self, path: str, token: str) -> None:
        """Asks for events about a node and all below it. One comes at once."""
        self._request(XsType.WATCH, _text(path) + _text(token))

    def unwatch(self, path: str, token: str) -> None:
        """Ends a watch."""
        self._request(XsType.UNWATCH, _text(path) + _text(token))

    def fileno(self) -> int:
        """Returns the socket, readable when events may have come. Events that came with a reply wait in events()."""
        return self._sock.fileno()

    def events(self) -> Iterator[tuple[str, str]]:
        """Yields the (path, token) of events that are there; does not wait. Raises ConnectionLostError."""
        self._file_events()
        while select.select([self._sock], [], [], 0)[0]:
            self._receive()
            self._file_events()
        while self._events:
            yield self._events.popleft()

    def next_event(self, timeout_s: float | None = None) -> tuple[str, str] | None:
        """Waits for an event and returns its (path, token), or None after the timeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._file_events()
        while not self._events:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not select.select([self._sock], [], [], remaining)[0]:
                return None
            self._receive()
            self._file_events()
        return self._events.popleft()

    # -- transactions

    def transaction(self, body: Callable[[int], T]) -> T:
        """Runs body(tx_id) in a transaction, again if another client interfered. Returns what body returned."""
        for _attempt in range(_NR_ATTEMPTS_MAX):
            tx_id = int(_strings(self._request(XsType.TRANSACTION_START, b"\0"))[0])
            try:
                result = body(tx_id)
            except BaseException:
                with contextlib.suppress(XenstoreRequestError, ConnectionLostError):
                    self._request(XsType.TRANSACTION_END, b"F\0", tx_id)
                raise
            try:
                self._request(XsType.TRANSACTION_END, b"T\0", tx_id)
            except XenstoreRequestError as error:
                if error.errno_name == "EAGAIN":
                    continue
                raise
            return result
        raise XenstoreRequestError(0, "EAGAIN", f"transaction interfered with {_NR_ATTEMPTS_MAX} times")

    # -- domains

    def introduce(self, domid: int, mfn: int, port: int) -> None:
        """Tells xenstored of a new domain: frame of its ring, and the domain's port."""
        self._request(XsType.INTRODUCE, b"%d\0%d\0%d\0" % (domid, mfn, port))

    def release(self, domid: int) -> None:
        """Makes xenstored forget a domain."""
        self._request(XsType.RELEASE, b"%d\0" % domid)

    def is_introduced(self, domid: int) -> bool:
        """Returns whether xenstored serves the domain."""
        return _strings(self._request(XsType.IS_DOMAIN_INTRODUCED, b"%d\0" % domid)) == ["T"]

    def get_domain_path(self, domid: int) -> str:
        """Returns the domain's home."""
        return _strings(self._request(XsType.GET_DOMAIN_PATH, b"%d\0" % domid))[0]

    def close(self) -> None:
        """Closes the connection; its watches end."""
        self._sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- the wire

    def _directory_parts(self, path: str, tx_id: int) -> list[str]:
        while True:
            generation: bytes | None = None
            names = b""
            while True:
                payload = self._request(XsType.DIRECTORY_PART, _text(path) + b"%d\0" % len(names), tx_id)
                seen, _nul, part = payload.partition(b"\0")
                if generation not in (None, seen):
                    break  # changed while it was read: start over
                generation = seen
                if part.endswith(b"\0\0") or part in (b"\0", b""):
                    return _strings(names + part.removesuffix(b"\0"))
                names += part

    def _request(self, kind: XsType, payload: bytes, tx_id: int = NO_TRANSACTION) -> bytes:
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise XenstoreRequestError(0, "E2BIG", f"{len(payload)} bytes of payload")
        self._last_req_id = self._last_req_id % 0xFFFFFFFF + 1
        try:
            self._sock.sendall(XSD_SOCKMSG.pack(kind, self._last_req_id, tx_id, len(payload)) + payload)
        except OSError as error:
            raise ConnectionLostError(f"xenstored is gone: {error}") from error
        while True:
            message = self._next_message()
            if message is None:
                self._receive()
                continue
            answer, data = message
            if answer == XsType.WATCH_EVENT:
                self._file_event(answer, data)
                continue
            if answer == XsType.ERROR:
                name = data.rstrip(b"\0").decode(errors="replace")
                what = payload.partition(b"\0")[0].decode(errors="replace")
                raise XenstoreRequestError(0, name, f"{kind.name} {what}")
            return data

    def _receive(self) -> None:
        try:
            data = self._sock.recv(_CHUNK_BYTES)
        except OSError as error:
            raise ConnectionLostError(f"xenstored is gone: {error}") from error
        if not data:
            raise ConnectionLostError("xenstored closed the connection")
        self._buffer += data

    def _next_message(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < XSD_SOCKMSG.size:
            return None
        kind, _req_id, _tx_id, length = XSD_SOCKMSG.unpack_from(self._buffer)
        end = XSD_SOCKMSG.size + length
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[XSD_SOCKMSG.size : end])
        del self._buffer[:end]
        return kind, payload

    def _file_events(self) -> None:
        while (message := self._next_message()) is not None:
            self._file_event(*message)

    def _file_event(self, kind: int, payload: bytes) -> None:
        strings = _strings(payload)
        if kind == XsType.WATCH_EVENT and len(strings) >= 2:
            self._events.append((strings[0], strings[1]))


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _strings(payload: bytes) -> list[str]:
    return [part.decode(errors="replace") for part in payload.split(b"\0")[:-1]]

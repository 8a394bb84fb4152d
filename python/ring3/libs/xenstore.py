"""A xenstore client over xenstored's Unix socket: blocking requests, watches, transactions.

xenstored may end and be started again: the client then connects anew, sets its watches again (each fires at once, as a
new one does) and repeats the request at hand, which all allow; a transaction begins again.

Source: xen/include/public/io/xs_wire.h and docs/misc/xenstore.txt of Xen. For one thread at a time.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self, TypeVar

from ring3.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XsType
from ring3.errors import ConnectionLostError, XenstoreRequestError
from ring3.libs.closeable import Closeable
from ring3.libs.xenstore_socket import XenstoreSocket

if TYPE_CHECKING:
    import socket

_NR_ATTEMPTS_MAX: Final = 1000
_NR_RECONNECTIONS_MAX: Final = 20
"""A request that ends xenstored so often is not sent again."""
NO_TRANSACTION: Final = 0
_DONE_ALREADY: Final = {XsType.RM: "ENOENT", XsType.RELEASE: "ENOENT", XsType.WATCH: "EEXIST", XsType.UNWATCH: "ENOENT"}
"""What a repeated request is refused with when the first one, whose answer was lost, had been carried out."""

_NR_UNANSWERED_MAX: Final = 16
"""Requests that are sent before an answer is waited for: xenstored reads on while so few answers wait."""

T = TypeVar("T")


class XenstoreClient(Closeable):
    """A connection to xenstored. Paths are text; values are bytes, and text where the name says so."""

    def __init__(self, sock: socket.socket, path: str | Path | None = None) -> None:
        """Takes the socket over. With a path, a connection that is lost is made again."""
        self._socket = XenstoreSocket(sock)
        self._path = path
        self._events: deque[tuple[str, str]] = deque()
        self._watches: dict[tuple[str, str], None] = {}

    @classmethod
    def connect(cls, path: str | Path) -> Self:
        """Connects to xenstored's socket. Raises ConnectionLostError."""
        return cls(XenstoreSocket.open(path), path)

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
        self._request(*_write(path, value), tx_id)

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

    def directory_optional(self, path: str) -> list[str]:
        """Returns the names of a node's children; none where there is no such node, as it may be at any moment."""
        try:
            return self.directory(path)
        except XenstoreRequestError as error:
            if error.errno_name == "ENOENT":
                return []
            raise

    def get_perms(self, path: str, *, tx_id: int = NO_TRANSACTION) -> list[str]:
        """Returns the permissions, such as ["n0", "r7"]."""
        return _strings(self._request(XsType.GET_PERMS, _text(path), tx_id))

    def set_perms(self, path: str, perms: list[str], *, tx_id: int = NO_TRANSACTION) -> None:
        """Sets the permissions; the first names the owner and what others may."""
        self._request(*_set_perms(path, perms), tx_id)

    def batch(self, *, tx_id: int) -> Batch:
        """Returns requests to be made together, within a transaction."""
        return Batch(self._request_all, tx_id)

    # -- watches

    def watch(self, path: str, token: str) -> None:
        """Asks for events about a node and all below it. One comes at once."""
        self._request(XsType.WATCH, _text(path) + _text(token))
        self._watches[path, token] = None

    def unwatch(self, path: str, token: str) -> None:
        """Ends a watch."""
        self._watches.pop((path, token), None)
        self._request(XsType.UNWATCH, _text(path) + _text(token))

    def fileno(self) -> int:
        """Returns a descriptor that is readable while there may be events; it stays the same over reconnections.

        Events that came with a reply count, too: else who sleeps on it would miss the last word of a front end.
        """
        return self._socket.fileno()

    def events(self) -> Iterator[tuple[str, str]]:
        """Yields the (path, token) of events that are there; does not wait. Raises ConnectionLostError."""
        self._file_events()
        while self._socket.is_readable(0):
            self._receive()
            self._file_events()
        while self._events:
            yield self._take_event()

    def next_event(self, timeout_s: float | None = None) -> tuple[str, str] | None:
        """Waits for an event and returns its (path, token), or None after the timeout."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._file_events()
        while not self._events:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._socket.is_readable(remaining):
                return None
            self._receive()
            self._file_events()
        return self._take_event()

    # -- transactions

    def transaction(self, body: Callable[[int], T]) -> T:
        """Runs body(tx_id) in a transaction, again if another client interfered. Returns what body returned."""
        for _attempt in range(_NR_ATTEMPTS_MAX):
            tx_id = int(_strings(self._request(XsType.TRANSACTION_START, b"\0"))[0])
            try:
                result = body(tx_id)
                self._request(XsType.TRANSACTION_END, b"T\0", tx_id)
            except BaseException as error:
                if isinstance(error, XenstoreRequestError) and error.errno_name == "EAGAIN":
                    continue
                with contextlib.suppress(XenstoreRequestError, ConnectionLostError):
                    self._request(XsType.TRANSACTION_END, b"F\0", tx_id)
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

    def resume(self, domid: int) -> None:
        """Makes xenstored announce the next shutdown of a domain that was shut down, and goes on."""
        self._request(XsType.RESUME, b"%d\0" % domid)

    def set_target(self, domid: int, target: int) -> None:
        """Gives a domain the rights of another."""
        self._request(XsType.SET_TARGET, b"%d\0%d\0" % (domid, target))

    def is_introduced(self, domid: int) -> bool:
        """Returns whether xenstored serves the domain."""
        return _strings(self._request(XsType.IS_DOMAIN_INTRODUCED, b"%d\0" % domid)) == ["T"]

    def get_domain_path(self, domid: int) -> str:
        """Returns the domain's home."""
        return _strings(self._request(XsType.GET_DOMAIN_PATH, b"%d\0" % domid))[0]

    def control(self, *words: str) -> str:
        """Asks the daemon itself: "help" lists what."""
        return self._request(XsType.CONTROL, b"".join(map(_text, words))).rstrip(b"\0").decode(errors="replace")

    def close(self) -> None:
        """Closes the connection; its watches end."""
        self._socket.close()

    # -- requests

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
        _check_sizes([payload])
        for attempt in range(_NR_RECONNECTIONS_MAX):
            try:
                answer, data = self._ask(kind, payload, tx_id)
            except ConnectionLostError:
                if not self._reconnect():
                    raise
                if tx_id != NO_TRANSACTION:
                    raise XenstoreRequestError(0, "EAGAIN", "xenstored was started again") from None
                continue
            self._file_events()
            if answer != XsType.ERROR:
                return data
            refused = _refusal(kind, payload, data)
            if attempt and _DONE_ALREADY.get(kind) == refused.errno_name:
                return b""
            raise refused
        raise ConnectionLostError(f"xenstored ended {_NR_RECONNECTIONS_MAX} times over one request")

    def _request_all(self, requests: Sequence[tuple[XsType, bytes]], tx_id: int) -> None:
        """Sends requests without waiting in between, and raises what the first was refused with that was."""
        refused: XenstoreRequestError | None = None
        _check_sizes(payload for _kind, payload in requests)
        for start in range(0, len(requests), _NR_UNANSWERED_MAX):
            some = requests[start : start + _NR_UNANSWERED_MAX]
            try:
                self._socket.send_all(some, tx_id)
                for kind, payload in some:
                    answer, data = self._next_answer()
                    if answer == XsType.ERROR and refused is None:
                        refused = _refusal(kind, payload, data)
            except ConnectionLostError:
                if not self._reconnect():
                    raise
                raise XenstoreRequestError(0, "EAGAIN", "xenstored was started again") from None
            self._file_events()
            if refused is not None:
                raise refused

    def _ask(self, kind: XsType, payload: bytes, tx_id: int) -> tuple[int, bytes]:
        """Sends a request and returns type and payload of the answer; files the events that come before it."""
        self._socket.send_all([(kind, payload)], tx_id)
        return self._next_answer()

    def _next_answer(self) -> tuple[int, bytes]:
        while True:
            message = self._socket.next_message()
            if message is None:
                self._socket.receive()
            elif message[0] == XsType.WATCH_EVENT:
                self._file_event(*message)
            else:
                return message

    def _reconnect(self) -> bool:
        """Connects again and sets the watches. Returns False where nobody listens any more."""
        if self._path is None:
            return False
        for _attempt in range(_NR_RECONNECTIONS_MAX):
            try:
                self._socket.replace(XenstoreSocket.open(self._path))
                for path, token in self._watches:
                    self._ask(XsType.WATCH, _text(path) + _text(token), NO_TRANSACTION)
            except ConnectionLostError as error:
                if isinstance(error.__cause__, FileNotFoundError | ConnectionRefusedError):
                    return False
                continue
            return True
        return False

    def _receive(self) -> None:
        try:
            self._socket.receive()
        except ConnectionLostError:
            if not self._reconnect():
                raise

    def _take_event(self) -> tuple[str, str]:
        event = self._events.popleft()
        if not self._events:
            self._socket.set_news(has_news=False)
        return event

    def _file_events(self) -> None:
        while (message := self._socket.next_message()) is not None:
            self._file_event(*message)

    def _file_event(self, kind: int, payload: bytes) -> None:
        strings = _strings(payload)
        if kind == XsType.WATCH_EVENT and len(strings) >= 2:
            self._events.append((strings[0], strings[1]))
            self._socket.set_news(has_news=True)


class Batch:
    """Requests that need no answers but that they were carried out: commit() makes them all."""

    def __init__(self, make: Callable[[Sequence[tuple[XsType, bytes]], int], None], tx_id: int) -> None:
        self._make = make
        self._tx_id = tx_id
        self._requests: list[tuple[XsType, bytes]] = []

    def write(self, path: str, value: str | bytes) -> None:
        """As XenstoreClient.write()."""
        self._requests.append(_write(path, value))

    def mkdir(self, path: str) -> None:
        """As XenstoreClient.mkdir()."""
        self._requests.append((XsType.MKDIR, _text(path)))

    def rm(self, path: str) -> None:
        """As XenstoreClient.rm()."""
        self._requests.append((XsType.RM, _text(path)))

    def set_perms(self, path: str, perms: list[str]) -> None:
        """As XenstoreClient.set_perms()."""
        self._requests.append(_set_perms(path, perms))

    def commit(self) -> None:
        """Makes the requests, in order. Raises XenstoreRequestError."""
        requests, self._requests = self._requests, []
        self._make(requests, self._tx_id)


def _write(path: str, value: str | bytes) -> tuple[XsType, bytes]:
    return XsType.WRITE, _text(path) + (value.encode() if isinstance(value, str) else value)


def _set_perms(path: str, perms: list[str]) -> tuple[XsType, bytes]:
    return XsType.SET_PERMS, _text(path) + b"".join(map(_text, perms))


def _check_sizes(payloads: Iterable[bytes]) -> None:
    for payload in payloads:
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise XenstoreRequestError(0, "E2BIG", f"{len(payload)} bytes of payload")


def _refusal(kind: XsType, payload: bytes, answer: bytes) -> XenstoreRequestError:
    what = payload.partition(b"\0")[0].decode(errors="replace")
    return XenstoreRequestError(0, answer.rstrip(b"\0").decode(errors="replace"), f"{kind.name} {what}")


def _text(text: str) -> bytes:
    return text.encode() + b"\0"


def _strings(payload: bytes) -> list[str]:
    return [part.decode(errors="replace") for part in payload.split(b"\0")[:-1]]

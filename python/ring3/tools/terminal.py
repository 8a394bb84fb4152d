"""The caller's terminal and a guest's console: bytes both ways until the console ends or the caller leaves."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final, Protocol

from ring3.tools.console_stream import ConsoleStream

ESCAPE: Final = b"\x1d"
"""Ctrl-]."""
_CHUNK_BYTES: Final = 64 << 10


class Left(Enum):
    """Why attach() returned."""

    CONSOLE_ENDED = auto()
    BY_KEY = auto()
    BY_SIGNAL = auto()
    OUTPUT_CLOSED = auto()
    BY_EVENT = auto()


class Source(Protocol):
    """Something with a descriptor to wait for."""

    def fileno(self) -> int:
        """Returns the descriptor."""
        ...


@contextlib.contextmanager
def raw_mode() -> Iterator[bool]:
    """Makes a terminal on standard input raw for the time being. Yields whether there is one."""
    if not os.isatty(0):
        yield False
        return
    import termios
    import tty

    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield True
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


class Attachment:
    """Standard input and output, joined with one console after another."""

    def __init__(self, *, is_terminal: bool, escape: bytes = ESCAPE) -> None:
        """`escape` is the byte by which the caller leaves, at a terminal."""
        self._is_terminal = is_terminal
        self._escape = escape
        self._has_input = True
        self._to_guest = bytearray()
        self._wake_r, wake_w = socket.socketpair()
        self._wake_r.setblocking(False)
        wake_w.setblocking(False)
        self._wake_w = wake_w
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda _number, _frame: None)
        signal.set_wakeup_fd(wake_w.fileno(), warn_on_full_buffer=False)

    def run(
        self, console: ConsoleStream, source: Source | None = None, is_over: Callable[[], bool] | None = None
    ) -> Left:
        """Moves bytes until the console ends, the caller leaves, or is_over() after news from `source`."""
        with selectors.DefaultSelector() as selector:
            selector.register(console, selectors.EVENT_READ)
            selector.register(self._wake_r, selectors.EVENT_READ)
            if source is not None:
                selector.register(source, selectors.EVENT_READ)
            while True:
                self._choose_input(selector, console)
                for key, events in selector.select():
                    left = None
                    if key.fileobj is self._wake_r:
                        left = Left.BY_SIGNAL
                    elif key.fileobj is source:
                        left = Left.BY_EVENT if is_over is None or is_over() else None
                    elif key.fileobj is console:
                        left = self._serve_console(selector, console, events)
                    else:
                        left = self._read_input()
                    if left is not None:
                        return left

    def drain(self, console: ConsoleStream, timeout_s: float = 5.0) -> None:
        """Shows what is left until the console ends."""
        if console.is_over:
            return
        console.set_timeout(timeout_s)
        while True:
            while data := console.receive():
                if not _show(data):
                    return
            rest = console.resume() if data is None else b""
            if rest is not None:
                _show(rest)
                return
            console.set_timeout(timeout_s)

    def _choose_input(self, selector: selectors.BaseSelector, console: ConsoleStream) -> None:
        """Reads on only when the console has taken what was read: a guest may never read its console."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._to_guest else 0)
        selector.modify(console, events)
        wanted = self._has_input and not self._to_guest
        if wanted and 0 not in selector.get_map():
            try:
                selector.register(0, selectors.EVENT_READ)
            except PermissionError:  # a regular file, which select cannot wait for: it is always readable
                self._read_input()
        elif not wanted and 0 in selector.get_map():
            selector.unregister(0)

    def _read_input(self) -> Left | None:
        try:
            data = os.read(0, _CHUNK_BYTES)
        except OSError:
            data = b""
        if not data:
            self._has_input = False
            return None
        if self._is_terminal and self._escape in data:
            return Left.BY_KEY
        self._to_guest += data
        return None

    def _serve_console(self, selector: selectors.BaseSelector, console: ConsoleStream, events: int) -> Left | None:
        if events & selectors.EVENT_WRITE and self._to_guest:
            del self._to_guest[: console.send(self._to_guest)]
        if not events & selectors.EVENT_READ:
            return None
        data = console.receive()
        if data is None:
            selector.unregister(console)
            rest = console.resume()
            if rest is not None:
                return Left.CONSOLE_ENDED if _show(rest) else Left.OUTPUT_CLOSED
            selector.register(console, selectors.EVENT_READ)
            return None
        return None if not data or _show(data) else Left.OUTPUT_CLOSED


def _show(data: bytes) -> bool:
    """Writes all to standard output; False when nobody reads that."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(1, view) :]
    except OSError:
        return False
    return True

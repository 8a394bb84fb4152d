"""Readers of consoles: the sockets that they connect to, and the bytes between them and the guest."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ring3.dom0.console.domain import DomainConsole
from ring3.dom0.console.reader import PtyReader, Reader, StreamReader
from ring3.dom0.poller import Poller

NR_READERS_MAX: Final = 64
"""Readers of one console."""


class Attachments:
    """The readers of one console, and where new ones connect. `wake` makes the console be served soon."""

    def __init__(self, console: DomainConsole, poller: Poller, wake: Callable[[], None]) -> None:
        self._console = console
        self._poller = poller
        self._wake = wake
        self._is_open = True
        self._listeners = [
            self._listen(console.place.sock, lambda sock: Reader(sock, console.backlog())),
            self._listen(console.place.stream, lambda sock: StreamReader(sock, console.output_from)),
        ]

    def attach_pty(self, master_fd: int) -> None:
        """Makes a pseudo-terminal one of the readers. One that had a reader's part before gets what follows alone."""
        self._attach(PtyReader(master_fd, b"" if self._console.goes_on else self._console.backlog()))

    def flush(self, *, is_room_new: bool) -> None:
        """Sends what has been queued; looks whether readers may send again, too."""
        for reader in list(self._console.readers):
            if reader.has_unsent() or is_room_new:
                self._flush(reader)

    def close(self) -> None:
        """Lets every reader have all the output, and go. Who looks for the sockets finds them gone first."""
        for path in (self._console.place.sock, self._console.place.stream):
            path.unlink(missing_ok=True)
        self._is_open = False
        for listener, make in self._listeners:
            self._poller.forget(listener.fileno())
            # Those who connected just now get the backlog, then the end.
            while self._accept(listener, make):
                pass
            listener.close()
        for reader in list(self._console.readers):
            reader.is_leaving = True
            self._flush(reader)

    # -- within

    def _listen(
        self, path: Path, make: Callable[[socket.socket], Reader]
    ) -> tuple[socket.socket, Callable[[socket.socket], Reader]]:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        # Readers that see the name may connect at once, so it appears when the socket listens.
        temporary = path.with_name(path.name + ".new")
        temporary.unlink(missing_ok=True)
        listener.bind(str(temporary))
        temporary.chmod(0o600)
        listener.listen()
        temporary.rename(path)

        def accept(_events: int) -> None:
            self._accept(listener, make)

        self._poller.watch(listener.fileno(), select.EPOLLIN, accept)
        return listener, make

    def _accept(self, listener: socket.socket, make: Callable[[socket.socket], Reader]) -> bool:
        try:
            sock, _address = listener.accept()
        except OSError:
            return False
        if len(self._console.readers) >= NR_READERS_MAX:
            sock.close()
        else:
            self._attach(make(sock))
        return True

    def _attach(self, reader: Reader) -> None:
        self._console.readers.append(reader)
        self._flush(reader)

    def _serve(self, reader: Reader, events: int) -> None:
        console = self._console
        if self._is_open and not reader.is_leaving and console.room_for_input():
            data = reader.receive()
            if data is None:
                reader.is_leaving = True  # it may have closed one direction only: it gets what there is
            elif data:
                console.queue_input(data)
                self._wake()
            if not console.room_for_input():
                self.flush(is_room_new=True)
        if reader in console.readers:
            self._flush(reader)
        # The other side of a terminal has hung up, so that nobody will ever read what waits.
        if events & select.EPOLLHUP and reader.is_leaving and reader in console.readers:
            self._let_go(reader)

    def _let_go(self, reader: Reader) -> None:
        if reader in self._console.readers:
            self._console.readers.remove(reader)
        self._poller.forget(reader.fileno())
        reader.close()

    def _flush(self, reader: Reader) -> None:
        if not reader.flush():
            self._let_go(reader)
            return
        events = select.EPOLLOUT if reader.has_unsent() else 0
        if not reader.is_leaving and self._console.room_for_input():
            events |= select.EPOLLIN
        # A reader that may not send now and has nothing to get is left out until that changes.
        self._poller.watch(reader.fileno(), events, lambda got: self._serve(reader, got))

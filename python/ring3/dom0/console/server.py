"""The console daemon's loop."""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import socket
from pathlib import Path
from typing import Final

from ring3.dom0.console.domain import DomainConsole
from ring3.dom0.console.reader import Reader
from ring3.errors import ConnectionLostError, DomainError, HypercallError, XenstoreRequestError
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels
from ring3.libs.foreignmemory import ForeignMemory
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
NR_READERS_MAX: Final = 64
"""Readers of one console."""
NR_OLD_LOGS: Final = 16
"""Logs of domains that are gone are kept for this many domains."""
_DRAIN_PUMPS_MAX: Final = 64
"""A last drain ends after this many rings, should a guest still print."""


class Server:
    """consoled. Readable `stop_fd` ends run()."""

    def __init__(self, conn: Connection, xenstore: XenstoreClient, directory: Path, stop_fd: int) -> None:
        self._events = EventChannels(conn)
        self._memory = ForeignMemory(conn.memfd, conn.nr_frames)
        self._xenstore = xenstore
        self._directory = directory
        self._stop_fd = stop_fd
        self._selector = selectors.DefaultSelector()
        self._consoles: dict[int, DomainConsole] = {}
        self._by_port: dict[int, DomainConsole] = {}
        self._listeners: dict[int, socket.socket] = {}
        self._runnable: set[DomainConsole] = set()
        self._old_logs: list[Path] = []

    def run(self) -> None:
        """Serves until told to stop, or until hypervisor or xenstored is gone."""
        for fileobj in (self._events, self._xenstore, self._stop_fd):
            self._selector.register(fileobj, selectors.EVENT_READ)
        try:
            self._xenstore.watch("@introduceDomain", "introduce")
            self._xenstore.watch("@releaseDomain", "release")
            self._xenstore.write("/tool/consoled", str(os.getpid()))  # tells `ring3 up` that consoles are served
            while self._turn():
                pass
        except ConnectionLostError as error:
            _log.info("consoled: %s", error)
        finally:
            self._close()

    def _turn(self) -> bool:
        # Before waiting: events that came along with a reply make no descriptor readable.
        while events := list(self._xenstore.events()):
            self._take_news({token for _path, token in events})
        for key, _events in self._selector.select(0 if self._runnable else None):
            if key.fileobj == self._stop_fd:
                return False
            if key.fileobj is self._events:
                for port in self._events.pending():
                    if port in self._by_port:
                        self._runnable.add(self._by_port[port])
            elif key.fileobj is self._xenstore:
                pass  # taken at the next turn
            elif isinstance(key.data, DomainConsole):
                self._accept(key.data)
            elif key.data is not None:
                self._serve_reader(*key.data)
        for console in list(self._runnable):
            self._serve_console(console)
        return True

    def _take_news(self, tokens: set[str]) -> None:
        if "release" in tokens:
            self._look_for_gone_domains()
        if "introduce" in tokens:
            self._look_for_new_domains()

    # -- domains

    def _look_for_new_domains(self) -> None:
        for name in self._xenstore.directory("/local/domain"):
            if not name.isdigit() or int(name) in self._consoles or name == "0":
                continue
            if self._xenstore.is_introduced(int(name)):
                self._open(int(name))

    def _open(self, domid: int) -> None:
        ring_ref = self._xenstore.read_optional(f"/local/domain/{domid}/console/ring-ref")
        port = self._xenstore.read_optional(f"/local/domain/{domid}/console/port")
        if not (ring_ref and port and ring_ref.isdigit() and port.isdigit()):
            return
        path = self._directory / f"{domid}.sock"
        try:
            mapping = self._memory.map(int(ring_ref))
        except (ValueError, OSError) as error:
            _log.warning("console of domain %d: %s", domid, error)
            return
        try:
            local_port = self._events.bind_interdomain(domid, int(port))
        except (HypercallError, DomainError) as error:
            _log.warning("console of domain %d: %s", domid, error)
            mapping.close()
            return
        console = DomainConsole(domid, mapping, local_port, self._directory / f"{domid}.log")
        self._consoles[domid] = self._by_port[local_port] = console
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        # Readers that see the name may connect at once, so it appears when the socket listens.
        temporary = path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        listener.bind(str(temporary))
        temporary.chmod(0o600)
        listener.listen()
        temporary.rename(path)
        self._listeners[domid] = listener
        self._selector.register(listener, selectors.EVENT_READ, console)
        self._runnable.add(console)

    def _look_for_gone_domains(self) -> None:
        for domid, console in list(self._consoles.items()):
            self._runnable.add(console)  # a domain that shut down may have printed last words
            if not self._xenstore.is_introduced(domid):
                self._close_console(console)

    def _close_console(self, console: DomainConsole) -> None:
        """Takes the last output, unmaps, lets readers have it all, and then removes the socket: tools wait for that."""
        for _turn in range(_DRAIN_PUMPS_MAX):
            if not console.has_output():
                break
            console.pump()
        console.close()
        self._runnable.discard(console)
        del self._consoles[console.domid]
        del self._by_port[console.port]
        with contextlib.suppress(HypercallError, DomainError):
            self._events.close(console.port)
        listener = self._listeners.pop(console.domid)
        self._selector.unregister(listener)
        self._drain_accepts(listener, console)
        listener.close()
        for reader in list(console.readers):
            reader.is_leaving = True
            self._flush(console, reader)
        (self._directory / f"{console.domid}.sock").unlink(missing_ok=True)
        self._forget_old_logs(self._directory / f"{console.domid}.log")

    def _drain_accepts(self, listener: socket.socket, console: DomainConsole) -> None:
        """Serves those who connected just now: they get the backlog, then the end."""
        while len(console.readers) < NR_READERS_MAX:
            try:
                sock, _address = listener.accept()
            except OSError:
                return
            self._attach(console, sock)

    def _forget_old_logs(self, path: Path) -> None:
        self._old_logs.append(path)
        while len(self._old_logs) > NR_OLD_LOGS:
            old = self._old_logs.pop(0)
            if old in self._old_logs or int(old.stem) in self._consoles:
                continue
            for name in (old, old.with_name(old.name + ".1")):
                name.unlink(missing_ok=True)

    # -- bytes

    def _serve_console(self, console: DomainConsole) -> None:
        self._runnable.discard(console)
        if self._consoles.get(console.domid) is not console:
            return
        had_room = console.room_for_input()
        if console.pump():
            with contextlib.suppress(HypercallError, DomainError):
                self._events.notify(console.port)
        if console.has_output():
            self._runnable.add(console)
        for reader in list(console.readers):
            if reader.has_unsent() or had_room != console.room_for_input():
                self._flush(console, reader)

    def _accept(self, console: DomainConsole) -> None:
        try:
            sock, _address = self._listeners[console.domid].accept()
        except (KeyError, OSError):
            return
        if len(console.readers) >= NR_READERS_MAX:
            sock.close()
            return
        self._attach(console, sock)

    def _attach(self, console: DomainConsole, sock: socket.socket) -> None:
        reader = Reader(sock, console.backlog())
        console.readers.append(reader)
        self._selector.register(sock, selectors.EVENT_READ, (console, reader))
        self._flush(console, reader)

    def _serve_reader(self, console: DomainConsole, reader: Reader) -> None:
        is_open = self._consoles.get(console.domid) is console
        if is_open and not reader.is_leaving and console.room_for_input():
            data = reader.receive()
            if data is None:
                reader.is_leaving = True  # it may have closed one direction only: it gets what there is
            elif data:
                console.queue_input(data)
            if not console.room_for_input():
                for other in list(console.readers):
                    self._flush(console, other)
            self._runnable.add(console)
        self._flush(console, reader)

    def _flush(self, console: DomainConsole, reader: Reader) -> None:
        if not reader.flush():
            self._drop(console, reader)
            return
        events = selectors.EVENT_WRITE if reader.has_unsent() else 0
        if not reader.is_leaving and console.room_for_input():
            events |= selectors.EVENT_READ
        # A reader that may not send now and has nothing to get is left out until that changes.
        is_registered = reader.sock in self._selector.get_map()
        if events and is_registered:
            self._selector.modify(reader.sock, events, (console, reader))
        elif events:
            self._selector.register(reader.sock, events, (console, reader))
        elif is_registered:
            self._selector.unregister(reader.sock)

    def _drop(self, console: DomainConsole, reader: Reader) -> None:
        if reader in console.readers:
            console.readers.remove(reader)
        if reader.sock in self._selector.get_map():
            self._selector.unregister(reader.sock)
        reader.sock.close()

    def _close(self) -> None:
        for console in list(self._consoles.values()):
            with contextlib.suppress(OSError, XenstoreRequestError):
                self._close_console(console)
        self._selector.close()
        self._events.release()


def serve(control_path: Path, xenstore_path: Path, directory: Path, stop_fd: int) -> None:
    """Connects to hypervisor and xenstored and runs the daemon. Raises ConnectionLostError, HypercallError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    with Connection.connect(control_path) as conn, XenstoreClient.connect(xenstore_path) as xenstore:
        Server(conn, xenstore, directory, stop_fd).run()

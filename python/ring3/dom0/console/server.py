"""The console daemon's loop: which consoles there are, and when each is served."""

from __future__ import annotations

import contextlib
import logging
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ring3.abi.errno import EINVAL
from ring3.dom0.console.attachments import Attachments, Poller
from ring3.dom0.console.domain import DomainConsole, make_owner, parse_owner, read_owner
from ring3.dom0.console.place import ConsolePlace
from ring3.dom0.keeper import Keeper
from ring3.errors import ConnectionLostError, DomainError, HypercallError, XenstoreRequestError
from ring3.libs import console_log, domctl
from ring3.libs.connection import Connection
from ring3.libs.evtchn import REBIND_TIMEOUT_S, EventChannels, patiently
from ring3.libs.foreignmemory import ForeignMemory
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
NR_OLD_LOGS: Final = 16
"""Logs of domains that are gone are kept for this many domains."""
_DRAIN_PUMPS_MAX: Final = 64
"""A last drain ends after this many rings, should a guest still print."""


class Server:
    """consoled. Readable `stop_fd` ends run()."""

    def __init__(
        self, conn: Connection, xenstore: XenstoreClient, directory: Path, stop_fd: int, keeper: Keeper | None
    ) -> None:
        self._conn = conn
        self._events = EventChannels(conn)
        self._memory = ForeignMemory(conn.memfd, conn.nr_frames)
        self._xenstore = xenstore
        self._directory = directory
        self._keeper = keeper
        self._poller = Poller()
        self._consoles: dict[int, DomainConsole] = {}
        self._by_port: dict[int, DomainConsole] = {}
        self._attachments: dict[DomainConsole, Attachments] = {}
        self._runnable: set[DomainConsole] = set()
        self._old_logs: list[ConsolePlace] = []
        self._is_stopped = False
        for fd, handler in (
            (stop_fd, self._stop),
            (self._events.fileno(), self._take_events),
            (xenstore.fileno(), lambda _events: None),  # taken at the next turn
        ):
            self._poller.watch(fd, select.EPOLLIN, handler)

    def run(self) -> None:
        """Serves until told to stop, or until hypervisor or xenstored is gone: then every console ends."""
        try:
            self._xenstore.watch("@introduceDomain", "introduce")
            self._xenstore.watch("@releaseDomain", "release")
            self._look_for_new_domains()
            self._finish_leftovers()
            self._xenstore.write("/tool/consoled", str(os.getpid()))  # tells `ring3 up` that consoles are served
            while not self._is_stopped:
                self._turn()
        except ConnectionLostError as error:
            _log.info("consoled: %s", error)
        self._close()

    def _turn(self) -> None:
        # Before waiting: events that came along with a reply make no descriptor readable.
        while events := list(self._xenstore.events()):
            self._take_news({token for _path, token in events})
        self._poller.wait(0 if self._runnable else None)
        for console in list(self._runnable):
            self._serve(console)

    def _stop(self, _events: int) -> None:
        self._is_stopped = True

    def _take_events(self, _events: int) -> None:
        for port in self._events.pending():
            if port in self._by_port:
                self._runnable.add(self._by_port[port])

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
        home = f"/local/domain/{domid}/console"
        ring_ref = self._xenstore.read_optional(f"{home}/ring-ref")
        port = self._xenstore.read_optional(f"{home}/port")
        if not (ring_ref and port and ring_ref.isdigit() and port.isdigit()):
            return
        remote_port = int(port)
        try:
            handle = domctl.getdomaininfo(self._conn, domid).handle
            mapping = self._memory.map(int(ring_ref))
        except (HypercallError, DomainError, ValueError, OSError) as error:
            _log.warning("console of domain %d: %s", domid, error)
            return
        place = ConsolePlace(self._directory, domid)
        owner = make_owner(handle, int(ring_ref))
        # The daemon that served it before may not be gone for the hypervisor yet.
        limit_s = REBIND_TIMEOUT_S if read_owner(place) == owner else 0.0
        try:
            local_port = patiently(lambda: self._events.bind_interdomain(domid, remote_port), EINVAL, limit_s)
        except (HypercallError, DomainError) as error:
            _log.warning("console of domain %d: %s", domid, error)
            mapping.close()
            return
        console = DomainConsole(place, mapping, local_port, owner)
        self._consoles[domid] = self._by_port[local_port] = console
        attachments = Attachments(console, self._poller, lambda: self._runnable.add(console))
        self._attachments[console] = attachments
        if self._xenstore.read_optional(f"{home}/output") == "pty":
            self._attach_pty(console, attachments, f"{home}/tty")
        self._runnable.add(console)

    def _attach_pty(self, console: DomainConsole, attachments: Attachments, node: str) -> None:
        """Gives a console a pseudo-terminal, the one that it had if a predecessor served it, and tells where it is."""
        if self._keeper is None:
            return
        if not console.goes_on:
            self._keeper.drop(console.place.name)
        found = self._keeper.pty(console.place.name)
        if found is not None:
            master_fd, device = found
            attachments.attach_pty(master_fd)
            self._xenstore.write(node, device)

    def _look_for_gone_domains(self) -> None:
        for domid, console in list(self._consoles.items()):
            self._runnable.add(console)  # a domain that shut down may have printed last words
            if not self._xenstore.is_introduced(domid):
                self._close_console(console)

    def _close_console(self, console: DomainConsole) -> None:
        """Takes the last output, unmaps, removes the sockets (tools wait for that) and lets readers have it all."""
        _drain(console)
        console.close()
        self._runnable.discard(console)
        del self._consoles[console.domid]
        if console.port is not None:
            del self._by_port[console.port]
            with contextlib.suppress(HypercallError, DomainError):
                self._events.close(console.port)
        self._attachments.pop(console).close()
        self._forget_place(console.place)

    def _forget_place(self, place: ConsolePlace) -> None:
        if self._keeper is not None:
            self._keeper.drop(place.name)
        for path in (place.sock, place.stream, place.owner):
            path.unlink(missing_ok=True)
        self._old_logs.append(place)
        while len(self._old_logs) > NR_OLD_LOGS:
            old = self._old_logs.pop(0)
            if old in self._old_logs or old.domid in self._consoles:
                continue
            for path in (old.log, console_log.older(old.log), old.state):
                path.unlink(missing_ok=True)

    def _finish_leftovers(self) -> None:
        """Lets go of what a predecessor served and nobody needs any more: somebody may be waiting for that."""
        for place in self._places():
            if place.domid in self._consoles:
                continue
            owner = read_owner(place)
            if owner is not None:
                self._drain_leftover(place, owner)
            self._forget_place(place)

    def _drain_leftover(self, place: ConsolePlace, owner: bytes) -> None:
        """Takes the last output of a domain that was released while no daemon ran, if it still is the same domain."""
        handle, mfn = parse_owner(owner)
        try:
            if domctl.getdomaininfo(self._conn, place.domid).handle != handle:
                return
            console = DomainConsole(place, self._memory.map(mfn), None, owner)
        except (HypercallError, DomainError, ValueError, OSError) as error:
            _log.info("console of domain %d: %s", place.domid, error)
            return
        _drain(console)
        console.close()

    def _places(self) -> Iterator[ConsolePlace]:
        for path in [*self._directory.glob("*.sock"), *self._directory.glob("*.owner")]:
            if path.stem.isdecimal():
                yield ConsolePlace(self._directory, int(path.stem))

    # -- bytes

    def _serve(self, console: DomainConsole) -> None:
        self._runnable.discard(console)
        if self._consoles.get(console.domid) is not console:
            return
        had_room = console.room_for_input()
        if console.pump() and console.port is not None:
            with contextlib.suppress(HypercallError, DomainError):
                self._events.notify(console.port)
        if console.has_output():
            self._runnable.add(console)
        self._attachments[console].flush(is_room_new=had_room != console.room_for_input())

    def _close(self) -> None:
        for console in list(self._consoles.values()):
            with contextlib.suppress(OSError, XenstoreRequestError):
                self._close_console(console)
        self._poller.close()
        self._events.release()


def _drain(console: DomainConsole) -> None:
    for _turn in range(_DRAIN_PUMPS_MAX):
        if not console.has_output():
            return
        console.pump()


def serve(control_path: Path, xenstore_path: Path, directory: Path, stop_fd: int, keeper: Keeper | None = None) -> None:
    """Connects to hypervisor and xenstored and runs the daemon. Raises ConnectionLostError, HypercallError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    with Connection.connect(control_path) as conn, XenstoreClient.connect(xenstore_path) as xenstore:
        Server(conn, xenstore, directory, stop_fd, keeper).run()

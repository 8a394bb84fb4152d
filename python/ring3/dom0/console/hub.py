"""The consoles that are served: opening, pumping and closing them, and what is left of those that ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ring3.abi.grant_table import GNTTAB_RESERVED_CONSOLE
from ring3.dom0.console.attachments import Attachments
from ring3.dom0.console.domain import DomainConsole, make_owner, parse_owner, read_owner
from ring3.dom0.console.place import ConsolePlace
from ring3.dom0.keeper import Keeper
from ring3.dom0.poller import Poller
from ring3.dom0.ring_page import Page, map_ring
from ring3.errors import DomainError, GrantError, HypercallError
from ring3.libs import console_log, domctl
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import Grants

_log = logging.getLogger(__name__)
NR_OLD_LOGS: Final = 16
"""Logs of consoles that are gone are kept for this many."""
_DRAIN_PUMPS_MAX: Final = 64
"""A last drain ends after this many rings, should a guest still print."""


class ConsoleHub:
    """The consoles, by domain and number, and by our port."""

    def __init__(self, conn: Connection, directory: Path, poller: Poller, keeper: Keeper | None) -> None:
        self._conn = conn
        self._events = EventChannels(conn)
        self._grants = Grants(conn)
        self._directory = directory
        self._poller = poller
        self._keeper = keeper
        self._consoles: dict[tuple[int, int], DomainConsole] = {}
        self._by_port: dict[int, DomainConsole] = {}
        self._attachments: dict[DomainConsole, Attachments] = {}
        self._old: list[ConsolePlace] = []
        self.runnable: set[DomainConsole] = set()

    def fileno(self) -> int:
        """Returns the descriptor that is readable when take_events() has something to do."""
        return self._events.fileno()

    def take_events(self, _events: int) -> None:
        """Makes consoles runnable whose domains have sent an event."""
        for port in self._events.pending():
            if port in self._by_port:
                self.runnable.add(self._by_port[port])

    def is_open(self, domid: int, number: int) -> bool:
        """Returns whether the console is served."""
        return (domid, number) in self._consoles

    def domids(self) -> list[int]:
        """Returns the domains whose first console is served."""
        return [domid for domid, number in self._consoles if number == 0]

    # -- opening

    def open_first(self, domid: int, mfn: int, port: int) -> DomainConsole | None:
        """Serves the console that every domain has; None, with a line in the log, where that cannot be."""
        return self._open(domid, 0, mfn, port, lambda: map_ring(self._grants, domid, GNTTAB_RESERVED_CONSOLE, mfn))

    def open_extra(self, domid: int, number: int, gref: int, port: int, *, is_channel: bool) -> DomainConsole | None:
        """Serves a console that the domain grants; the readers of a channel get only what is new."""
        return self._open(domid, number, gref, port, lambda: self._grants.map(domid, [gref]), is_channel=is_channel)

    def _open(
        self, domid: int, number: int, frame: int, port: int, map_page: Callable[[], Page], *, is_channel: bool = False
    ) -> DomainConsole | None:
        place = ConsolePlace(self._directory, domid, number)
        try:
            owner = make_owner(domctl.getdomaininfo(self._conn, domid).handle, frame)
            page = map_page()
        except (HypercallError, DomainError, GrantError, ValueError, OSError) as error:
            _log.warning("console %d of domain %d: %s", number, domid, error)
            return None
        try:
            local_port = self._events.rebind_interdomain(domid, port)
        except (HypercallError, DomainError) as error:
            _log.warning("console %d of domain %d: %s", number, domid, error)
            page.close()
            return None
        console = DomainConsole(place, page, local_port, owner, keeps_backlog=not is_channel)
        self._consoles[domid, number] = self._by_port[local_port] = console
        self._attachments[console] = Attachments(console, self._poller, lambda: self.runnable.add(console))
        self.runnable.add(console)
        return console

    def attach_pty(self, console: DomainConsole) -> str | None:
        """Gives a console a pseudo-terminal, the one that it had if a predecessor served it. Returns its device."""
        if self._keeper is None:
            return None
        if not console.goes_on:
            self._keeper.drop(console.place.name)
        found = self._keeper.pty(console.place.name)
        if found is None:
            return None
        master_fd, device = found
        self._attachments[console].attach_pty(master_fd)
        return device

    # -- serving

    def serve(self) -> None:
        """Moves bytes of every runnable console."""
        for console in list(self.runnable):
            self.runnable.discard(console)
            had_room = console.room_for_input()
            if console.pump() and console.port is not None:
                with contextlib.suppress(HypercallError, DomainError):
                    self._events.notify(console.port)
            if console.has_output():
                self.runnable.add(console)
            self._attachments[console].flush(is_room_new=had_room != console.room_for_input())

    def wake(self, domid: int) -> None:
        """Makes a domain's consoles runnable: one that shut down may have printed last words."""
        self.runnable.update(console for (owner, _number), console in self._consoles.items() if owner == domid)

    # -- closing

    def close(self, domid: int, number: int) -> None:
        """Takes the last output, unmaps, removes the sockets (tools wait for that) and lets readers have it all."""
        console = self._consoles.pop((domid, number), None)
        if console is None:
            return
        _drain(console)
        console.close()
        self.runnable.discard(console)
        if console.port is not None:
            del self._by_port[console.port]
            with contextlib.suppress(HypercallError, DomainError):
                self._events.close(console.port)
        self._attachments.pop(console).close()
        self._forget(console.place)

    def close_all(self) -> None:
        """Closes every console, and the hub."""
        for domid, number in list(self._consoles):
            with contextlib.suppress(OSError):
                self.close(domid, number)
        self._events.release()

    def finish_leftovers(self) -> None:
        """Lets go of what a predecessor served and nobody needs any more: somebody may be waiting for that."""
        for place in list(self._places()):
            if self.is_open(place.domid, place.number):
                continue
            owner = read_owner(place)
            if owner is not None and place.number == 0:
                self._drain_leftover(place, owner)
            self._forget(place)

    def _drain_leftover(self, place: ConsolePlace, owner: bytes) -> None:
        """Takes the last output of a domain that was released while no daemon ran, if it still is the same domain."""
        handle, mfn = parse_owner(owner)
        try:
            if domctl.getdomaininfo(self._conn, place.domid).handle != handle:
                return
            page = map_ring(self._grants, place.domid, GNTTAB_RESERVED_CONSOLE, mfn)
        except (HypercallError, DomainError, ValueError, OSError) as error:
            _log.info("console of domain %d: %s", place.domid, error)
            return
        console = DomainConsole(place, page, None, owner)
        _drain(console)
        console.close()

    def _places(self) -> Iterator[ConsolePlace]:
        for path in [*self._directory.glob("*.sock"), *self._directory.glob("*.owner")]:
            domid, _dash, number = path.stem.partition("-")
            if domid.isdecimal() and (not number or number.isdecimal()):
                yield ConsolePlace(self._directory, int(domid), int(number or 0))

    def _forget(self, place: ConsolePlace) -> None:
        if self._keeper is not None:
            self._keeper.drop(place.name)
        for path in (place.sock, place.stream, place.owner):
            path.unlink(missing_ok=True)
        self._old.append(place)
        while len(self._old) > NR_OLD_LOGS:
            old = self._old.pop(0)
            if old not in self._old and not self.is_open(old.domid, old.number):
                for path in (old.log, console_log.older(old.log), old.state):
                    path.unlink(missing_ok=True)


def _drain(console: DomainConsole) -> None:
    for _turn in range(_DRAIN_PUMPS_MAX):
        if not console.has_output():
            return
        console.pump()

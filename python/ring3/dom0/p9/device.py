"""The back end of one share: a process of its own, which can reach this directory and nothing else of the host.

Its states are xenbus's. The rings are the domain's memory: whatever is wrong there ends this device, until its front
end begins anew.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from ring3.dom0 import xenbus
from ring3.dom0.confine import confine
from ring3.dom0.p9.credentials import MODELS
from ring3.dom0.p9.journal import Answer, Journal
from ring3.dom0.p9.messages import MalformedError
from ring3.dom0.p9.ring import MAX_ORDER, TransportRing
from ring3.dom0.p9.session import Session
from ring3.dom0.p9.tree import Tree
from ring3.dom0.xenbus import XenbusState
from ring3.errors import DomainError, GuestError, HypercallError, XenstoreRequestError
from ring3.libs.connection import Connection
from ring3.libs.device import Device
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import Grants
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
VERSIONS: Final = "1"
NR_RINGS_MAX: Final = 4
_NR_REQUESTS_PER_TURN: Final = 64
"""Requests of one ring before the others, and the device's state, get their turn."""
_KEPT_BYTES_MAX: Final = 512
"""Larger responses carry data that was read: such a request can be carried out again."""
_U32_MAX: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Share:
    """What the toolstack has written into the back end's node."""

    path: Path
    model: str
    is_read_only: bool

    @classmethod
    def read(cls, xenstore: XenstoreClient, device: Device) -> Share | None:
        """Returns it; None if that node has gone, or says nothing that can be served."""
        path = xenstore.read_optional(f"{device.back}/path")
        model = xenstore.read_optional(f"{device.back}/security_model") or "none"
        if not path or not path.startswith("/") or model not in MODELS:
            return None
        return cls(Path(path), model, xenstore.read_optional(f"{device.back}/readonly") == "1")


@dataclass(slots=True)
class _Connected:
    """What there is while the front end is connected."""

    session: Session
    journal: Journal
    rings: list[TransportRing] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)


class Back:
    """One device. `place` is a directory of its own, for the journal."""

    def __init__(self, conn: Connection, xenstore: XenstoreClient, device: Device, share: Share, place: Path) -> None:
        self._xenstore = xenstore
        self._device = device
        self._share = share
        self._place = place
        self._events = EventChannels(conn)
        self._grants = Grants(conn)
        self._tree = Tree(share.path, is_read_only=share.is_read_only)
        self._connected: _Connected | None = None

    def run(self) -> None:
        """Serves until the device is removed. Raises ConnectionLostError."""
        device, xenstore = self._device, self._xenstore
        # A predecessor was connected, and its front end still thinks that it is.
        is_successor = xenbus.read_state(xenstore, device.back) is XenbusState.CONNECTED
        self._announce()
        for node in (f"{device.front}/state", f"{device.back}/online", f"{device.back}/state"):
            xenstore.watch(node, "state")
        poll = select.poll()
        for fd in (xenstore.fileno(), self._events.fileno()):
            poll.register(fd, select.POLLIN)
        is_busy = False
        while True:
            while list(xenstore.events()):
                if not self._look(is_successor=is_successor):
                    return
                is_successor = False
                is_busy = True  # requests may have come before there was a port to tell of them
            if not is_busy:
                poll.poll()
            self._events.pending()
            is_busy = self._serve()

    def close(self) -> None:
        """Lets go of domain and files."""
        self._disconnect(is_final=True)
        self._tree.close()

    # -- states

    def _announce(self) -> None:
        def write(tx_id: int) -> None:
            if self._xenstore.read_optional(f"{self._device.back}/state", tx_id=tx_id) is None:
                return
            for name, value in (
                ("versions", VERSIONS),
                ("max-rings", str(NR_RINGS_MAX)),
                ("max-ring-page-order", str(MAX_ORDER)),
                ("hotplug-status", "connected"),
            ):
                self._xenstore.write(f"{self._device.back}/{name}", value, tx_id=tx_id)

        self._xenstore.transaction(write)

    def _look(self, *, is_successor: bool) -> bool:
        """Does what the states ask for; returns False when the device is no more."""
        device, xenstore = self._device, self._xenstore
        state = xenbus.read_state(xenstore, device.back)
        if state is None:
            return False
        is_online = xenstore.read_optional(f"{device.back}/online") != "0"
        match xenbus.read_state(xenstore, device.front):
            case XenbusState.INITIALISED | XenbusState.CONNECTED if is_online:
                # One that was let go goes through Closed first: else it would be taken back at once.
                if self._connected is None and state is not XenbusState.CLOSING:
                    self._connect(is_successor=is_successor)
            case XenbusState.INITIALISING | XenbusState.UNKNOWN if is_online:
                self._disconnect()
                xenbus.switch_state(xenstore, device, XenbusState.INIT_WAIT)
            case XenbusState.CLOSING:
                self._disconnect()
                xenbus.switch_state(xenstore, device, XenbusState.CLOSING)
            case _:
                self._disconnect()
                xenbus.switch_state(xenstore, device, XenbusState.CLOSED)
        return True

    def _connect(self, *, is_successor: bool) -> None:
        journal = Journal(self._place, is_successor=is_successor)
        rings, ports = list[TransportRing](), list[int]()
        try:
            nr_rings = self._front_number("num-rings", NR_RINGS_MAX)
            if nr_rings == 0:
                raise GuestError(self._device.domid, "num-rings is 0")
            for number in range(nr_rings):
                gref = self._front_number(f"ring-ref{number}", _U32_MAX)
                port = self._front_number(f"event-channel-{number}", _U32_MAX)
                rings.append(TransportRing(self._grants, self._device.domid, gref))
                ports.append(self._events.rebind_interdomain(self._device.domid, port))
            msize_max = min(ring.size for ring in rings) // 2
            session = Session(self._tree, MODELS[self._share.model](), journal, msize_max)
        except (GuestError, HypercallError, DomainError, ValueError) as error:
            _log.warning("9pfs %d of domain %d: %s", self._device.number, self._device.domid, error)
            self._let_go(rings, ports)
            journal.close()
            xenbus.switch_state(self._xenstore, self._device, XenbusState.CLOSING)
            return
        self._connected = _Connected(session, journal, rings, ports)
        for number, ring in enumerate(rings):
            self._settle(ring, journal.answers.get(number))
            # A predecessor may have ended between an answer and the event that tells of it.
            self._notify(ports[number])
        xenbus.switch_state(self._xenstore, self._device, XenbusState.CONNECTED)

    def _front_number(self, name: str, maximum: int) -> int:
        text = self._xenstore.read_optional(f"{self._device.front}/{name}") or ""
        if not text.isdecimal() or len(text) > 10 or int(text) > maximum:
            raise ValueError(f"{name} is {text[:40]!r}")
        return int(text)

    def _settle(self, ring: TransportRing, answer: Answer | None) -> None:
        """Ends what a predecessor was at: the request at the ring's index may have been carried out."""
        if answer is None or answer.out_cons != ring.out_cons:
            return
        request = ring.peek()
        if request is None:
            return
        if answer.in_prod == ring.in_prod:
            # Without the response it is one to carry out again.
            if answer.response is None or not ring.has_room(len(answer.response)):
                return
            ring.put(answer.response)
        ring.take(len(request))

    def _disconnect(self, *, is_final: bool = False) -> None:
        connected, self._connected = self._connected, None
        if connected is None:
            return
        connected.session.close()
        self._let_go(connected.rings, connected.ports)
        if not is_final:
            connected.journal.close()

    def _let_go(self, rings: list[TransportRing], ports: list[int]) -> None:
        for port in ports:
            with contextlib.suppress(HypercallError, DomainError):
                self._events.close(port)
        for ring in rings:
            ring.close()

    # -- requests

    def _serve(self) -> bool:
        """Answers what has come; returns whether there is more. Who breaks the protocol loses the device."""
        connected = self._connected
        if connected is None:
            return False
        try:
            has_more = [self._serve_ring(connected, number) for number in range(len(connected.rings))]
            return any(has_more)
        except (GuestError, MalformedError) as error:
            _log.warning("9pfs %d of domain %d: %s", self._device.number, self._device.domid, error)
            self._disconnect()
            with contextlib.suppress(XenstoreRequestError):
                xenbus.switch_state(self._xenstore, self._device, XenbusState.CLOSING)
            return False

    def _serve_ring(self, connected: _Connected, number: int) -> bool:
        ring, session = connected.rings[number], connected.session
        nr_answered = 0
        while nr_answered < _NR_REQUESTS_PER_TURN and ring.has_room(session.msize):
            request = ring.peek()
            if request is None:
                break
            response = session.answer(request)
            kept = response if len(response) <= _KEPT_BYTES_MAX else None
            connected.journal.answered(number, Answer(ring.out_cons, ring.in_prod, kept))
            ring.put(response)
            ring.take(len(request))
            nr_answered += 1
        if nr_answered:
            self._notify(connected.ports[number])
        return nr_answered == _NR_REQUESTS_PER_TURN

    def _notify(self, port: int) -> None:
        with contextlib.suppress(HypercallError, DomainError):
            self._events.notify(port)


def serve(control: Path, xenstored: Path, device: Device, place: Path) -> int:
    """The life of a device's process; returns its exit code. Raises ConnectionLostError, OSError."""
    with Connection.connect(control) as conn, XenstoreClient.connect(xenstored) as xenstore:
        share = Share.read(xenstore, device)
        if share is None:
            return 0
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.umask(0)
        readable = [share.path] if share.is_read_only else []
        confine([place] if share.is_read_only else [place, share.path], readable=readable)
        try:
            back = Back(conn, xenstore, device, share, place)
        except OSError as error:
            xenstore.write(f"{device.back}/hotplug-error", f"{share.path}: {error.strerror}")
            xenstore.write(f"{device.back}/hotplug-status", "error")
            return 1
        try:
            back.run()
        finally:
            back.close()
    return 0

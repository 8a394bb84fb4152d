"""The rings of introduced domains: the I/O side of INTRODUCE and RELEASE."""

from __future__ import annotations

import contextlib
import logging

from ring3.abi.grant_table import GNTTAB_RESERVED_XENSTORE
from ring3.dom0.ring_page import Page, map_ring
from ring3.dom0.xenstored import stream
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.image import SavedConnection
from ring3.dom0.xenstored.journal import Journal
from ring3.dom0.xenstored.recorder import Recorder
from ring3.dom0.xenstored.ring import DomainConnection
from ring3.dom0.xenstored.stream import ConnectionType, Record
from ring3.dom0.xenstored.wire import RefusedError
from ring3.errors import DomainError, HypercallError
from ring3.libs import domctl
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import Grants

_log = logging.getLogger(__name__)


class DomainRings:
    """Which domains have a ring, by domid and by our port (`domain_requests.Domains`)."""

    def __init__(self, conn: Connection, events: EventChannels, journal: Journal, waiting: set[Client]) -> None:
        self._conn = conn
        self._grants = Grants(conn)
        self._events = events
        self._journal = journal
        self._waiting = waiting
        self.by_domid: dict[int, DomainConnection] = {}
        self.by_port: dict[int, DomainConnection] = {}
        self.dropped: list[Client] = []
        """Clients whose watches are to be forgotten."""
        self.resets: list[DomainConnection] = []
        """Rings that are to start over at the end of the turn."""
        self.released: dict[int, None] = {}
        """Domains that were released while they lived: their end is still news for @releaseDomain."""

    # -- requests

    def introduce(self, domid: int, mfn: int, port: int) -> bool:
        """Maps the ring and binds the port; a domain that is known gets a new port and starts over, on the same ring.

        Returns whether it is new. Raises RefusedError.
        """
        if domid == 0:
            raise RefusedError("EINVAL")
        known = self.by_domid.get(domid)
        if known is not None:
            self._reconnect(known, port)
            return False
        try:
            handle = domctl.getdomaininfo(self._conn, domid).handle
            mapping = self._map(domid, mfn)
        except (HypercallError, DomainError, ValueError, OSError) as error:
            raise RefusedError("EINVAL") from error
        try:
            local_port = self._bind(domid, port)
        except RefusedError:
            mapping.close()
            raise
        domain = self._add(domid, mapping, local_port, port, mfn, handle)
        saved = domain.save()
        spec = stream.ring_spec(domid, None, port)
        self._journal.add(stream.connection(domid, ConnectionType.RING, spec, b"", 0, b""))
        self._journal.add(domain.place() + stream.positions(domid, saved.req_cons, saved.rsp_start))
        if domid in self.released:
            self.forget_released(domid)
        domain.connect()
        self.notify(domain)
        return True

    def release(self, domid: int) -> None:
        """Drops the ring. Raises RefusedError(ENOENT)."""
        self._find(domid)
        self.drop(domid)
        self.released[domid] = None
        self._journal.add(stream.pair(Record.RELEASED, domid, 1))

    def is_introduced(self, domid: int) -> bool:
        """Returns whether the domain has a ring. Domain 0 is always there."""
        return domid == 0 or domid in self.by_domid

    def resume(self, domid: int) -> None:
        """Forgets that the domain was shut down. Raises RefusedError(ENOENT)."""
        self.set_shutdown(self._find(domid), is_shutdown=False)

    def set_target(self, domid: int, target: int) -> None:
        """Gives a domain its target's rights. Raises RefusedError(ENOENT)."""
        self._find(target)
        domain = self._find(domid)
        domain.client.target = target
        self._journal.add(domain.place())

    # -- the server's

    def set_shutdown(self, domain: DomainConnection, *, is_shutdown: bool) -> None:
        """Remembers whether the end of a domain has been announced."""
        domain.is_shutdown = is_shutdown
        self._journal.add(domain.place())

    def forget_released(self, domid: int) -> None:
        """The end of a released domain is no longer news."""
        del self.released[domid]
        self._journal.add(stream.pair(Record.RELEASED, domid, 0))

    def drop(self, domid: int) -> None:
        """Unmaps the ring and closes the port, which the hypervisor may have closed already."""
        domain = self.by_domid.pop(domid)
        self.by_port.pop(domain.port, None)
        domain.close()
        with contextlib.suppress(HypercallError, DomainError):
            self._events.close(domain.port)
        for other in self.by_domid.values():
            if other.client.target == domid:
                other.client.target = None
                self._journal.add(other.place())
        self._journal.add(stream.pair(Record.CONNECTION_GONE, domid, 0))
        domain.client.recorder = Recorder()  # there is nothing more to remember of it
        self._waiting.discard(domain.client)
        self.dropped.append(domain.client)

    def notify(self, domain: DomainConnection) -> None:
        """Sends the domain an event, and waits for nothing; one that is just dying does not get it."""
        self._events.post(domain.port)

    def restore(self, saved: SavedConnection) -> DomainConnection | None:
        """Takes over the ring of a predecessor; None if the domain is no longer there."""
        domid = saved.conn_id
        try:
            info = domctl.getdomaininfo(self._conn, domid)
            if info.is_dying or info.handle != saved.handle:
                return None
            mapping = self._map(domid, saved.mfn)
        except (HypercallError, DomainError, ValueError, OSError) as error:
            _log.info("domain %d: %s", domid, error)
            return None
        try:
            local_port = self._events.rebind_interdomain(domid, saved.port)
        except (HypercallError, DomainError) as error:
            _log.warning("domain %d: port %d cannot be bound again: %s", domid, saved.port, error)
            mapping.close()
            return None
        domain = self._add(domid, mapping, local_port, saved.port, saved.mfn, saved.handle)
        domain.client.target = saved.target
        domain.restore(saved)
        return domain

    # -- within

    def _map(self, domid: int, mfn: int) -> Page:
        return map_ring(self._grants, domid, GNTTAB_RESERVED_XENSTORE, mfn)

    def _add(self, domid: int, mapping: Page, port: int, remote_port: int, mfn: int, handle: bytes) -> DomainConnection:
        client = Client(domid, is_privileged=False, recorder=self._journal, waiting=self._waiting)
        domain = DomainConnection(client, mapping, port, remote_port=remote_port, mfn=mfn, handle=handle)
        self.by_domid[domid] = self.by_port[port] = domain
        return domain

    def _reconnect(self, domain: DomainConnection, port: int) -> None:
        """As after a suspend: the domain has a new port."""
        with contextlib.suppress(HypercallError, DomainError):
            self._events.close(domain.port)
        del self.by_port[domain.port]
        try:
            domain.port = self._bind(domain.client.domid, port)
        except RefusedError:
            self.drop(domain.client.domid)
            raise
        domain.remote_port = port
        self.by_port[domain.port] = domain
        self.resets.append(domain)

    def _bind(self, domid: int, port: int) -> int:
        try:
            return self._events.bind_interdomain(domid, port)
        except (HypercallError, DomainError) as error:
            raise RefusedError("EINVAL") from error

    def _find(self, domid: int) -> DomainConnection:
        domain = self.by_domid.get(domid)
        if domain is None:
            raise RefusedError("ENOENT")
        return domain

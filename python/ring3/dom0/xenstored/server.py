"""The xenstore daemon's loop: rings of introduced domains, the socket of domain 0, and news of dead domains."""

from __future__ import annotations

import contextlib
import logging
import selectors
import socket
from pathlib import Path
from typing import Final

from ring3.abi.xen import VIRQ_DOM_EXC
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.requests import Requests
from ring3.dom0.xenstored.ring import DomainConnection
from ring3.dom0.xenstored.socket_client import SocketConnection
from ring3.dom0.xenstored.wire import RefusedError
from ring3.errors import ConnectionLostError, DomainError, HypercallError
from ring3.libs import sysctl
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels
from ring3.libs.foreignmemory import ForeignMemory

_log = logging.getLogger(__name__)
_NR_SOCKET_CLIENTS_MAX: Final = 512


class DomainRings:
    """The rings of introduced domains: the I/O side of INTRODUCE and RELEASE (requests.Domains)."""

    def __init__(self, conn: Connection, events: EventChannels) -> None:
        self._memory = ForeignMemory(conn.memfd, conn.nr_frames)
        self._events = events
        self.by_domid: dict[int, DomainConnection] = {}
        self.by_port: dict[int, DomainConnection] = {}
        self.dropped: list[Client] = []
        """Clients whose watches are to be forgotten."""
        self.released: set[int] = set()
        """Domains that were released while they lived: their end is still news for @releaseDomain."""

    def introduce(self, domid: int, mfn: int, port: int) -> None:
        """Maps the ring and binds the port; a domain that is known gets a new connection. Raises RefusedError."""
        if domid == 0:
            raise RefusedError("EINVAL")
        if domid in self.by_domid:
            self.drop(domid)
        try:
            mapping = self._memory.map(mfn)
        except (ValueError, OSError) as error:
            raise RefusedError("EINVAL") from error
        try:
            local_port = self._events.bind_interdomain(domid, port)
        except (HypercallError, DomainError) as error:
            mapping.close()
            raise RefusedError("EINVAL") from error
        self.released.discard(domid)
        domain = DomainConnection(Client(domid, is_privileged=False), mapping, local_port)
        self.by_domid[domid] = self.by_port[local_port] = domain
        self.notify(domain)

    def release(self, domid: int) -> None:
        """Drops the ring. Raises RefusedError(ENOENT)."""
        self._find(domid)
        self.drop(domid)
        self.released.add(domid)

    def is_introduced(self, domid: int) -> bool:
        """Returns whether the domain has a ring. Domain 0 is always there."""
        return domid == 0 or domid in self.by_domid

    def resume(self, domid: int) -> None:
        """Forgets that the domain was shut down. Raises RefusedError(ENOENT)."""
        self._find(domid).is_shutdown = False

    def set_target(self, domid: int, target: int) -> None:
        """Gives a domain its target's rights. Raises RefusedError(ENOENT)."""
        self._find(target)
        self._find(domid).client.target = target

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
        self.dropped.append(domain.client)

    def notify(self, domain: DomainConnection) -> None:
        """Sends the domain an event; one that is just dying does not get it."""
        with contextlib.suppress(HypercallError, DomainError):
            self._events.notify(domain.port)

    def _find(self, domid: int) -> DomainConnection:
        domain = self.by_domid.get(domid)
        if domain is None:
            raise RefusedError("ENOENT")
        return domain


class Server:
    """xenstored. `listener` is the Unix socket for domain 0; readable `stop_fd` ends run()."""

    def __init__(self, conn: Connection, listener: socket.socket, stop_fd: int) -> None:
        self._conn = conn
        self._events = EventChannels(conn)
        self._rings = DomainRings(conn, self._events)
        self._requests = Requests(self._rings)
        self._virq_port = self._events.bind_virq(VIRQ_DOM_EXC)
        self._sockets: dict[socket.socket, SocketConnection] = {}
        self._runnable: set[DomainConnection] = set()
        self._listener = listener
        self._stop_fd = stop_fd
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """Serves until told to stop, or until the hypervisor is gone."""
        self._listener.setblocking(False)
        for fileobj in (self._events, self._listener, self._stop_fd):
            self._selector.register(fileobj, selectors.EVENT_READ)
        try:
            while self._turn():
                pass
        except ConnectionLostError as error:
            _log.info("xenstored: %s", error)
        finally:
            self._close()

    def _turn(self) -> bool:
        for key, events in self._selector.select(0 if self._runnable else None):
            if key.fileobj == self._stop_fd:
                return False
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._events:
                self._take_events()
            elif events & selectors.EVENT_READ:
                self._serve_socket(key.data)
        for domain in list(self._runnable):
            self._serve_domain(domain)
        self._flush_all()
        return True

    def _take_events(self) -> None:
        for port in self._events.pending():
            if port == self._virq_port:
                self._look_for_dead_domains()
            elif (domain := self._rings.by_port.get(port)) is not None:
                self._runnable.add(domain)

    def _serve_domain(self, domain: DomainConnection) -> None:
        self._runnable.discard(domain)
        if self._rings.by_port.get(domain.port) is not domain:
            return
        if domain.wants_reset():
            self._requests.forget(domain.client)
            domain.reset()
            self._rings.notify(domain)
        has_flushed = domain.flush()
        messages, has_read = domain.receive()
        for message in messages:
            self._requests.handle(domain.client, message)
        if domain.flush() or has_flushed or has_read:
            self._rings.notify(domain)
        if domain.has_input():
            self._runnable.add(domain)

    def _serve_socket(self, connection: SocketConnection) -> None:
        messages = connection.receive()
        if messages is None:
            self._drop_socket(connection)
            return
        for message in messages:
            self._requests.handle(connection.client, message)

    def _flush_all(self) -> None:
        while self._rings.dropped:
            self._requests.forget(self._rings.dropped.pop())
        for domain in self._rings.by_domid.values():
            if domain.client.outgoing and domain.flush():
                self._rings.notify(domain)
        for connection in list(self._sockets.values()):
            if not (connection.client.outgoing or connection.has_unsent()):
                continue
            if connection.flush():
                # A client that does not read its answers gets no further requests served.
                wanted = selectors.EVENT_WRITE if connection.has_unsent() else selectors.EVENT_READ
                self._selector.modify(connection.sock, wanted, connection)
            else:
                self._drop_socket(connection)

    def _look_for_dead_domains(self) -> None:
        alive = {info.domid: info for info in sysctl.getdomaininfolist(self._conn)}
        ended = {domid for domid in self._rings.released if domid not in alive or alive[domid].is_dying}
        self._rings.released -= ended
        is_news = bool(ended)
        for domid, domain in list(self._rings.by_domid.items()):
            info = alive.get(domid)
            if info is None or info.is_dying:
                self._rings.drop(domid)
                is_news = True
            elif info.is_shutdown and not domain.is_shutdown:
                domain.is_shutdown = True
                is_news = True
        if is_news:
            self._requests.fire(b"@releaseDomain", exact=True)

    def _accept(self) -> None:
        try:
            sock, _address = self._listener.accept()
        except OSError as error:
            _log.warning("xenstored: accept: %s", error)
            return
        if len(self._sockets) >= _NR_SOCKET_CLIENTS_MAX:
            sock.close()
            return
        sock.setblocking(False)
        connection = SocketConnection(sock)
        self._sockets[sock] = connection
        self._selector.register(sock, selectors.EVENT_READ, connection)

    def _drop_socket(self, connection: SocketConnection) -> None:
        self._selector.unregister(connection.sock)
        del self._sockets[connection.sock]
        connection.sock.close()
        self._requests.forget(connection.client)

    def _close(self) -> None:
        self._selector.close()
        for connection in self._sockets.values():
            connection.sock.close()
        for domain in self._rings.by_domid.values():
            domain.close()
        self._events.release()
        self._listener.close()


def serve(control_path: Path, listener: socket.socket, stop_fd: int) -> None:
    """Connects to the hypervisor and runs the daemon. Raises ConnectionLostError, HypercallError."""
    with Connection.connect(control_path) as conn:
        Server(conn, listener, stop_fd).run()

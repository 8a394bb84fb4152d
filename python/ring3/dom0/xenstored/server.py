"""The xenstore daemon's loop: rings of introduced domains, the socket of domain 0, and news of dead domains.

A turn takes requests, works on them in memory, writes what has changed to the state file, and only then lets anybody
see an answer. So a daemon that is killed can be started again at once, and no domain notices.
"""

from __future__ import annotations

import logging
import select
import socket
from functools import partial
from pathlib import Path
from typing import Final

from ring3.abi.errno import EEXIST
from ring3.abi.xen import VIRQ_DOM_EXC
from ring3.dom0.keeper import Keeper
from ring3.dom0.poller import Poller
from ring3.dom0.xenstored import takeover
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.core import Core
from ring3.dom0.xenstored.image import Image
from ring3.dom0.xenstored.journal import Journal
from ring3.dom0.xenstored.live_update import LiveUpdate
from ring3.dom0.xenstored.paths import RELEASE_DOMAIN, home
from ring3.dom0.xenstored.perms import PRIVATE_PERMS
from ring3.dom0.xenstored.requests import Requests
from ring3.dom0.xenstored.ring import DomainConnection
from ring3.dom0.xenstored.rings import DomainRings
from ring3.dom0.xenstored.socket_client import SocketConnection
from ring3.dom0.xenstored.state_file import StateFile
from ring3.dom0.xenstored.store import create
from ring3.dom0.xenstored.wire import Message
from ring3.errors import ConnectionLostError
from ring3.libs import sysctl
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels, patiently

_log = logging.getLogger(__name__)
_NR_SOCKET_CLIENTS_MAX: Final = 512
_NR_OUTSTANDING_UNLIMITED: Final = 1 << 30
_DOM0_NODES: Final = {b"/domid": b"0", b"/name": b"Domain-0"}
"""What Xen's xen-init-dom0 writes; here nobody else comes before the first client."""


class Server:
    """xenstored. `listener` is the Unix socket for domain 0; readable `stop_fd` ends run()."""

    def __init__(
        self,
        conn: Connection,
        listener: socket.socket,
        stop_fd: int,
        state: StateFile,
        update: LiveUpdate,
        kept_fds: list[int],
    ) -> None:
        self._conn = conn
        self._listener = listener
        self._state = state
        self._update = update
        self._kept_fds = kept_fds
        self._waiting: set[Client] = set()
        self._journal = Journal()
        self._core = Core(self._journal)
        self._events = EventChannels(conn)
        self._rings = DomainRings(conn, self._events, self._journal, self._waiting)
        self._requests = Requests(self._core, self._rings, update)
        self._virq_port = patiently(lambda: self._events.bind_virq(VIRQ_DOM_EXC), EEXIST)
        self._sockets: dict[int, SocketConnection] = {}
        self._by_client: dict[Client, SocketConnection] = {}
        self._runnable: set[DomainConnection] = set()
        self._epoch = 1
        self._is_stopped = False
        self._poller = Poller()
        for fd, handler in (
            (self._events.fileno(), self._take_events),
            (listener.fileno(), self._accept),
            (stop_fd, self._stop),
        ):
            self._poller.watch(fd, select.EPOLLIN, handler)

    def run(self) -> None:
        """Serves until told to stop, until the hypervisor is gone, or until another program is to take its place."""
        self._listener.setblocking(False)
        try:
            self._begin()
            while not self._is_stopped and not self._update.is_due:
                self._turn()
            if self._update.is_due:
                self._state.write_image(self._image(with_sockets=True))
                self._update.hand_over(list(self._sockets))
        except ConnectionLostError as error:
            _log.info("xenstored: %s", error)
        finally:
            self._close()

    # -- turns

    def _begin(self) -> None:
        """Takes over what a predecessor has left, or begins with an empty store."""
        image = self._state.load()
        if image is not None:
            self._epoch = image.epoch + 1
            image.epoch = self._epoch
            sockets, ended = takeover.restore(image, self._core, self._rings, self._waiting, self._kept_fds)
            for connection in sockets:
                self._add_socket(connection)
            self._runnable.update(self._rings.by_domid.values())
            _log.info("took over %d nodes, %d domains", len(self._core.store), len(self._rings.by_domid))
            for domid in ended:
                self._core.forget_domain(domid)
            self._look_for_dead_domains(is_news=bool(ended))
        else:
            for name, value in _DOM0_NODES.items():
                create(self._core.store, home(0) + name, value, PRIVATE_PERMS)
        self._journal.take()  # the image has it all
        self._state.write_image(self._image())
        for domain in self._rings.by_domid.values():
            domain.publish()
            self._rings.notify(domain)
        self._commit(set())

    def _turn(self) -> None:
        self._poller.wait(0 if self._runnable else None)
        if self._runnable:
            touched, self._runnable = self._runnable, set()
            for domain in touched:
                self._serve_domain(domain)
        else:
            touched = set()
        self._commit(touched)

    def _commit(self, touched: set[DomainConnection]) -> None:
        """Makes last what has happened, then lets everybody see it."""
        rings = self._rings
        while rings.dropped:
            self._core.forget(rings.dropped.pop())
        resets = rings.resets
        if resets:
            rings.resets = []
        for domain in resets:
            self._core.forget(domain.client)
            self._journal.add(domain.reset())
        batch = self._journal.take()
        if batch:
            self._state.append(batch, self._image)
        for domain in resets:
            domain.finish_reset()
            rings.notify(domain)
            self._runnable.add(domain)
        while self._waiting:
            client = self._waiting.pop()
            connection = self._by_client.get(client)
            if connection is not None:
                self._flush(connection)
            elif (waiting := rings.by_domid.get(client.domid)) is not None and waiting.client is client:
                touched.add(waiting)
        for domain in touched:
            if rings.by_domid.get(domain.client.domid) is domain:
                self._publish(domain)
        if self._state.wants_image():
            self._state.write_image(self._image())

    def _image(self, *, with_sockets: bool = False) -> Image:
        sockets = self._sockets.values() if with_sockets else ()
        return takeover.make_image(self._core, self._rings, sockets, self._epoch)

    # -- domains

    def _take_events(self, _mask: int) -> None:
        for port in self._events.pending():
            if port == self._virq_port:
                self._look_for_dead_domains()
            elif (domain := self._rings.by_port.get(port)) is not None:
                self._runnable.add(domain)

    def _serve_domain(self, domain: DomainConnection) -> None:
        if self._rings.by_port.get(domain.port) is not domain:
            return
        if domain.wants_reset():
            self._rings.resets.append(domain)
            return
        was_ignored = domain.is_ignored
        for message in domain.receive(self._nr_outstanding_max()):
            self._handle(domain.client, message)
        if domain.is_ignored and not was_ignored:
            self._ignore(domain)
            return
        self._journal.add(domain.input_record())

    def _publish(self, domain: DomainConnection) -> None:
        was_ignored = domain.is_ignored
        if domain.publish():
            self._rings.notify(domain)
        if domain.is_ignored and not was_ignored:
            self._ignore(domain)
        elif domain.has_input(self._nr_outstanding_max()):
            self._runnable.add(domain)

    def _ignore(self, domain: DomainConnection) -> None:
        _log.warning("domain %d broke the protocol; it is ignored until it reconnects", domain.client.domid)
        self._core.forget(domain.client)
        self._journal.add(domain.place())

    def _nr_outstanding_max(self) -> int:
        return self._core.quotas["outstanding"] or _NR_OUTSTANDING_UNLIMITED

    def _look_for_dead_domains(self, *, is_news: bool = False) -> None:
        alive = {info.domid: info for info in sysctl.getdomaininfolist(self._conn)}
        ended = [domid for domid in self._rings.released if domid not in alive or alive[domid].is_dying]
        for domid in ended:
            self._rings.forget_released(domid)
        for domid, domain in list(self._rings.by_domid.items()):
            info = alive.get(domid)
            if info is None or info.is_dying:
                self._rings.drop(domid)
                self._core.forget_domain(domid)
                ended.append(domid)
            elif info.is_shutdown and not domain.is_shutdown:
                self._rings.set_shutdown(domain, is_shutdown=True)
                ended.append(domid)
        for domid in ended:
            self._core.fire_special(RELEASE_DOMAIN, domid)
        if is_news and not ended:
            self._core.fire_special(RELEASE_DOMAIN, None)

    # -- the socket

    def _accept(self, _mask: int) -> None:
        try:
            sock, _address = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            _log.warning("xenstored: accept: %s", error)
            return
        if len(self._sockets) >= _NR_SOCKET_CLIENTS_MAX:
            sock.close()
            return
        self._add_socket(SocketConnection(sock, self._waiting))

    def _add_socket(self, connection: SocketConnection) -> None:
        connection.sock.setblocking(False)
        self._sockets[connection.sock.fileno()] = self._by_client[connection.client] = connection
        self._watch_socket(connection)

    def _watch_socket(self, connection: SocketConnection) -> None:
        # A client that does not read its answers gets no further requests served.
        events = select.EPOLLOUT if connection.is_blocked else select.EPOLLIN
        self._poller.watch(connection.sock.fileno(), events, partial(self._serve_socket, connection))

    def _serve_socket(self, connection: SocketConnection, mask: int) -> None:
        if connection.is_blocked:
            self._waiting.add(connection.client)
            if mask & (select.EPOLLERR | select.EPOLLHUP):
                self._drop_socket(connection)
            return
        messages = connection.receive()
        if messages is None:
            self._drop_socket(connection)
            return
        for message in messages:
            self._handle(connection.client, message)

    def _flush(self, connection: SocketConnection) -> None:
        was_blocked = connection.is_blocked
        if not connection.flush():
            self._drop_socket(connection)
        elif connection.is_blocked != was_blocked:
            self._watch_socket(connection)

    def _drop_socket(self, connection: SocketConnection) -> None:
        fd = connection.sock.fileno()
        if self._sockets.pop(fd, None) is None:
            return
        del self._by_client[connection.client]
        self._poller.forget(fd)
        connection.sock.close()
        self._core.forget(connection.client)

    # -- all

    def _handle(self, client: Client, message: Message) -> None:
        if self._update.is_tracing:
            payload = message.payload.replace(b"\0", b" ").decode(errors="replace")
            self._update.trace(f"domain {client.domid}: {message.type} tx {message.tx_id}: {payload}")
        self._requests.handle(client, message)

    def _stop(self, _mask: int) -> None:
        self._is_stopped = True

    def _close(self) -> None:
        self._poller.close()
        for connection in self._sockets.values():
            connection.sock.close()
        for domain in self._rings.by_domid.values():
            domain.close()
        self._events.release()
        self._state.close()


def serve(
    control_path: Path,
    listener: socket.socket,
    stop_fd: int,
    state_path: Path,
    keeper: Keeper | None,
    kept_fds: list[int],
) -> None:
    """Connects to the hypervisor and runs the daemon. Raises ConnectionLostError, HypercallError.

    `kept_fds` are the connections on the socket of a predecessor that made room for this process.
    """
    with Connection.connect(control_path) as conn:
        Server(conn, listener, stop_fd, StateFile(state_path), LiveUpdate(keeper, state_path.parent), kept_fds).run()

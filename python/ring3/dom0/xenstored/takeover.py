"""From the running daemon to an image of its state, and back into one that has just been started."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from typing import Final

from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.core import Core
from ring3.dom0.xenstored.image import Image, SavedConnection
from ring3.dom0.xenstored.quota import SOFT
from ring3.dom0.xenstored.ring import DomainConnection
from ring3.dom0.xenstored.rings import DomainRings
from ring3.dom0.xenstored.socket_client import SocketConnection
from ring3.dom0.xenstored.transactions import Transaction
from ring3.dom0.xenstored.watch_requests import make_watch
from ring3.dom0.xenstored.wire import RefusedError

_GENERATIONS_PER_EPOCH: Final = 1 << 40


def make_image(core: Core, rings: DomainRings, sockets: Iterable[SocketConnection], epoch: int) -> Image:
    """Returns the state. `sockets` are those that go on: none, but where the process stays and its program changes."""
    image = Image(
        nodes={path: (node.value, node.perms) for path, node in core.store.items()},
        released=dict(rings.released),
        quotas=dict(core.quotas.items()) | {f"{SOFT}{name}": value for name, value in core.soft_quotas.items()},
        epoch=epoch,
    )
    transports: list[DomainConnection | SocketConnection] = [*rings.by_domid.values(), *sockets]
    for transport in transports:
        saved = transport.save()
        for watch in core.watches.of(transport.client):
            saved.watches[watch.spelt, watch.token] = watch.depth
        for tx_id, transaction in transport.client.transactions.items():
            saved.transactions[tx_id] = [
                (path, node.value if node else b"", node.perms if node else None)
                for path, node in transaction.written()
            ]
        image.connections[saved.conn_id] = saved
    return image


def restore(
    image: Image, core: Core, rings: DomainRings, waiting: set[Client], kept_fds: list[int]
) -> tuple[list[SocketConnection], list[int]]:
    """Puts an image into an empty daemon. `kept_fds` are the sockets that it speaks of, in their order.

    Returns the connections on the socket that go on, and the domains that have ended meanwhile.
    """
    core.store.restore(image.nodes, image.epoch * _GENERATIONS_PER_EPOCH)
    for name, value in image.quotas.items():
        quotas = core.soft_quotas if name.startswith(SOFT) else core.quotas
        quotas.set(name.removeprefix(SOFT), value)
    rings.released = dict(image.released)
    sockets, ended = [], []
    fds = iter(kept_fds)
    for saved in image.connections.values():
        if saved.fd is not None:
            if (fd := next(fds, None)) is not None:
                connection = SocketConnection(socket.socket(fileno=fd), waiting)
                connection.restore(saved)
                sockets.append(connection)
                _restore_client(core, connection.client, saved)
            continue
        domain = rings.restore(saved)
        if domain is None:
            ended.append(saved.conn_id)
        else:
            _restore_client(core, domain.client, saved)
    return sockets, ended


def _restore_client(core: Core, client: Client, saved: SavedConnection) -> None:
    for (spelt, token), depth in saved.watches.items():
        try:
            core.watches.add(make_watch(client, spelt, token, depth))
        except RefusedError:  # another version of this program had other rules
            continue
    for tx_id, written in saved.transactions.items():
        transaction = Transaction(core.store, is_doomed=True)
        for path, value, perms in written:
            transaction.replay(path, value, perms)
        client.restore_transaction(tx_id, transaction)

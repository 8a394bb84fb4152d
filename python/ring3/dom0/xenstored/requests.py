"""What each request does. No I/O: replies and events are queued on the clients.

Source: docs/misc/xenstore.txt of Xen; error choices follow what Xen's daemon answers.
"""

from __future__ import annotations

from typing import Final

from ring3.abi.xs_wire import XsType
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.control import ControlRequests, Daemon
from ring3.dom0.xenstored.core import Core
from ring3.dom0.xenstored.domain_requests import DomainRequests, Domains
from ring3.dom0.xenstored.handlers import Handlers
from ring3.dom0.xenstored.node_requests import NodeRequests
from ring3.dom0.xenstored.transactions import TransactionTooBigError
from ring3.dom0.xenstored.watch_requests import WatchRequests
from ring3.dom0.xenstored.wire import Message, RefusedError

_OUTSIDE_TRANSACTIONS: Final = (XsType.WATCH, XsType.UNWATCH)
"""Requests whose `tx_id` means nothing. Source: docs/misc/xenstore.txt of Xen."""


class Requests:
    """The table of request handlers, upon the core."""

    def __init__(self, core: Core, domains: Domains, daemon: Daemon) -> None:
        core.note = daemon.note
        self._table: Handlers = {
            **NodeRequests(core).table(),
            **WatchRequests(core).table(),
            **DomainRequests(core, domains).table(),
            **ControlRequests(core, daemon).table(),
        }

    def handle(self, client: Client, request: Message) -> None:
        """Answers one request, whatever it holds."""
        handler = self._table.get(request.type)
        if handler is None:
            client.refuse(request, "ENOSYS")
            return
        if request.tx_id and request.tx_id not in client.transactions and request.type not in _OUTSIDE_TRANSACTIONS:
            client.refuse(request, "ENOENT")
            return
        try:
            handler(client, request)
        except RefusedError as error:
            client.refuse(request, error.errno_name)
        except TransactionTooBigError:
            client.refuse(request, "ENOSPC")

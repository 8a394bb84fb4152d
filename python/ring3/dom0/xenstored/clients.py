"""Who speaks to xenstored: a domain by its ring, or a dom0 process by the socket."""

from __future__ import annotations

from collections import deque
from typing import Final

from ring3.abi.xs_wire import XsType
from ring3.dom0.xenstored.transactions import Transaction
from ring3.dom0.xenstored.wire import Message

NR_EVENTS_MAX: Final = 1024
"""Watch events that wait for one client. A guest that does not read its ring loses what comes after these."""


class Client:
    """One connection: identity, transactions, and what is queued for it. The transport takes from `outgoing`."""

    def __init__(self, domid: int, *, is_privileged: bool) -> None:
        self.domid = domid
        self.is_privileged = is_privileged
        self.target: int | None = None
        self.transactions: dict[int, Transaction] = {}
        self.outgoing: deque[bytes] = deque()
        self.nr_lost_events = 0
        self._waiting_events: dict[bytes, None] = {}
        self._last_tx_id = 0

    def reply(self, request: Message, payload: bytes) -> None:
        """Queues the answer to a request."""
        self.outgoing.append(Message(request.type, request.req_id, request.tx_id, payload).encode())

    def refuse(self, request: Message, errno_name: str) -> None:
        """Queues an error."""
        payload = errno_name.encode() + b"\0"
        self.outgoing.append(Message(XsType.ERROR, request.req_id, request.tx_id, payload).encode())

    def event(self, path: bytes, token: bytes) -> None:
        """Queues a watch event, unless the same one waits already: it would tell the client nothing new."""
        encoded = Message(XsType.WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0").encode()
        if encoded in self._waiting_events:
            return
        if len(self._waiting_events) >= NR_EVENTS_MAX:
            self.nr_lost_events += 1
            return
        self._waiting_events[encoded] = None
        self.outgoing.append(encoded)

    def taken(self, encoded: bytes) -> None:
        """Says that the transport has begun to send a queued message."""
        self._waiting_events.pop(encoded, None)

    def open_transaction(self, transaction: Transaction) -> int:
        """Files a transaction under a new id, which is never 0."""
        while True:
            self._last_tx_id = self._last_tx_id % 0xFFFFFFFF + 1
            if self._last_tx_id not in self.transactions:
                self.transactions[self._last_tx_id] = transaction
                return self._last_tx_id

    def reset(self) -> None:
        """Forgets everything that is queued or open, as after a reconnection."""
        self.transactions.clear()
        self.outgoing.clear()
        self._waiting_events.clear()
        self.nr_lost_events = 0

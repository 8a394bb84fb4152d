"""Who speaks to xenstored: a domain by its ring, or a dom0 process by the socket."""

from __future__ import annotations

from collections import deque
from typing import Final

from ring3.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XSD_SOCKMSG, XsType
from ring3.dom0.xenstored.paths import home
from ring3.dom0.xenstored.recorder import Recorder
from ring3.dom0.xenstored.transactions import Transaction
from ring3.dom0.xenstored.wire import Message

NR_EVENTS_MAX: Final = 1024
"""Watch events that wait for one client. A guest that does not read its ring loses what comes after these."""
_pack = XSD_SOCKMSG.pack


class Client:
    """One connection: identity, transactions, and what is queued for it. The transport takes from `outgoing`.

    `base` is what relative paths start at: the domain's home. Both of Xen's daemons have that of domain 0 for the
    socket, where xenstore.txt knows none. A domain's connection has a recorder; one on the socket ends with the daemon,
    so nobody needs to know of it. Who has something queued is in `waiting`, until the transport takes it out.
    """

    def __init__(
        self,
        domid: int,
        *,
        is_privileged: bool,
        recorder: Recorder | None = None,
        waiting: set[Client] | None = None,
    ) -> None:
        self.domid = domid
        self.is_privileged = is_privileged
        self.conn_id = domid
        self.base = home(domid)
        self.recorder = recorder or Recorder()
        self.waiting = waiting if waiting is not None else set()
        self.target: int | None = None
        self.transactions: dict[int, Transaction] = {}
        self.outgoing: deque[bytes] = deque()
        self.nr_lost_events = 0
        self.nr_event_bytes = 0
        self.is_large = False
        """Whether it is over its soft quota of memory, and has been named in the log for it."""
        self._waiting_events: dict[bytes, None] = {}
        self._last_tx_id = 0

    def reply(self, request: Message, payload: bytes) -> None:
        """Queues the answer to a request."""
        self.queue(_pack(request.type, request.req_id, request.tx_id, len(payload)) + payload)

    def refuse(self, request: Message, errno_name: str) -> None:
        """Queues an error."""
        payload = errno_name.encode() + b"\0"
        self.queue(_pack(XsType.ERROR, request.req_id, request.tx_id, len(payload)) + payload)

    def event(self, path: bytes, token: bytes) -> None:
        """Queues a watch event, unless the same one waits already: it would tell the client nothing new. One that is
        longer than a message may be tells nobody anything."""
        if len(path) + len(token) + 2 > XENSTORE_PAYLOAD_MAX:
            return
        encoded = Message(XsType.WATCH_EVENT, 0, 0, path + b"\0" + token + b"\0").encode()
        if encoded in self._waiting_events:
            return
        if len(self._waiting_events) >= NR_EVENTS_MAX:
            self.nr_lost_events += 1
            return
        self._waiting_events[encoded] = None
        self.nr_event_bytes += len(encoded)
        self.queue(encoded)

    def queue(self, encoded: bytes) -> None:
        """Queues a message."""
        self.outgoing.append(encoded)
        self.waiting.add(self)
        self.recorder.output(self.conn_id, encoded)

    def queue_again(self, encoded: bytes) -> None:
        """Queues a message that a predecessor of this daemon had queued."""
        self.outgoing.append(encoded)
        self.waiting.add(self)
        if XSD_SOCKMSG.unpack_from(encoded)[0] == XsType.WATCH_EVENT:
            self._waiting_events[encoded] = None
            self.nr_event_bytes += len(encoded)

    def taken(self, encoded: bytes) -> None:
        """Says that the transport has begun to send a queued message."""
        if self._waiting_events and encoded in self._waiting_events:
            del self._waiting_events[encoded]
            self.nr_event_bytes -= len(encoded)

    @property
    def nr_outstanding(self) -> int:
        """Replies that the client has not taken yet."""
        return len(self.outgoing) - len(self._waiting_events)

    @property
    def nr_bytes(self) -> int:
        """What its events and transactions make the daemon hold."""
        return self.nr_event_bytes + sum(transaction.nr_bytes for transaction in self.transactions.values())

    def open_transaction(self, transaction: Transaction) -> int:
        """Files a transaction under a new id, which is never 0."""
        while True:
            self._last_tx_id = self._last_tx_id % 0xFFFFFFFF + 1
            if self._last_tx_id not in self.transactions:
                self.recorder.transaction(self.conn_id, self._last_tx_id)
                self._file_transaction(self._last_tx_id, transaction)
                return self._last_tx_id

    def restore_transaction(self, tx_id: int, transaction: Transaction) -> None:
        """Files a transaction under the id that a predecessor of this daemon gave it."""
        self._file_transaction(tx_id, transaction)
        self._last_tx_id = max(self._last_tx_id, tx_id)

    def _file_transaction(self, tx_id: int, transaction: Transaction) -> None:
        self.transactions[tx_id] = transaction
        transaction.on_write = lambda path, node: self.recorder.transaction_node(
            self.conn_id, tx_id, path, node.value if node else b"", node.perms if node else ()
        )

    def close_transaction(self, tx_id: int) -> Transaction | None:
        """Takes a transaction out; None if there is none of that id."""
        transaction = self.transactions.pop(tx_id, None)
        if transaction is not None:
            self.recorder.transaction_gone(self.conn_id, tx_id)
        return transaction

    def reset(self) -> None:
        """Forgets everything that is queued or open, as after a reconnection."""
        self.transactions.clear()
        self.outgoing.clear()
        self._waiting_events.clear()
        self.nr_lost_events = 0
        self.nr_event_bytes = 0
        self.recorder.connection_reset(self.conn_id)

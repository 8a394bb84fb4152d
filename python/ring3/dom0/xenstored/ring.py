"""A domain's xenstore page: requests in, replies and events out.

The indices that the guest sees move in publish(), when what they stand for has been made last: a daemon that is killed
between any two steps has either not touched a request or answered it.

Source: xen/include/public/io/xs_wire.h, struct xenstore_domain_interface; docs/misc/xenstore-ring.txt of Xen.
"""

from __future__ import annotations

from typing import Final

from ring3.abi import xs_wire
from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.ring_page import Page
from ring3.dom0.xenstored import stream
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.image import IS_IGNORED, IS_SHUTDOWN, SavedConnection
from ring3.dom0.xenstored.stream import Record
from ring3.dom0.xenstored.wire import Decoder, Message, ProtocolError
from ring3.errors import RingError

NR_REQUESTS_PER_TURN: Final = 32
"""Requests that one domain gets served before the others have their turn."""
FEATURES: Final = (
    xs_wire.XENSTORE_SERVER_FEATURE_RECONNECTION
    | xs_wire.XENSTORE_SERVER_FEATURE_ERROR
    | xs_wire.XENSTORE_SERVER_FEATURE_WATCHDEPTH
)


class DomainConnection:
    """The xenstore side of one introduced domain.

    `port` is ours, `remote_port` the domain's; `handle` tells the domain from a later one of the same domid.
    `is_shutdown` remembers that @releaseDomain has been sent for it. `is_ignored` once the domain broke the protocol.
    """

    def __init__(
        self, client: Client, page: Page, port: int, *, remote_port: int = 0, mfn: int = 0, handle: bytes = bytes(16)
    ) -> None:
        self.client = client
        self.port = port
        self.remote_port = remote_port
        self.mfn = mfn
        self.handle = handle
        self.is_shutdown = False
        self.is_ignored = False
        self._page = page
        self._decoder = Decoder()
        self._sending: memoryview | bytes = b""
        view = page.view
        self._requests = ByteRing(
            view,
            client.domid,
            data_offset=xs_wire.REQ_OFFSET,
            size=xs_wire.XENSTORE_RING_SIZE,
            cons_offset=xs_wire.REQ_CONS_OFFSET,
            prod_offset=xs_wire.REQ_PROD_OFFSET,
        )
        self._replies = ByteRing(
            view,
            client.domid,
            data_offset=xs_wire.RSP_OFFSET,
            size=xs_wire.XENSTORE_RING_SIZE,
            cons_offset=xs_wire.RSP_CONS_OFFSET,
            prod_offset=xs_wire.RSP_PROD_OFFSET,
        )
        self._features = view[xs_wire.SERVER_FEATURES_OFFSET : xs_wire.SERVER_FEATURES_OFFSET + 4].cast("I")
        self._connection = view[xs_wire.CONNECTION_OFFSET : xs_wire.CONNECTION_OFFSET + 4].cast("I")
        self._error = view[xs_wire.ERROR_OFFSET : xs_wire.ERROR_OFFSET + 4].cast("I")
        self._req_cons = self._requests.cons
        self._rsp_prod = self._replies.prod
        self._features[0] = FEATURES

    def connect(self) -> None:
        """Tells the guest that it is served."""
        self._error[0] = xs_wire.XENSTORE_ERROR_NONE
        self._connection[0] = xs_wire.XENSTORE_CONNECTED

    # -- what a restart begins with

    def save(self) -> SavedConnection:
        """Returns what is to be known of this connection; the core adds watches and transactions."""
        return SavedConnection(
            conn_id=self.client.conn_id,
            partial=self._decoder.partial,
            begun=bytes(self._sending),
            output=list(self.client.outgoing),
            handle=self.handle,
            mfn=self.mfn,
            port=self.remote_port,
            target=self.client.target,
            flags=IS_SHUTDOWN * self.is_shutdown | IS_IGNORED * self.is_ignored,
            req_cons=self._req_cons,
            rsp_start=self._rsp_prod,
        )

    def restore(self, saved: SavedConnection) -> None:
        """Goes on where a predecessor stopped. What the guest has got already is found by the index in its page."""
        self.is_shutdown = bool(saved.flags & IS_SHUTDOWN)
        self.is_ignored = bool(saved.flags & IS_IGNORED)
        self._decoder = Decoder(saved.partial)
        self._req_cons = saved.req_cons
        if self.is_ignored or self.wants_reset():
            return
        self._rsp_prod = self._replies.prod
        if not saved.drop_delivered(self._rsp_prod - saved.rsp_start & 0xFFFFFFFF):
            self.ignore(xs_wire.XENSTORE_ERROR_RINGIDX)
            return
        self._sending = saved.begun
        for encoded in saved.output:
            self.client.queue_again(encoded)
        self._requests.cons = self._req_cons

    def place(self) -> bytes:
        """Returns the record of where the ring is and what the domain's state is."""
        saved = self.save()
        return stream.place(saved.conn_id, saved.flags, saved.handle, saved.mfn, saved.port, saved.target)

    # -- bytes

    def wants_reset(self) -> bool:
        """Returns whether the guest has asked to start over."""
        return self._connection[0] == xs_wire.XENSTORE_RECONNECT

    def reset(self) -> bytes:
        """Starts over, for the guest to see at publish(). The core must have forgotten the client before. Returns the
        records of it."""
        self._decoder = Decoder()
        self._sending = b""
        self.is_ignored = False
        self._req_cons = self._rsp_prod = 0
        return self.place() + stream.positions(self.client.conn_id, 0, 0)

    def finish_reset(self) -> None:
        """Empties the rings and tells the guest that it may begin."""
        for ring in (self._requests, self._replies):
            ring.cons = ring.prod = 0
        self.connect()

    def receive(self, nr_outstanding_max: int) -> list[Message]:
        """Returns the requests of one turn.

        No more are taken while so many replies wait for room: what a domain does not read cannot pile up here. A domain
        that breaks the protocol is ignored until it reconnects, and finds the reason in its page.
        """
        messages: list[Message] = []
        nr_max = min(NR_REQUESTS_PER_TURN, nr_outstanding_max - self.client.nr_outstanding)
        try:
            while not self.is_ignored and len(messages) < nr_max:
                data = self._requests.peek(self._req_cons, self._decoder.wanted())
                if not data:
                    break
                self._req_cons = self._req_cons + len(data) & 0xFFFFFFFF
                messages += self._decoder.feed(data)
        except RingError:
            self.ignore(xs_wire.XENSTORE_ERROR_RINGIDX)
        except ProtocolError:
            self.ignore(xs_wire.XENSTORE_ERROR_PROTO)
        return messages

    def input_record(self) -> bytes:
        """Returns the record of how far requests have been taken; empty if the guest knows already."""
        if self._req_cons == self._requests.cons or self.is_ignored:
            return b""
        body = stream.pair(Record.INPUT, self.client.conn_id, self._req_cons)
        partial = self._decoder.partial
        return stream.record(Record.INPUT, body[8:16] + partial) if partial else body

    def has_input(self, nr_outstanding_max: int) -> bool:
        """Returns whether receive() would find bytes now."""
        has_more = not self.is_ignored and self._requests.prod != self._req_cons
        return has_more and self.client.nr_outstanding < nr_outstanding_max

    def has_output(self) -> bool:
        """Returns whether replies or events wait."""
        return bool(self._sending) or bool(self.client.outgoing)

    def publish(self) -> bool:
        """Lets the guest see what was taken and puts into the ring what fits; returns whether that was anything.

        The guest notifies us when it has taken something out of a full ring.
        """
        if self.is_ignored:
            return False
        has_moved = self._requests.cons != self._req_cons
        try:
            while self.has_output():
                if not self._sending:
                    encoded = self.client.outgoing.popleft()
                    self.client.taken(encoded)
                    self._sending = encoded
                nr_put = self._replies.put(self._rsp_prod, self._sending)
                if nr_put == 0:
                    break
                has_moved = True
                self._rsp_prod = self._rsp_prod + nr_put & 0xFFFFFFFF
                self._sending = memoryview(self._sending)[nr_put:]
        except RingError:
            self.ignore(xs_wire.XENSTORE_ERROR_RINGIDX)
            return False
        self._replies.prod = self._rsp_prod
        self._requests.cons = self._req_cons
        return has_moved

    def ignore(self, error: int) -> None:
        """Stops listening; the guest finds the reason in its page."""
        self.is_ignored = True
        self._sending = b""
        self._error[0] = error

    def close(self) -> None:
        """Unmaps the page."""
        self._requests.release()
        self._replies.release()
        for view in (self._features, self._connection, self._error):
            view.release()
        self._page.close()

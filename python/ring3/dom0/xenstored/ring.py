"""A domain's xenstore page: requests in, replies and events out.

Source: xen/include/public/io/xs_wire.h, struct xenstore_domain_interface.
"""

from __future__ import annotations

from typing import Final

from ring3.abi import xs_wire
from ring3.dom0.byte_ring import ByteRing
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.wire import Decoder, Message, ProtocolError
from ring3.errors import RingError
from ring3.libs.foreignmemory import ForeignMapping

NR_REQUESTS_PER_TURN: Final = 32
"""Requests that one domain gets served before the others have their turn."""


class DomainConnection:
    """The xenstore side of one introduced domain. `is_shutdown` remembers that @releaseDomain has been sent for it."""

    def __init__(self, client: Client, mapping: ForeignMapping, port: int) -> None:
        self.client = client
        self.port = port
        self.is_shutdown = False
        self.is_ignored = False
        self._mapping = mapping
        self._decoder = Decoder()
        self._sending: memoryview = memoryview(b"")
        page = mapping.view
        self._requests = ByteRing(
            page,
            client.domid,
            data_offset=xs_wire.REQ_OFFSET,
            size=xs_wire.XENSTORE_RING_SIZE,
            cons_offset=xs_wire.REQ_CONS_OFFSET,
            prod_offset=xs_wire.REQ_PROD_OFFSET,
        )
        self._replies = ByteRing(
            page,
            client.domid,
            data_offset=xs_wire.RSP_OFFSET,
            size=xs_wire.XENSTORE_RING_SIZE,
            cons_offset=xs_wire.RSP_CONS_OFFSET,
            prod_offset=xs_wire.RSP_PROD_OFFSET,
        )
        self._features = page[xs_wire.SERVER_FEATURES_OFFSET : xs_wire.SERVER_FEATURES_OFFSET + 4].cast("I")
        self._connection = page[xs_wire.CONNECTION_OFFSET : xs_wire.CONNECTION_OFFSET + 4].cast("I")
        self._error = page[xs_wire.ERROR_OFFSET : xs_wire.ERROR_OFFSET + 4].cast("I")
        self._error[0] = xs_wire.XENSTORE_ERROR_NONE
        self._connection[0] = xs_wire.XENSTORE_CONNECTED
        self._features[0] = xs_wire.XENSTORE_SERVER_FEATURE_RECONNECTION | xs_wire.XENSTORE_SERVER_FEATURE_ERROR

    def wants_reset(self) -> bool:
        """Returns whether the guest has asked to start over."""
        return self._connection[0] == xs_wire.XENSTORE_RECONNECT

    def reset(self) -> None:
        """Empties the rings and tells the guest that it may begin."""
        self._decoder = Decoder()
        self._sending = memoryview(b"")
        self._requests.reset()
        self._replies.reset()
        self.is_ignored = False
        self._error[0] = xs_wire.XENSTORE_ERROR_NONE
        self._connection[0] = xs_wire.XENSTORE_CONNECTED

    def receive(self) -> tuple[list[Message], bool]:
        """Returns the requests of one turn, and whether bytes were taken.

        Nothing is read while replies wait for room: what a domain does not read cannot pile up here. A domain that
        breaks the protocol is ignored until it reconnects, and finds the reason in its page.
        """
        messages: list[Message] = []
        has_read = False
        try:
            while not self.is_ignored and not self.has_output() and len(messages) < NR_REQUESTS_PER_TURN:
                data = self._requests.read(self._decoder.wanted())
                if not data:
                    break
                has_read = True
                messages.extend(self._decoder.feed(data))
        except RingError:
            self._ignore(xs_wire.XENSTORE_ERROR_RINGIDX)
        except ProtocolError:
            self._ignore(xs_wire.XENSTORE_ERROR_PROTO)
        return messages, has_read

    def has_input(self) -> bool:
        """Returns whether receive() would find bytes now."""
        return not self.is_ignored and not self.has_output() and not self._requests.is_empty()

    def has_output(self) -> bool:
        """Returns whether replies or events wait."""
        return bool(self._sending) or bool(self.client.outgoing)

    def flush(self) -> bool:
        """Puts into the ring what fits; returns whether that was anything. A full ring makes the guest notify us."""
        has_written = False
        try:
            while not self.is_ignored and self.has_output():
                if not self._sending:
                    encoded = self.client.outgoing.popleft()
                    self.client.taken(encoded)
                    self._sending = memoryview(encoded)
                nr_written = self._replies.write(self._sending)
                if nr_written == 0:
                    break
                has_written = True
                self._sending = self._sending[nr_written:]
        except RingError:
            self._ignore(xs_wire.XENSTORE_ERROR_RINGIDX)
        return has_written

    def close(self) -> None:
        """Unmaps the page."""
        self._requests.release()
        self._replies.release()
        for view in (self._features, self._connection, self._error):
            view.release()
        self._mapping.close()

    def _ignore(self, error: int) -> None:
        self.is_ignored = True
        self.client.outgoing.clear()
        self._sending = memoryview(b"")
        self._error[0] = error

"""The whole state of xenstored as plain values: what a restart begins with. To and from the records of `stream`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ring3.abi.xs_wire import XSD_SOCKMSG
from ring3.dom0.xenstored import stream
from ring3.dom0.xenstored.perms import Perms, parse_perms
from ring3.dom0.xenstored.stream import ConnectionType, Record
from ring3.dom0.xenstored.wire import RefusedError
from ring3.errors import StreamError

IS_SHUTDOWN: Final = 1
IS_IGNORED: Final = 2
_CONN_ID_BYTES: Final = 4


@dataclass(slots=True)
class SavedConnection:
    """A client. The fields from `handle` on are a ring's, whose domid is its `conn_id`; `fd` is a socket's."""

    conn_id: int
    fd: int | None = None
    partial: bytes = b""
    """What was read of a request that is not complete."""
    begun: bytes = b""
    """The rest of a message that was partly sent."""
    output: list[bytes] = field(default_factory=list)
    """Whole messages that follow it."""
    watches: dict[tuple[bytes, bytes], int | None] = field(default_factory=dict)
    """(path as spelt, token) to depth."""
    transactions: dict[int, list[tuple[bytes, bytes, Perms | None]]] = field(default_factory=dict)
    """By id, what each has written: path, value, permissions (None: removed)."""
    handle: bytes = bytes(16)
    mfn: int = 0
    port: int = 0
    """The domain's own."""
    target: int | None = None
    flags: int = 0
    req_cons: int = 0
    rsp_start: int = 0
    """Index in the reply ring where the first byte of `begun` and `output` belongs."""

    def encode(self) -> bytes:
        """Returns the records of this connection."""
        output = self.begun + b"".join(self.output)
        if self.fd is not None:
            kind, spec = ConnectionType.SOCKET, stream.socket_spec(self.fd)
        else:
            kind, spec = ConnectionType.RING, stream.ring_spec(self.conn_id, self.target, self.port)
        parts = [stream.connection(self.conn_id, kind, spec, self.partial, len(self.begun), output)]
        if self.fd is None:
            parts.append(stream.place(self.conn_id, self.flags, self.handle, self.mfn, self.port, self.target))
            parts.append(stream.positions(self.conn_id, self.req_cons, self.rsp_start))
        for (spelt, token), depth in self.watches.items():
            parts.append(stream.watch(Record.WATCH_DATA_EXTENDED, self.conn_id, spelt, token, depth))
        for tx_id, written in self.transactions.items():
            parts.append(stream.pair(Record.TRANSACTION_DATA, self.conn_id, tx_id))
            parts += [stream.node(path, value, perms or (), self.conn_id, tx_id) for path, value, perms in written]
        return b"".join(parts)

    def drop_delivered(self, nr_bytes: int) -> bool:
        """Takes away what the client has got already; False if that is more than there was."""
        chunks = [chunk for chunk in (self.begun, *self.output) if chunk]
        while nr_bytes and chunks:
            if len(chunks[0]) > nr_bytes:
                self.begun, self.output = chunks[0][nr_bytes:], chunks[1:]
                return True
            nr_bytes -= len(chunks.pop(0))
            self.begun, self.output = b"", chunks
        return nr_bytes == 0


@dataclass(slots=True)
class Image:
    """Everything. Parents come before their children in `nodes`."""

    nodes: dict[bytes, tuple[bytes, Perms]] = field(default_factory=dict)
    connections: dict[int, SavedConnection] = field(default_factory=dict)
    released: dict[int, None] = field(default_factory=dict)
    quotas: dict[str, int] = field(default_factory=dict)
    epoch: int = 0

    def encode(self) -> bytes:
        """Returns the image as a stream, to which batches may be appended."""
        parts = [stream.header(), stream.epoch(self.epoch), stream.quotas(list(self.quotas.items()))]
        parts += [connection.encode() for connection in self.connections.values()]
        parts += [stream.node(path, value, perms) for path, (value, perms) in self.nodes.items()]
        parts += [stream.pair(Record.RELEASED, domid, 1) for domid in self.released]
        parts.append(stream.record(Record.END, b""))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes) -> Image:
        """Returns the state at the end of a stream. Raises StreamError."""
        stream.check_header(data)
        image = cls()
        view = memoryview(data)[stream.HEADER.size :]
        is_complete = False
        for offset, kind, body in stream.records(view):
            try:
                if kind == Record.BATCH:
                    for _offset, inner, inner_body in stream.records(body):
                        image._apply(inner, inner_body)
                elif kind == Record.END:
                    is_complete = True
                else:
                    image._apply(kind, body)
            except (KeyError, ValueError, RefusedError, struct.error) as error:
                raise StreamError(offset + stream.HEADER.size, hex(kind), str(error)) from error
        if not is_complete:
            raise StreamError(len(data), "END", "the stream is cut off")
        return image

    def _apply(self, kind: int, body: bytes) -> None:
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise ValueError("unknown record")
        handler(self, body)

    def _node(self, body: bytes) -> None:
        conn_id, tx_id, path, value, texts = stream.parse_node(body)
        if conn_id:
            written = self.connections[conn_id].transactions[tx_id]
            written.append((path, value, parse_perms(texts) if texts else None))
        else:
            self.nodes[path] = (value, parse_perms(texts))

    def _node_gone(self, body: bytes) -> None:
        del self.nodes[body]

    def _connection(self, body: bytes) -> None:
        conn_id, kind, spec, partial, nr_begun, output = stream.parse_connection(body)
        connection = SavedConnection(conn_id, partial=partial, begun=output[:nr_begun])
        connection.output = _messages(output[nr_begun:])
        if kind == ConnectionType.SOCKET:
            connection.fd = stream.parse_socket_spec(spec)
        self.connections[conn_id] = connection

    def _connection_gone(self, body: bytes) -> None:
        del self.connections[stream.parse_pair(body)[0]]

    def _place(self, body: bytes) -> None:
        conn_id, flags, handle, mfn, port, target = stream.parse_place(body)
        connection = self.connections[conn_id]
        connection.flags, connection.handle, connection.mfn = flags, handle, mfn
        connection.port, connection.target = port, target

    def _positions(self, body: bytes) -> None:
        conn_id, req_cons, rsp_start = stream.parse_positions(body)
        connection = self.connections[conn_id]
        connection.req_cons, connection.rsp_start = req_cons, rsp_start

    def _input(self, body: bytes) -> None:
        conn_id, req_cons = stream.parse_pair(body)
        connection = self.connections[conn_id]
        connection.req_cons, connection.partial = req_cons, body[8:]

    def _output(self, body: bytes) -> None:
        conn_id = int.from_bytes(body[:_CONN_ID_BYTES], "little")
        self.connections[conn_id].output.append(body[_CONN_ID_BYTES:])

    def _reset(self, body: bytes) -> None:
        connection = self.connections[stream.parse_pair(body)[0]]
        connection.partial = connection.begun = b""
        connection.output.clear()
        connection.watches.clear()
        connection.transactions.clear()

    def _watch(self, body: bytes) -> None:
        conn_id, spelt, token, depth = stream.parse_watch(body)
        self.connections[conn_id].watches[spelt, token] = depth

    def _watch_gone(self, body: bytes) -> None:
        conn_id, spelt, token, _depth = stream.parse_watch(body)
        del self.connections[conn_id].watches[spelt, token]

    def _transaction(self, body: bytes) -> None:
        conn_id, tx_id = stream.parse_pair(body)
        self.connections[conn_id].transactions[tx_id] = []

    def _transaction_gone(self, body: bytes) -> None:
        conn_id, tx_id = stream.parse_pair(body)
        del self.connections[conn_id].transactions[tx_id]

    def _released(self, body: bytes) -> None:
        domid, is_released = stream.parse_pair(body)
        if is_released:
            self.released[domid] = None
        else:
            self.released.pop(domid, None)

    def _quotas(self, body: bytes) -> None:
        self.quotas.update(stream.parse_quotas(body))

    def _epoch(self, body: bytes) -> None:
        self.epoch = stream.parse_pair(body)[0]


def _messages(data: bytes) -> list[bytes]:
    found = []
    while data:
        length = XSD_SOCKMSG.size + XSD_SOCKMSG.unpack_from(data)[3]
        found.append(data[:length])
        data = data[length:]
    return found


_HANDLERS: Final[dict[int, Callable[[Image, bytes], None]]] = {
    Record.NODE_DATA: Image._node,
    Record.NODE_GONE: Image._node_gone,
    Record.CONNECTION_DATA: Image._connection,
    Record.CONNECTION_GONE: Image._connection_gone,
    Record.PLACE: Image._place,
    Record.POSITIONS: Image._positions,
    Record.INPUT: Image._input,
    Record.OUTPUT: Image._output,
    Record.RESET: Image._reset,
    Record.WATCH_DATA_EXTENDED: Image._watch,
    Record.WATCH_GONE: Image._watch_gone,
    Record.TRANSACTION_DATA: Image._transaction,
    Record.TRANSACTION_GONE: Image._transaction_gone,
    Record.RELEASED: Image._released,
    Record.GLOBAL_QUOTA_DATA: Image._quotas,
    Record.EPOCH: Image._epoch,
}

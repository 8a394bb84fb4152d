"""The records in which xenstored's state outlives it.

Source: docs/designs/xenstore-migration.md of Xen for the header and the records below 0x80000000. The others are ours:
the changes that follow an image, in batches of which only whole ones count, and what Xen has no record for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import TYPE_CHECKING, Final

from ring3.errors import StreamError

if TYPE_CHECKING:
    from ring3.dom0.xenstored.perms import Perms

HEADER: Final = struct.Struct(">8sII")
"""ident, version, flags: big-endian, whatever the records are."""
IDENT: Final = b"xenstore"
VERSION: Final = 2
_RECORD: Final = struct.Struct("<II")
"""type, length of the body; the body is padded to 8 bytes."""
_CONNECTION: Final = struct.Struct("<IHxx8sHHI")
"""conn-id, conn-type, conn-spec, in-data-len, out-resp-len, out-data-len."""
_RING_SPEC: Final = struct.Struct("<HHI")
"""domid, tdomid, evtchn."""
_SOCKET_SPEC: Final = struct.Struct("<Ixxxx")
_WATCH: Final = struct.Struct("<IHHHxx")
"""conn-id, wpath-len, token-len, depth."""
_NODE: Final = struct.Struct("<IIHHHH")
"""conn-id, tx-id, path-len, value-len, access, perm-count."""
_PERM: Final = struct.Struct("<BBH")
_PAIR: Final = struct.Struct("<II")
_PLACE: Final = struct.Struct("<II16sQII")
"""conn-id, flags, handle of the domain, MFN of the ring, the domain's port, target."""
_POSITIONS: Final = struct.Struct("<III")
"""conn-id, req_cons, where in the stream of replies the first queued byte belongs."""
_ACCESS_WRITTEN: Final = 2
NO_DEPTH: Final = 0xFFFF
NO_DOMID: Final = 0x7FF4
"""DOMID_INVALID."""
_MASK_U32: Final = 0xFFFFFFFF


class Record(IntEnum):
    """Types of records."""

    END = 0
    CONNECTION_DATA = 2
    WATCH_DATA_EXTENDED = 8
    TRANSACTION_DATA = 4
    NODE_DATA = 5
    GLOBAL_QUOTA_DATA = 6
    BATCH = 0x80000000
    """Changes that happened together."""
    EPOCH = 0x80000001
    """How often the state has been taken over; makes generations differ from all before."""
    PLACE = 0x80000002
    POSITIONS = 0x80000003
    INPUT = 0x80000004
    """conn-id, req_cons, and what of a request had been read before that."""
    OUTPUT = 0x80000005
    RESET = 0x80000006
    CONNECTION_GONE = 0x80000007
    WATCH_GONE = 0x80000008
    TRANSACTION_GONE = 0x80000009
    NODE_GONE = 0x8000000A
    RELEASED = 0x8000000B
    """A domain that was released while it lived: domid, 1; or no longer: domid, 0."""


class ConnectionType(IntEnum):
    """conn-type."""

    RING = 0
    SOCKET = 1


def header() -> bytes:
    """Returns what a stream begins with."""
    return HEADER.pack(IDENT, VERSION, 0)


def record(kind: Record, body: bytes) -> bytes:
    """Returns one record, padded."""
    return _RECORD.pack(kind, len(body)) + body + bytes(-len(body) % 8)


def records(data: bytes | memoryview) -> Iterator[tuple[int, int, bytes]]:
    """Yields (offset, type, body) of each record. One that is cut off at the end is left out: its writer was killed."""
    offset, end = 0, len(data)
    while offset + _RECORD.size <= end:
        kind, length = _RECORD.unpack_from(data, offset)
        start = offset + _RECORD.size
        if start + length > end:
            return
        yield offset, kind, bytes(data[start : start + length])
        offset = start + length + -length % 8


# -- bodies


def node(path: bytes, value: bytes, perms: Perms, conn_id: int = 0, tx_id: int = 0) -> bytes:
    """Returns a NODE_DATA record of a committed node, or of one that a transaction wrote (or removed: no perms)."""
    body = _NODE.pack(conn_id, tx_id, len(path) + 1, len(value), _ACCESS_WRITTEN if conn_id else 0, len(perms))
    letters = b"".join(_PERM.pack(perm.letter[0], 0, perm.domid) for perm in perms)
    return record(Record.NODE_DATA, b"".join((body, letters, path, b"\0", value)))


def parse_node(body: bytes) -> tuple[int, int, bytes, bytes, list[bytes]]:
    """Returns connection, transaction, path, value and permissions as text."""
    conn_id, tx_id, path_length, value_length, _access, nr_perms = _NODE.unpack_from(body)
    perms = []
    for index in range(nr_perms):
        letter, _flags, domid = _PERM.unpack_from(body, _NODE.size + index * _PERM.size)
        perms.append(b"%c%d" % (letter, domid))
    start = _NODE.size + nr_perms * _PERM.size
    return conn_id, tx_id, body[start : start + path_length - 1], body[start + path_length :][:value_length], perms


def watch(kind: Record, conn_id: int, spelt: bytes, token: bytes, depth: int | None) -> bytes:
    """Returns a WATCH_DATA_EXTENDED or WATCH_GONE record."""
    body = _WATCH.pack(conn_id, len(spelt) + 1, len(token) + 1, NO_DEPTH if depth is None else min(depth, NO_DEPTH))
    return record(kind, b"".join((body, spelt, b"\0", token, b"\0")))


def parse_watch(body: bytes) -> tuple[int, bytes, bytes, int | None]:
    """Returns connection, path as spelt, token, depth."""
    conn_id, path_length, token_length, depth = _WATCH.unpack_from(body)
    start = _WATCH.size
    spelt = body[start : start + path_length - 1]
    token = body[start + path_length : start + path_length + token_length - 1]
    return conn_id, spelt, token, None if depth == NO_DEPTH else depth


def pair(kind: Record, first: int, second: int) -> bytes:
    """Returns a record of two numbers."""
    return record(kind, _PAIR.pack(first, second))


def parse_pair(body: bytes) -> tuple[int, int]:
    """Returns the two numbers."""
    first, second = _PAIR.unpack_from(body)
    return first, second


def epoch(number: int) -> bytes:
    """Returns an EPOCH record."""
    return record(Record.EPOCH, _PAIR.pack(number & _MASK_U32, 0))


def connection(conn_id: int, kind: ConnectionType, spec: bytes, partial: bytes, nr_begun: int, output: bytes) -> bytes:
    """Returns a CONNECTION_DATA record. `nr_begun` bytes of the output belong to a message that is partly sent."""
    body = _CONNECTION.pack(conn_id, kind, spec, len(partial), nr_begun, len(output))
    return record(Record.CONNECTION_DATA, body + partial + output)


def parse_connection(body: bytes) -> tuple[int, int, bytes, bytes, int, bytes]:
    """Returns what connection() was given."""
    conn_id, kind, spec, nr_in, nr_begun, nr_out = _CONNECTION.unpack_from(body)
    start = _CONNECTION.size
    return conn_id, kind, spec, body[start : start + nr_in], nr_begun, body[start + nr_in :][:nr_out]


def ring_spec(domid: int, target: int | None, port: int) -> bytes:
    """Returns the conn-spec of a ring."""
    return _RING_SPEC.pack(domid, NO_DOMID if target is None else target, port)


def socket_spec(fd: int) -> bytes:
    """Returns the conn-spec of a socket."""
    return _SOCKET_SPEC.pack(fd)


def parse_socket_spec(spec: bytes) -> int:
    """Returns the descriptor."""
    (fd,) = _SOCKET_SPEC.unpack(spec)
    return int(fd)


def place(conn_id: int, flags: int, handle: bytes, mfn: int, port: int, target: int | None) -> bytes:
    """Returns a PLACE record."""
    return record(Record.PLACE, _PLACE.pack(conn_id, flags, handle, mfn, port, NO_DOMID if target is None else target))


def parse_place(body: bytes) -> tuple[int, int, bytes, int, int, int | None]:
    """Returns what place() was given."""
    conn_id, flags, handle, mfn, port, target = _PLACE.unpack_from(body)
    return conn_id, flags, handle, mfn, port, None if target == NO_DOMID else target


def positions(conn_id: int, req_cons: int, rsp_start: int) -> bytes:
    """Returns a POSITIONS record."""
    return record(Record.POSITIONS, _POSITIONS.pack(conn_id, req_cons, rsp_start))


def parse_positions(body: bytes) -> tuple[int, int, int]:
    """Returns what positions() was given."""
    conn_id, req_cons, rsp_start = _POSITIONS.unpack_from(body)
    return conn_id, req_cons, rsp_start


def quotas(values: list[tuple[str, int]]) -> bytes:
    """Returns a GLOBAL_QUOTA_DATA record of limits that apply to each domain."""
    numbers = b"".join(struct.pack("<I", value) for _name, value in values)
    names = b"".join(name.encode() + b"\0" for name, _value in values)
    return record(Record.GLOBAL_QUOTA_DATA, struct.pack("<HH", len(values), 0) + numbers + names)


def parse_quotas(body: bytes) -> list[tuple[str, int]]:
    """Returns the limits that apply to each domain."""
    nr_domain, nr_global = struct.unpack_from("<HH", body)
    values = struct.unpack_from(f"<{nr_domain + nr_global}I", body, 4)
    names = body[4 + 4 * (nr_domain + nr_global) :].split(b"\0")
    return [(name.decode(), value) for name, value in zip(names[:nr_domain], values[:nr_domain], strict=True)]


def check_header(data: bytes) -> None:
    """Raises StreamError for what is no stream of ours."""
    if len(data) < HEADER.size or HEADER.unpack_from(data)[:2] != (IDENT, VERSION):
        raise StreamError(0, "header", "it is no state of xenstored, or one of another version")

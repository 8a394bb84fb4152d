"""Collects the records of changes until the server has written them: whoever restarts xenstored finds them. No I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ring3.dom0.xenstored import stream
from ring3.dom0.xenstored.recorder import Recorder
from ring3.dom0.xenstored.stream import Record

if TYPE_CHECKING:
    from ring3.dom0.xenstored.perms import Perms


class Journal(Recorder):
    """The records since take()."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def take(self) -> bytes:
        """Returns what has been collected as one batch, and begins anew; empty if there is nothing."""
        if not self._pending:
            return b""
        batch = stream.record(Record.BATCH, bytes(self._pending))
        self._pending.clear()
        return batch

    def node(self, path: bytes, value: bytes, perms: Perms) -> None:
        self._pending += stream.node(path, value, perms)

    def node_gone(self, path: bytes) -> None:
        self._pending += stream.record(Record.NODE_GONE, path)

    def watch(self, conn_id: int, wpath: bytes, token: bytes, depth: int | None) -> None:
        self._pending += stream.watch(Record.WATCH_DATA_EXTENDED, conn_id, wpath, token, depth)

    def watch_gone(self, conn_id: int, wpath: bytes, token: bytes) -> None:
        self._pending += stream.watch(Record.WATCH_GONE, conn_id, wpath, token, None)

    def transaction(self, conn_id: int, tx_id: int) -> None:
        self._pending += stream.pair(Record.TRANSACTION_DATA, conn_id, tx_id)

    def transaction_node(self, conn_id: int, tx_id: int, path: bytes, value: bytes, perms: Perms) -> None:
        self._pending += stream.node(path, value, perms, conn_id, tx_id)

    def transaction_gone(self, conn_id: int, tx_id: int) -> None:
        self._pending += stream.pair(Record.TRANSACTION_GONE, conn_id, tx_id)

    def output(self, conn_id: int, encoded: bytes) -> None:
        self._pending += stream.record(Record.OUTPUT, conn_id.to_bytes(4, "little") + encoded)

    def connection_reset(self, conn_id: int) -> None:
        self._pending += stream.pair(Record.RESET, conn_id, 0)

    def quota(self, name: str, value: int) -> None:
        self._pending += stream.quotas([(name, value)])

    # -- what the transport adds

    def add(self, encoded: bytes) -> None:
        """Adds a record that the transport has made."""
        self._pending += encoded

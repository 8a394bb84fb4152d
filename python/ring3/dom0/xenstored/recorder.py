"""What the core tells of its changes, so that they can outlive the daemon. This forgets them; `journal` does not."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ring3.dom0.xenstored.perms import Perms


class Recorder:
    """Takes notice of each change at the moment when it is made. `conn_id` is that of a domain's connection."""

    def node(self, path: bytes, value: bytes, perms: Perms) -> None:
        """A node was made, or has another value or other permissions."""

    def node_gone(self, path: bytes) -> None:
        """A node was removed."""

    def watch(self, conn_id: int, wpath: bytes, token: bytes, depth: int | None) -> None:
        """A watch was set, with its path as the client spelt it."""

    def watch_gone(self, conn_id: int, wpath: bytes, token: bytes) -> None:
        """A watch was removed."""

    def transaction(self, conn_id: int, tx_id: int) -> None:
        """A transaction was begun."""

    def transaction_node(self, conn_id: int, tx_id: int, path: bytes, value: bytes, perms: Perms) -> None:
        """A transaction has written a node, or removed it (no permissions)."""

    def transaction_gone(self, conn_id: int, tx_id: int) -> None:
        """A transaction ended."""

    def output(self, conn_id: int, encoded: bytes) -> None:
        """A message was queued for a client."""

    def connection_reset(self, conn_id: int) -> None:
        """Watches, transactions and queued messages of a connection are gone."""

    def quota(self, name: str, value: int) -> None:
        """A limit was changed."""

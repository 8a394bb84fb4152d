"""Transactions: a private view, applied at the end if nothing that it looked at has changed meanwhile.

The rule is Xen's: every node read or written is remembered with its generation; at the end one that differs makes the
whole transaction fail with EAGAIN and the client starts over. Nothing is locked, so no client can hold up another.
"""

from typing import Final

from ring3.dom0.xenstored.perms import Perms
from ring3.dom0.xenstored.store import Node, Store

MISSING: Final = 0
"""Generation of a node that is not there (real ones begin at 1)."""
NR_NODES_MAX: Final = 4096
"""Nodes that a guest's transaction may touch; bounds what it makes us remember."""


class TransactionTooBigError(Exception):
    """The transaction touched more nodes than NR_NODES_MAX."""


class Transaction:
    """A view upon the store.

    `changes` are the watch events to send at commit, in order and each once: (path, whether the exact path only) to the
    permissions that a removed node had.
    """

    def __init__(self, store: Store, *, is_privileged: bool = False) -> None:
        self._store = store
        self._nr_nodes_max = None if is_privileged else NR_NODES_MAX
        self._seen: dict[bytes, int] = {}
        self._written: dict[bytes, Node | None] = {}
        self._nr_created: dict[int, int] = {}
        self.changes: dict[tuple[bytes, bool], Perms | None] = {}

    def get(self, path: bytes) -> Node | None:
        """Returns the node as this transaction sees it, and remembers that it was looked at."""
        if path in self._written:
            return self._written[path]
        node = self._store.get(path)
        self._remember(path, node)
        return node

    def put(self, path: bytes, node: Node) -> None:
        """Creates or replaces one node, privately."""
        self._write(path, node)

    def delete(self, path: bytes) -> None:
        """Removes one node, privately."""
        self._write(path, None)

    def commit(self) -> bool:
        """Applies everything and returns True; or changes nothing and returns False, on a conflict."""
        for path, generation in self._seen.items():
            node = self._store.get(path)
            if (node.generation if node is not None else MISSING) != generation:
                return False
        for path, written in self._written.items():
            if written is None:
                self._store.delete(path)
            else:
                self._store.put(path, written)
        return True

    def nr_created(self, domid: int) -> int:
        """Returns by how much a commit would raise the number of nodes that the domain owns."""
        return self._nr_created.get(domid, 0)

    def _write(self, path: bytes, node: Node | None) -> None:
        committed = self._store.get(path)
        self._remember(path, committed)
        old = self._written.get(path, committed)
        for counted, delta in ((old, -1), (node, 1)):
            if counted is not None:
                owner = counted.perms[0].domid
                self._nr_created[owner] = self._nr_created.get(owner, 0) + delta
        self._written[path] = node

    def _remember(self, path: bytes, node: Node | None) -> None:
        if path in self._seen:
            return
        if self._nr_nodes_max is not None and len(self._seen) >= self._nr_nodes_max:
            raise TransactionTooBigError
        self._seen[path] = node.generation if node is not None else MISSING

"""Transactions: a private view, applied at the end if nothing that it looked at has changed meanwhile.

The rule is Xen's: every node read or written is remembered with its generation; at the end one that differs makes the
whole transaction fail with EAGAIN and the client starts over. Nothing is locked, so no client can hold up another.
"""

from collections.abc import Callable
from typing import Final

from ring3.dom0.xenstored.perms import Perms
from ring3.dom0.xenstored.store import NOTHING, Node, Store, Usage, create, remove, usage_of

MISSING: Final = 0
"""Generation of a node that is not there (real ones begin at 1)."""
_PRIVATE_GENERATION: Final = 1 << 63
"""Generations of nodes that a transaction has written begin here: none of them is a committed one's."""
NO_LIMIT: Final = 0
"""No limit to the nodes that may be touched."""


class TransactionTooBigError(Exception):
    """The transaction touched more nodes than it may."""


class Transaction:
    """A view upon the store.

    `changes` are the watch events to send at commit, in order and each once: (path, whether the exact path only) to the
    permissions that told who might see the node before. `is_doomed` makes the commit fail: what a daemon knows of its
    predecessor's transactions is what they have written, not what they have read, and starting over is what every
    client is ready for.
    """

    def __init__(self, store: Store, *, nr_nodes_max: int = NO_LIMIT, is_doomed: bool = False) -> None:
        self._store = store
        self._nr_nodes_max = nr_nodes_max
        self._is_doomed = is_doomed
        self._seen: dict[bytes, int] = {}
        self._written: dict[bytes, Node | None] = {}
        self._created: dict[int, Usage] = {}
        self._nr_writes = 0
        self.on_write: Callable[[bytes, Node | None], None] | None = None
        """Is told of each node that is made, changed or removed (None)."""
        self.nr_bytes = 0
        """What it makes the daemon hold."""
        self.changes: dict[tuple[bytes, bool], tuple[Perms, ...]] = {}

    def get(self, path: bytes) -> Node | None:
        """Returns the node as this transaction sees it, and remembers that it was looked at."""
        if path in self._written:
            return self._written[path]
        node = self._store.get(path)
        self._remember(path, node)
        return node

    def put(self, path: bytes, node: Node) -> None:
        """Creates or replaces one node, privately."""
        self._nr_writes += 1
        self._write(path, node._replace(generation=_PRIVATE_GENERATION + self._nr_writes))

    def delete(self, path: bytes) -> None:
        """Removes one node, privately."""
        self._write(path, None)

    def commit(self) -> bool:
        """Applies everything and returns True; or changes nothing and returns False, on a conflict."""
        if self._is_doomed:
            return False
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

    def written(self) -> list[tuple[bytes, Node | None]]:
        """Returns what a commit would put, or remove (None). Parents come before their children."""
        return list(self._written.items())

    def replay(self, path: bytes, value: bytes, perms: Perms | None) -> None:
        """Does again what a predecessor of this daemon has recorded: no permissions, no node."""
        node = self.get(path)
        if perms is None:
            if node is not None:
                remove(self, path)
        elif node is not None:
            self.put(path, node._replace(value=value, perms=perms))
        else:
            create(self, path, value, perms)

    def created(self, domid: int) -> Usage:
        """Returns by how much a commit would raise what the domain owns."""
        return self._created.get(domid, NOTHING)

    def _write(self, path: bytes, node: Node | None) -> None:
        committed = self._store.get(path)
        self._remember(path, committed)
        old = self._written.get(path, committed)
        for counted, sign in ((old, -1), (node, 1)):
            if counted is not None:
                nr_nodes, nr_bytes = usage_of(path, counted)
                owner = counted.owner
                self._created[owner] = self.created(owner) + Usage(sign * nr_nodes, sign * nr_bytes)
        if self.on_write and (old is None or node is None or old.value != node.value or old.perms != node.perms):
            self.on_write(path, node)
        before = self._written.get(path)
        self.nr_bytes += (len(node.value) if node else 0) - (len(before.value) if before else 0)
        self._written[path] = node

    def _remember(self, path: bytes, node: Node | None) -> None:
        if path in self._seen:
            return
        if self._nr_nodes_max and len(self._seen) >= self._nr_nodes_max:
            raise TransactionTooBigError
        self._seen[path] = node.generation if node is not None else MISSING
        self.nr_bytes += len(path)

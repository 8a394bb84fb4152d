"""The tree of nodes: a flat map from absolute path to an immutable node. No permissions, no I/O.

`Store` is the committed tree. A transaction is another `View` upon it, so requests need not know which they work on.
"""

from dataclasses import dataclass, replace
from typing import Final, Protocol

from ring3.dom0.xenstored.perms import PRIVATE_PERMS, ROOT_PERMS, Perms

SPECIAL_NODES: Final = (b"@introduceDomain", b"@releaseDomain")


@dataclass(frozen=True, slots=True)
class Node:
    """A node. `children` are names in order of creation. `generation` is that of the commit that wrote it."""

    value: bytes
    perms: Perms
    children: tuple[bytes, ...] = ()
    generation: int = 0


class View(Protocol):
    """What requests read and write: the store itself, or a transaction's idea of it."""

    def get(self, path: bytes) -> Node | None:
        """Returns the node, or None."""

    def put(self, path: bytes, node: Node) -> None:
        """Creates or replaces one node. The parent's `children` are the caller's business."""

    def delete(self, path: bytes) -> None:
        """Removes one node (not its children)."""


def parent_of(path: bytes) -> bytes:
    """Returns the parent's path; the root's is the root."""
    head = path.rpartition(b"/")[0]
    return head or b"/"


def name_of(path: bytes) -> bytes:
    """Returns the last component."""
    return path.rpartition(b"/")[2]


def join(parent: bytes, name: bytes) -> bytes:
    """Returns the child's path."""
    return parent + name if parent == b"/" else parent + b"/" + name


class Store:
    """The committed tree. Counts the nodes that each domain owns, for quotas."""

    def __init__(self) -> None:
        self._nodes: dict[bytes, Node] = {}
        self._owned: dict[int, int] = {}
        self.generation = 0
        self.put(b"/", Node(b"", ROOT_PERMS))
        for name in SPECIAL_NODES:
            self.put(name, Node(b"", PRIVATE_PERMS))
        create(self, b"/tool/xenstored", b"", ROOT_PERMS)
        create(self, b"/local/domain", b"", ROOT_PERMS)

    def get(self, path: bytes) -> Node | None:
        """Returns the node, or None."""
        return self._nodes.get(path)

    def put(self, path: bytes, node: Node) -> None:
        """Creates or replaces one node and gives it the next generation."""
        self.generation += 1
        old = self._nodes.get(path)
        if old is not None:
            self._count(old, -1)
        self._count(node, 1)
        self._nodes[path] = replace(node, generation=self.generation)

    def delete(self, path: bytes) -> None:
        """Removes one node, if it is there."""
        old = self._nodes.pop(path, None)
        if old is not None:
            self.generation += 1
            self._count(old, -1)

    def nr_owned(self, domid: int) -> int:
        """Returns how many nodes the domain owns."""
        return self._owned.get(domid, 0)

    def paths(self) -> list[bytes]:
        """Returns every path, the special nodes' names among them."""
        return list(self._nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def _count(self, node: Node, delta: int) -> None:
        domid = node.perms[0].domid
        nr = self._owned.get(domid, 0) + delta
        if nr:
            self._owned[domid] = nr
        else:
            self._owned.pop(domid, None)


def create(view: View, path: bytes, value: bytes, perms: Perms) -> list[bytes]:
    """Creates a node and every missing ancestor, with empty values. Returns the paths created, outermost first."""
    missing = [path]
    parent = parent_of(path)
    while view.get(parent) is None:
        missing.append(parent)
        parent = parent_of(parent)
    missing.reverse()
    for step in missing:
        above_path = parent_of(step)
        above = view.get(above_path)
        if above is not None:
            view.put(above_path, replace(above, children=(*above.children, name_of(step))))
        view.put(step, Node(value if step == path else b"", perms))
    return missing


def subtree(view: View, path: bytes) -> list[bytes]:
    """Returns the path and every path below it, parents first. Does not recurse: depth is the guest's choice."""
    found: list[bytes] = []
    pending = [path]
    while pending:
        step = pending.pop()
        node = view.get(step)
        if node is None:
            continue
        found.append(step)
        pending.extend(join(step, child) for child in reversed(node.children))
    return found


def remove(view: View, path: bytes) -> list[tuple[bytes, Perms]]:
    """Removes a node with all below it, and its name from the parent.

    Returns paths and permissions of what went, parents first: watchers are told by the permissions it had.
    """
    removed: list[tuple[bytes, Perms]] = []
    for step in subtree(view, path):
        node = view.get(step)
        if node is not None:
            removed.append((step, node.perms))
            view.delete(step)
    above_path = parent_of(path)
    above = view.get(above_path)
    if above is not None:
        name = name_of(path)
        view.put(above_path, replace(above, children=tuple(child for child in above.children if child != name)))
    return removed

"""The tree of nodes: a flat map from absolute path to an immutable node. No permissions, no I/O.

`Store` is the committed tree. A transaction is another `View` upon it, so requests need not know which they work on.
"""

from typing import NamedTuple, Protocol

from ring3.dom0.xenstored.paths import SPECIAL_NODES, join, name_of, parent_of
from ring3.dom0.xenstored.perms import PRIVATE_PERMS, Perms
from ring3.dom0.xenstored.recorder import Recorder


class Node(NamedTuple):
    """A node. `children` are names in order of creation. `generation` is that of the commit that wrote it."""

    value: bytes
    perms: Perms
    children: tuple[bytes, ...] = ()
    generation: int = 0

    @property
    def owner(self) -> int:
        """The domain that the node counts for."""
        return self.perms[0].domid


class Usage(NamedTuple):
    """What a domain owns."""

    nr_nodes: int
    nr_bytes: int

    def __add__(self, other: "Usage") -> "Usage":  # type: ignore[override]
        return Usage(self.nr_nodes + other.nr_nodes, self.nr_bytes + other.nr_bytes)


NOTHING = Usage(0, 0)


def usage_of(path: bytes, node: Node) -> Usage:
    """Returns what one node counts."""
    return Usage(1, len(path) + len(node.value) + 4 * len(node.perms))


class View(Protocol):
    """What requests read and write: the store itself, or a transaction's idea of it."""

    def get(self, path: bytes) -> Node | None:
        """Returns the node, or None."""

    def put(self, path: bytes, node: Node) -> None:
        """Creates or replaces one node. The parent's `children` are the caller's business."""

    def delete(self, path: bytes) -> None:
        """Removes one node (not its children)."""


class Store:
    """The committed tree. Counts what each domain owns, for quotas; tells `recorder` of every change."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self._recorder = recorder or Recorder()
        self._nodes: dict[bytes, Node] = {}
        self._owned: dict[int, Usage] = {}
        self.generation = 0
        self.put(b"/", Node(b"", PRIVATE_PERMS))
        for name in SPECIAL_NODES:
            self.put(name, Node(b"", PRIVATE_PERMS))
        create(self, b"/tool/xenstored", b"", PRIVATE_PERMS)
        create(self, b"/local/domain", b"", PRIVATE_PERMS)

    def get(self, path: bytes) -> Node | None:
        """Returns the node, or None."""
        return self._nodes.get(path)

    def put(self, path: bytes, node: Node) -> None:
        """Creates or replaces one node and gives it the next generation."""
        self.generation += 1
        old = self._nodes.get(path)
        value, perms, children, _generation = node
        if old is None or old.value != value or old.perms != perms:
            if old is not None:
                self._count(path, old, -1)
            self._count(path, node, 1)
            self._recorder.node(path, value, perms)
        self._nodes[path] = Node(value, perms, children, self.generation)

    def delete(self, path: bytes) -> None:
        """Removes one node, if it is there."""
        old = self._nodes.pop(path, None)
        if old is not None:
            self.generation += 1
            self._count(path, old, -1)
            self._recorder.node_gone(path)

    def owned(self, domid: int) -> Usage:
        """Returns what the domain owns."""
        return self._owned.get(domid, NOTHING)

    def items(self) -> list[tuple[bytes, Node]]:
        """Returns every path with its node, the special ones among them. Parents come before their children."""
        return list(self._nodes.items())

    def restore(self, nodes: dict[bytes, tuple[bytes, Perms]], generation: int) -> None:
        """Takes the place of everything. Parents come before their children; one without a parent is left out."""
        children: dict[bytes, list[bytes]] = {path: [] for path in nodes}
        whole = []
        for path in nodes:
            if path.startswith(b"/") and path != b"/":
                above = children.get(parent_of(path))
                if above is None:
                    continue
                above.append(name_of(path))
            whole.append(path)
        self._nodes.clear()
        self._owned.clear()
        self.generation = generation
        for path in whole:
            value, perms = nodes[path]
            self.put(path, Node(value, perms, tuple(children[path])))

    def __len__(self) -> int:
        return len(self._nodes)

    def _count(self, path: bytes, node: Node, sign: int) -> None:
        nr_nodes, nr_bytes = usage_of(path, node)
        owned = self._owned.get(node.owner, NOTHING) + Usage(sign * nr_nodes, sign * nr_bytes)
        if owned.nr_nodes:
            self._owned[node.owner] = owned
        else:
            self._owned.pop(node.owner, None)


def create(view: View, path: bytes, value: bytes, perms: Perms) -> None:
    """Creates a node and every missing ancestor, with empty values."""
    missing = [path]
    parent = parent_of(path)
    while view.get(parent) is None:
        missing.append(parent)
        parent = parent_of(parent)
    for step in reversed(missing):
        above_path = parent_of(step)
        above = view.get(above_path)
        if above is not None:
            view.put(above_path, above._replace(children=(*above.children, name_of(step))))
        view.put(step, Node(value if step == path else b"", perms))


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


def remove(view: View, path: bytes) -> list[tuple[bytes, tuple[Perms, ...]]]:
    """Removes a node with all below it, and its name from the parent.

    Returns what went, parents first, each with its permissions and its parent's: they say who is told.
    """
    removed: list[tuple[bytes, tuple[Perms, ...]]] = []
    perms_of: dict[bytes, Perms] = {}
    above_path = parent_of(path)
    above = view.get(above_path)
    if above is not None:
        perms_of[above_path] = above.perms
    for step in subtree(view, path):
        node = view.get(step)
        if node is not None:
            perms_of[step] = node.perms
            removed.append((step, (node.perms, perms_of.get(parent_of(step), node.perms))))
            view.delete(step)
    if above is not None:
        name = name_of(path)
        view.put(above_path, above._replace(children=tuple(child for child in above.children if child != name)))
    return removed

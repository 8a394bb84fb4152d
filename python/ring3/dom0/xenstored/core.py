"""What every request works on: the store, the watches, the limits, and who may do what. No I/O."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.paths import SPECIAL_NODES, own_length, parent_of, resolve, resolve_node
from ring3.dom0.xenstored.perms import Perms, access, without
from ring3.dom0.xenstored.quota import SOFT_DEFAULTS, Quotas
from ring3.dom0.xenstored.recorder import Recorder
from ring3.dom0.xenstored.store import Node, Store, View, remove
from ring3.dom0.xenstored.transactions import Transaction
from ring3.dom0.xenstored.watches import Watches
from ring3.dom0.xenstored.wire import Message, RefusedError, split_strings

ACK: Final = b"OK\0"


class Core:
    """The state of xenstored, and the rules that all requests share."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        self.recorder = recorder or Recorder()
        self.store = Store(self.recorder)
        self.watches = Watches()
        self.quotas = Quotas()
        self.soft_quotas = Quotas(SOFT_DEFAULTS)
        self.note: Callable[[str], None] = lambda _text: None
        """Writes to the daemon's log."""

    # -- arguments

    @staticmethod
    def strings(request: Message, nr: int) -> list[bytes]:
        """Returns the strings of a request that has so many. Raises RefusedError(EINVAL)."""
        strings = split_strings(request.payload)
        if len(strings) != nr:
            raise RefusedError("EINVAL")
        return strings

    def path(self, client: Client, request: Message, *, allow_special: bool = False) -> bytes:
        """Returns the path that is all of a request's payload."""
        (untrusted_path,) = self.strings(request, 1)
        return (resolve_node if allow_special else resolve)(untrusted_path, client.base)

    def view(self, client: Client, request: Message) -> View:
        """Returns what the request works on: the store, or the transaction that it names."""
        return client.transactions[request.tx_id] if request.tx_id else self.store

    # -- permissions

    @staticmethod
    def may(client: Client, perms: Perms, *, write: bool) -> bool:
        """Returns whether a client may read or write what has these permissions."""
        if client.is_privileged:
            return True
        if access(perms, client.domid)[write]:
            return True
        return client.target is not None and access(perms, client.target)[write]

    @staticmethod
    def nearest(view: View, path: bytes) -> tuple[bytes, Node]:
        """Returns the node or its nearest ancestor that exists. The root always does."""
        while True:
            node = view.get(path)
            if node is not None:
                return path, node
            if path == b"/":
                return path, Node(b"", ())
            path = parent_of(path)

    def node(self, view: View, client: Client, path: bytes, *, write: bool = False) -> Node:
        """Returns a node that the client may access. What it may not see it cannot tell from what is not there."""
        found, node = self.nearest(view, path)
        if not self.may(client, node.perms, write=write):
            raise RefusedError("EACCES")
        if found != path:
            raise RefusedError("ENOENT")
        return node

    @staticmethod
    def require_privilege(client: Client) -> None:
        """Raises RefusedError(EACCES) for all but domain 0."""
        if not client.is_privileged:
            raise RefusedError("EACCES")

    # -- limits

    def check_quota(self, client: Client, name: str, wanted: int, errno_name: str = "ENOSPC") -> None:
        """Raises RefusedError where an unprivileged client asks for more than it may have."""
        if not client.is_privileged and not self.quotas.allows(name, wanted):
            raise RefusedError(errno_name)

    def check_memory(self, client: Client, nr_more_bytes: int) -> None:
        """Raises RefusedError(ENOMEM) where all that a client makes us hold would be too much."""
        if client.is_privileged or not (self.quotas["memory"] or self.soft_quotas["memory"]):
            return
        held = self.store.owned(client.domid).nr_bytes + client.nr_bytes + nr_more_bytes
        held += sum(watch.nr_bytes for watch in self.watches.of(client))
        self.check_quota(client, "memory", held, "ENOMEM")
        was_large, client.is_large = client.is_large, not self.soft_quotas.allows("memory", held)
        if client.is_large and not was_large:
            self.note(f"domain {client.domid} makes xenstored hold {held} bytes, more than the soft quota of memory")

    def check_path_length(self, client: Client, path: bytes) -> None:
        """Raises RefusedError(EINVAL) for a path that is longer than a domain's may be."""
        self.check_quota(client, "path-max", own_length(path), "EINVAL")

    # -- changes

    def changed(
        self, client: Client, request: Message, path: bytes, *, exact: bool = False, seen_by: tuple[Perms, ...] = ()
    ) -> None:
        """Fires at once, or at the commit of the transaction that made the change."""
        if request.tx_id:
            changes = client.transactions[request.tx_id].changes
            # An earlier change of the same node may have been visible to others: nobody who saw it is left out.
            changes[path, exact] = tuple({*changes.get((path, exact), ()), *seen_by})
        else:
            self.fire(path, exact=exact, seen_by=seen_by)

    def fire(self, changed: bytes, *, exact: bool = False, seen_by: tuple[Perms, ...] = ()) -> None:
        """Tells who watches and may know: by `seen_by` (permissions from before the change), by those that the node
        has now, or by its parent's, since who may list that sees the node come and go."""
        watches = list(self.watches.affected(changed, exact=exact))
        if not watches:
            return
        allowing = list(seen_by)
        for path in (changed,) if changed in SPECIAL_NODES else (changed, parent_of(changed)):
            node = self.store.get(path)
            if node is not None:
                allowing.append(node.perms)
        for watch in watches:
            client = watch.client
            if client.is_privileged or any(self.may(client, perms, write=False) for perms in allowing):
                client.event(watch.event_path(changed), watch.token)

    def fire_special(self, name: bytes, domid: int | None) -> None:
        """Tells who watches @introduceDomain or @releaseDomain, or the event for one domain, and may read it."""
        node = self.store.get(name)
        perms = node.perms if node is not None else ()
        detailed = name if domid is None else b"%s/%d" % (name, domid)
        for watched in dict.fromkeys((name, detailed)):
            for watch in list(self.watches.affected(watched, exact=True)):
                if perms and self.may(watch.client, perms, write=False):
                    watch.client.event(detailed if watch.depth else watched, watch.token)

    # -- clients

    def forget(self, client: Client) -> None:
        """Drops what a client that is gone has left."""
        self.watches.remove_client(client)
        client.reset()

    def forget_domain(self, domid: int) -> None:
        """Removes the nodes of a domain that is gone, and its name from all permissions: its domid may come again."""
        for path, node in self.store.items():
            if node.owner == domid and self.store.get(path) is not None:
                for step, seen_by in remove(self.store, path):
                    self.fire(step, exact=step != path, seen_by=seen_by)
        for path, node in self.store.items():
            kept = without(node.perms, domid)
            if len(kept) != len(node.perms):
                self.store.put(path, node._replace(perms=kept))

    def open_transaction(self, client: Client) -> int:
        """Begins a transaction and returns its id."""
        limit = 0 if client.is_privileged else self.quotas["transaction-nodes"]
        return client.open_transaction(Transaction(self.store, nr_nodes_max=limit))

"""What each request does to the store. No I/O: replies and events are queued on the clients.

Source: docs/misc/xenstore.txt of Xen; error choices follow what Xen's daemon answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final, Protocol

from ring3.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XsType
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.paths import home, resolve
from ring3.dom0.xenstored.perms import Perms, access, parse_domid, parse_perms, with_owner
from ring3.dom0.xenstored.store import Node, Store, View, create, name_of, parent_of, remove
from ring3.dom0.xenstored.transactions import Transaction, TransactionTooBigError
from ring3.dom0.xenstored.watches import Watch, Watches
from ring3.dom0.xenstored.wire import Message, RefusedError, split_strings

# Quotas of an unprivileged client, Xen's defaults (tools/xenstore, quota-*).
NR_NODES_MAX: Final = 1000
NODE_BYTES_MAX: Final = 2048
NR_WATCHES_MAX: Final = 128
NR_TRANSACTIONS_MAX: Final = 10
TOKEN_BYTES_MAX: Final = 1024
ACK: Final = b"OK\0"


class Domains(Protocol):
    """The transport's side: which domains have a ring."""

    def introduce(self, domid: int, mfn: int, port: int) -> None:
        """Maps the ring and binds the port. Raises RefusedError."""

    def release(self, domid: int) -> None:
        """Drops the ring. Raises RefusedError(ENOENT)."""

    def is_introduced(self, domid: int) -> bool:
        """Returns whether the domain has a ring."""

    def resume(self, domid: int) -> None:
        """Forgets that the domain was shut down. Raises RefusedError(ENOENT)."""

    def set_target(self, domid: int, target: int) -> None:
        """Gives a domain its target's rights. Raises RefusedError(ENOENT)."""


class Requests:
    """The store with its watches and the table of request handlers."""

    def __init__(self, domains: Domains) -> None:
        self.store = Store()
        self.watches: Watches[Client] = Watches()
        self._domains = domains
        self._table: dict[int, Callable[[Client, Message], None]] = {
            XsType.CONTROL: self._control,
            XsType.DIRECTORY: self._directory,
            XsType.READ: self._read,
            XsType.GET_PERMS: self._get_perms,
            XsType.WATCH: self._watch,
            XsType.UNWATCH: self._unwatch,
            XsType.TRANSACTION_START: self._transaction_start,
            XsType.TRANSACTION_END: self._transaction_end,
            XsType.INTRODUCE: self._introduce,
            XsType.RELEASE: self._release,
            XsType.GET_DOMAIN_PATH: self._get_domain_path,
            XsType.WRITE: self._write,
            XsType.MKDIR: self._mkdir,
            XsType.RM: self._rm,
            XsType.SET_PERMS: self._set_perms,
            XsType.IS_DOMAIN_INTRODUCED: self._is_domain_introduced,
            XsType.RESUME: self._resume,
            XsType.SET_TARGET: self._set_target,
            XsType.RESET_WATCHES: self._reset_watches,
            XsType.DIRECTORY_PART: self._directory_part,
        }

    def handle(self, client: Client, request: Message) -> None:
        """Answers one request, whatever it holds."""
        try:
            handler = self._table.get(request.type)
            if handler is None:
                raise RefusedError("ENOSYS")
            if request.tx_id and request.tx_id not in client.transactions:
                raise RefusedError("ENOENT")
            handler(client, request)
        except RefusedError as error:
            client.refuse(request, error.errno_name)
        except TransactionTooBigError:
            client.refuse(request, "ENOSPC")

    def forget(self, client: Client) -> None:
        """Drops what a client that is gone has left."""
        self.watches.remove_client(client)
        client.reset()

    def fire(self, changed: bytes, *, exact: bool = False, perms: Perms | None = None) -> None:
        """Tells who watches and may read. `perms` are those that a removed node had."""
        if perms is None:
            perms = self._nearest(self.store, changed)[1].perms
        for watch in list(self.watches.affected(changed, exact=exact)):
            if self._may(watch.client, perms, write=False):
                watch.client.event(watch.event_path(changed), watch.token)

    # -- permissions

    @staticmethod
    def _may(client: Client, perms: Perms, *, write: bool) -> bool:
        if client.is_privileged:
            return True
        if access(perms, client.domid)[write]:
            return True
        return client.target is not None and access(perms, client.target)[write]

    @staticmethod
    def _nearest(view: View, path: bytes) -> tuple[bytes, Node]:
        """Returns the node or its nearest ancestor that exists. The root always does."""
        while True:
            node = view.get(path)
            if node is not None:
                return path, node
            if path == b"/":
                return path, Node(b"", ())
            path = parent_of(path)

    def _node(self, view: View, client: Client, path: bytes, *, write: bool = False) -> Node:
        """Returns a node that the client may access. What it may not see it cannot tell from what is not there."""
        found, node = self._nearest(view, path)
        if not self._may(client, node.perms, write=write):
            raise RefusedError("EACCES")
        if found != path:
            raise RefusedError("ENOENT")
        return node

    # -- arguments

    def _view(self, client: Client, request: Message) -> View:
        return client.transactions[request.tx_id] if request.tx_id else self.store

    @staticmethod
    def _strings(request: Message, nr: int) -> list[bytes]:
        strings = split_strings(request.payload)
        if len(strings) != nr:
            raise RefusedError("EINVAL")
        return strings

    def _path(self, client: Client, request: Message, *, allow_special: bool = False) -> bytes:
        return resolve(self._strings(request, 1)[0], client.domid, allow_special=allow_special)

    @staticmethod
    def _require_privilege(client: Client) -> None:
        if not client.is_privileged:
            raise RefusedError("EACCES")

    def _changed(
        self, client: Client, request: Message, path: bytes, *, exact: bool = False, perms: Perms | None = None
    ) -> None:
        """Fires at once, or at the commit of the transaction that made the change."""
        if request.tx_id:
            client.transactions[request.tx_id].changes[path, exact] = perms
        else:
            self.fire(path, exact=exact, perms=perms)

    # -- nodes

    def _read(self, client: Client, request: Message) -> None:
        path = self._path(client, request)
        client.reply(request, self._node(self._view(client, request), client, path).value)

    def _directory(self, client: Client, request: Message) -> None:
        path = self._path(client, request)
        node = self._node(self._view(client, request), client, path)
        payload = b"".join(child + b"\0" for child in node.children)
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise RefusedError("E2BIG")
        client.reply(request, payload)

    def _directory_part(self, client: Client, request: Message) -> None:
        untrusted_path, untrusted_offset = self._strings(request, 2)
        if not untrusted_offset.isdigit() or len(untrusted_offset) > 10:
            raise RefusedError("EINVAL")
        node = self._node(self._view(client, request), client, resolve(untrusted_path, client.domid))
        names = b"".join(child + b"\0" for child in node.children)[int(untrusted_offset) :]
        generation = b"%d\0" % node.generation
        room = XENSTORE_PAYLOAD_MAX - len(generation) - 1
        if len(names) > room:
            client.reply(request, generation + names[: names.rfind(b"\0", 0, room) + 1])
        else:
            client.reply(request, generation + names + b"\0")

    def _write(self, client: Client, request: Message) -> None:
        untrusted_path, terminator, value = request.payload.partition(b"\0")
        if not terminator:
            raise RefusedError("EINVAL")
        path = resolve(untrusted_path, client.domid)
        if not client.is_privileged and len(value) > NODE_BYTES_MAX:
            raise RefusedError("ENOSPC")
        view = self._view(client, request)
        found, node = self._nearest(view, path)
        if not self._may(client, node.perms, write=True):
            raise RefusedError("EACCES")
        if found == path:
            view.put(path, replace(node, value=value))
        else:
            self._create(client, view, found, node, path, value)
        client.reply(request, ACK)
        self._changed(client, request, path)

    def _mkdir(self, client: Client, request: Message) -> None:
        path = self._path(client, request)
        view = self._view(client, request)
        found, node = self._nearest(view, path)
        if not self._may(client, node.perms, write=True):
            raise RefusedError("EACCES")
        if found != path:
            self._create(client, view, found, node, path, b"")
        client.reply(request, ACK)
        if found != path:
            self._changed(client, request, path)

    def _create(self, client: Client, view: View, found: bytes, above: Node, path: bytes, value: bytes) -> None:
        perms = above.perms
        if not client.is_privileged:
            perms = with_owner(perms, client.domid)
            nr_new = path.count(b"/") - found.rstrip(b"/").count(b"/")
            nr_pending = view.nr_created(client.domid) if isinstance(view, Transaction) else 0
            if self.store.nr_owned(client.domid) + nr_pending + nr_new > NR_NODES_MAX:
                raise RefusedError("ENOSPC")
        create(view, path, value, perms)

    def _rm(self, client: Client, request: Message) -> None:
        path = self._path(client, request)
        if path == b"/":
            raise RefusedError("EINVAL")
        view = self._view(client, request)
        if view.get(path) is None:
            # Removing what is not there succeeds if its parent is there.
            self._node(view, client, parent_of(path))
            client.reply(request, ACK)
            return
        self._node(view, client, path, write=True)
        removed = remove(view, path)
        client.reply(request, ACK)
        for step, perms in removed:
            self._changed(client, request, step, exact=step != path, perms=perms)

    def _get_perms(self, client: Client, request: Message) -> None:
        path = self._path(client, request, allow_special=True)
        node = self._node(self._view(client, request), client, path)
        client.reply(request, b"".join(perm.encode() + b"\0" for perm in node.perms))

    def _set_perms(self, client: Client, request: Message) -> None:
        strings = split_strings(request.payload)
        if len(strings) < 2:
            raise RefusedError("EINVAL")
        path = resolve(strings[0], client.domid, allow_special=True)
        perms = parse_perms(strings[1:])
        view = self._view(client, request)
        node = self._node(view, client, path, write=True)
        if not client.is_privileged:
            owner = node.perms[0].domid
            if owner not in (client.domid, client.target):
                raise RefusedError("EACCES")
            if perms[0].domid != owner:
                raise RefusedError("EPERM")
        view.put(path, replace(node, perms=perms))
        client.reply(request, ACK)
        self._changed(client, request, path)

    # -- watches

    def _watch(self, client: Client, request: Message) -> None:
        untrusted_path, token = self._strings(request, 2)
        path = resolve(untrusted_path, client.domid, allow_special=True)
        if len(token) > TOKEN_BYTES_MAX:
            raise RefusedError("E2BIG")
        if not client.is_privileged and self.watches.count(client) >= NR_WATCHES_MAX:
            raise RefusedError("E2BIG")
        is_relative = untrusted_path[:1] not in (b"/", b"@")
        prefix = home(client.domid) + b"/" if is_relative else b""
        if not self.watches.add(Watch(client, path, token, prefix)):
            raise RefusedError("EEXIST")
        client.reply(request, ACK)
        client.event(untrusted_path, token)

    def _unwatch(self, client: Client, request: Message) -> None:
        untrusted_path, token = self._strings(request, 2)
        path = resolve(untrusted_path, client.domid, allow_special=True)
        if not self.watches.remove(client, path, token):
            raise RefusedError("ENOENT")
        client.reply(request, ACK)

    def _reset_watches(self, client: Client, request: Message) -> None:
        self.watches.remove_client(client)
        client.transactions.clear()
        client.reply(request, ACK)

    # -- transactions

    def _transaction_start(self, client: Client, request: Message) -> None:
        if request.tx_id:
            raise RefusedError("EBUSY")
        if not client.is_privileged and len(client.transactions) >= NR_TRANSACTIONS_MAX:
            raise RefusedError("ENOSPC")
        tx_id = client.open_transaction(Transaction(self.store, is_privileged=client.is_privileged))
        client.reply(request, b"%d\0" % tx_id)

    def _transaction_end(self, client: Client, request: Message) -> None:
        (verdict,) = self._strings(request, 1)
        if verdict not in (b"T", b"F"):
            raise RefusedError("EINVAL")
        transaction = client.transactions.pop(request.tx_id, None)
        if transaction is None:
            raise RefusedError("ENOENT")
        if verdict == b"T" and not transaction.commit():
            raise RefusedError("EAGAIN")
        client.reply(request, ACK)
        if verdict == b"T":
            for (path, exact), perms in transaction.changes.items():
                self.fire(path, exact=exact, perms=perms)

    # -- domains

    def _introduce(self, client: Client, request: Message) -> None:
        self._require_privilege(client)
        strings = split_strings(request.payload)
        if len(strings) < 3 or not all(text.isdigit() and len(text) <= 19 for text in strings[1:3]):
            raise RefusedError("EINVAL")
        self._domains.introduce(parse_domid(strings[0]), int(strings[1]), int(strings[2]))
        client.reply(request, ACK)
        self.fire(b"@introduceDomain", exact=True)

    def _release(self, client: Client, request: Message) -> None:
        self._require_privilege(client)
        self._domains.release(parse_domid(self._strings(request, 1)[0]))
        client.reply(request, ACK)
        self.fire(b"@releaseDomain", exact=True)

    def _resume(self, client: Client, request: Message) -> None:
        self._require_privilege(client)
        self._domains.resume(parse_domid(self._strings(request, 1)[0]))
        client.reply(request, ACK)

    def _set_target(self, client: Client, request: Message) -> None:
        self._require_privilege(client)
        domid, target = (parse_domid(text) for text in self._strings(request, 2))
        self._domains.set_target(domid, target)
        client.reply(request, ACK)

    def _get_domain_path(self, client: Client, request: Message) -> None:
        client.reply(request, home(parse_domid(self._strings(request, 1)[0])) + b"\0")

    def _is_domain_introduced(self, client: Client, request: Message) -> None:
        domid = parse_domid(self._strings(request, 1)[0])
        client.reply(request, b"T\0" if self._domains.is_introduced(domid) else b"F\0")

    def _control(self, client: Client, request: Message) -> None:
        """`help` and `check` (is every node in its parent's list) are what there is."""
        self._require_privilege(client)
        strings = split_strings(request.payload)
        match strings[:1]:
            case [b"help"]:
                client.reply(request, b"commands: check, help\0")
            case [b"check"]:
                client.reply(request, (self._inconsistency() or "OK").encode() + b"\0")
            case _:
                raise RefusedError("EINVAL")

    def _inconsistency(self) -> str | None:
        for path in self.store.paths():
            above = self.store.get(parent_of(path))
            if path.startswith(b"/") and path != b"/" and (above is None or name_of(path) not in above.children):
                return f"node {path.decode(errors='replace')} is not in its parent's list"
        return None

"""Requests about nodes: values, lists of children, permissions."""

from __future__ import annotations

from ring3.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XsType
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.core import ACK, Core
from ring3.dom0.xenstored.handlers import Handlers
from ring3.dom0.xenstored.paths import parent_of, resolve, resolve_node
from ring3.dom0.xenstored.perms import parse_perms, with_owner
from ring3.dom0.xenstored.store import Node, View, create, remove
from ring3.dom0.xenstored.transactions import Transaction
from ring3.dom0.xenstored.wire import Message, RefusedError, split_leading_strings


class NodeRequests:
    """READ, WRITE, MKDIR, RM, DIRECTORY, DIRECTORY_PART, GET_PERMS, SET_PERMS."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def table(self) -> Handlers:
        """Returns the handlers by request type."""
        return {
            XsType.DIRECTORY: self._directory,
            XsType.READ: self._read,
            XsType.GET_PERMS: self._get_perms,
            XsType.WRITE: self._write,
            XsType.MKDIR: self._mkdir,
            XsType.RM: self._rm,
            XsType.SET_PERMS: self._set_perms,
            XsType.DIRECTORY_PART: self._directory_part,
        }

    def _read(self, client: Client, request: Message) -> None:
        core = self._core
        client.reply(request, core.node(core.view(client, request), client, core.path(client, request)).value)

    def _directory(self, client: Client, request: Message) -> None:
        core = self._core
        node = core.node(core.view(client, request), client, core.path(client, request))
        payload = b"".join(child + b"\0" for child in node.children)
        if len(payload) > XENSTORE_PAYLOAD_MAX:
            raise RefusedError("E2BIG")
        client.reply(request, payload)

    def _directory_part(self, client: Client, request: Message) -> None:
        core = self._core
        untrusted_path, untrusted_offset = core.strings(request, 2)
        if not untrusted_offset.isdigit() or len(untrusted_offset) > 10:
            raise RefusedError("EINVAL")
        node = core.node(core.view(client, request), client, resolve(untrusted_path, client.base))
        names = b"".join(child + b"\0" for child in node.children)[int(untrusted_offset) :]
        generation = b"%d\0" % node.generation
        room = XENSTORE_PAYLOAD_MAX - len(generation) - 1
        if len(names) > room:
            client.reply(request, generation + names[: names.rfind(b"\0", 0, room) + 1])
        else:
            client.reply(request, generation + names + b"\0")

    def _write(self, client: Client, request: Message) -> None:
        core = self._core
        untrusted_path, terminator, value = request.payload.partition(b"\0")
        if not terminator:
            raise RefusedError("EINVAL")
        path = resolve(untrusted_path, client.base)
        core.check_quota(client, "node-size", len(value))
        view = core.view(client, request)
        found, node = core.nearest(view, path)
        if not core.may(client, node.perms, write=True):
            raise RefusedError("EACCES")
        if found == path:
            core.check_memory(client, len(value) if request.tx_id else max(0, len(value) - len(node.value)))
            view.put(path, Node(value, node.perms, node.children))
        else:
            self._create(client, view, found, node, path, value)
        client.reply(request, ACK)
        core.changed(client, request, path)

    def _mkdir(self, client: Client, request: Message) -> None:
        core = self._core
        path = core.path(client, request)
        view = core.view(client, request)
        found, node = core.nearest(view, path)
        if not core.may(client, node.perms, write=True):
            raise RefusedError("EACCES")
        if found != path:
            self._create(client, view, found, node, path, b"")
        client.reply(request, ACK)
        if found != path:
            core.changed(client, request, path)

    def _create(self, client: Client, view: View, found: bytes, above: Node, path: bytes, value: bytes) -> None:
        core = self._core
        perms = above.perms
        if not client.is_privileged:
            perms = with_owner(perms, client.domid)
            core.check_path_length(client, path)
            nr_new = path.count(b"/") - found.rstrip(b"/").count(b"/")
            nr_had = core.store.owned(client.domid).nr_nodes
            if isinstance(view, Transaction):
                nr_had += view.created(client.domid).nr_nodes
            core.check_quota(client, "nodes", nr_had + nr_new)
            core.check_memory(client, nr_new * len(path) + len(value))
        create(view, path, value, perms)

    def _rm(self, client: Client, request: Message) -> None:
        core = self._core
        path = core.path(client, request)
        if path == b"/":
            raise RefusedError("EINVAL")
        view = core.view(client, request)
        if view.get(path) is None:
            # Removing what is not there succeeds if its parent is there, and the client's to change.
            core.node(view, client, parent_of(path), write=True)
            client.reply(request, ACK)
            return
        core.node(view, client, path, write=True)
        removed = remove(view, path)
        client.reply(request, ACK)
        for step, seen_by in removed:
            core.changed(client, request, step, exact=step != path, seen_by=seen_by)

    def _get_perms(self, client: Client, request: Message) -> None:
        core = self._core
        node = core.node(core.view(client, request), client, core.path(client, request, allow_special=True))
        client.reply(request, b"".join(perm.encode() + b"\0" for perm in node.perms))

    def _set_perms(self, client: Client, request: Message) -> None:
        core = self._core
        strings = split_leading_strings(request.payload)
        if len(strings) < 2:
            raise RefusedError("EINVAL")
        path = resolve_node(strings[0], client.base)
        core.check_quota(client, "permissions", len(strings) - 1)
        perms = parse_perms(strings[1:])
        view = core.view(client, request)
        node = core.node(view, client, path, write=True)
        if not client.is_privileged:
            if node.owner not in (client.domid, client.target):
                raise RefusedError("EACCES")
            if perms[0].domid != node.owner:
                raise RefusedError("EPERM")
        view.put(path, node._replace(perms=perms))
        client.reply(request, ACK)
        core.changed(client, request, path, seen_by=(node.perms,))

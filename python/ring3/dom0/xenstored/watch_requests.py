"""Requests about watches and transactions."""

from __future__ import annotations

from typing import Final

from ring3.abi.xs_wire import XsType
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.core import ACK, Core
from ring3.dom0.xenstored.handlers import Handlers
from ring3.dom0.xenstored.paths import resolve_watch
from ring3.dom0.xenstored.watches import Watch
from ring3.dom0.xenstored.wire import Message, RefusedError, split_leading_strings

TOKEN_BYTES_MAX: Final = 1024
_DEPTH_DIGITS_MAX: Final = 5


def make_watch(client: Client, spelt: bytes, token: bytes, depth: int | None) -> Watch:
    """Returns the watch that a client means. Raises RefusedError(EINVAL)."""
    path = resolve_watch(spelt, client.base)
    is_relative = spelt[:1] not in (b"/", b"@")
    prefix = client.base + b"/" if is_relative else b""
    return Watch(client, spelt, path, token, prefix, depth)


class WatchRequests:
    """WATCH, UNWATCH, RESET_WATCHES, TRANSACTION_START, TRANSACTION_END."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def table(self) -> Handlers:
        """Returns the handlers by request type."""
        return {
            XsType.WATCH: self._watch,
            XsType.UNWATCH: self._unwatch,
            XsType.RESET_WATCHES: self._reset_watches,
            XsType.TRANSACTION_START: self._transaction_start,
            XsType.TRANSACTION_END: self._transaction_end,
        }

    def _watch(self, client: Client, request: Message) -> None:
        core = self._core
        strings = split_leading_strings(request.payload)
        if len(strings) not in (2, 3):
            raise RefusedError("EINVAL")
        spelt, token = strings[:2]
        depth = _parse_depth(strings[2]) if len(strings) == 3 and strings[2] else None
        watch = make_watch(client, spelt, token, depth)
        if depth is not None and depth > 1 and spelt.startswith(b"@"):
            raise RefusedError("EINVAL")
        if len(token) > TOKEN_BYTES_MAX:
            raise RefusedError("E2BIG")
        core.check_path_length(client, watch.path)
        core.check_quota(client, "watches", len(core.watches.of(client)) + 1, "E2BIG")
        core.check_memory(client, watch.nr_bytes)
        if not core.watches.add(watch):
            raise RefusedError("EEXIST")
        client.recorder.watch(client.conn_id, spelt, token, depth)
        client.reply(request, ACK)
        client.event(spelt, token)

    def _unwatch(self, client: Client, request: Message) -> None:
        strings = split_leading_strings(request.payload)
        if len(strings) < 2:
            raise RefusedError("EINVAL")
        spelt, token = strings[:2]
        watch = self._core.watches.remove(client, resolve_watch(spelt, client.base), token)
        if watch is None:
            raise RefusedError("ENOENT")
        client.recorder.watch_gone(client.conn_id, watch.spelt, token)
        client.reply(request, ACK)

    def _reset_watches(self, client: Client, request: Message) -> None:
        for watch in self._core.watches.of(client):
            client.recorder.watch_gone(client.conn_id, watch.spelt, watch.token)
        self._core.watches.remove_client(client)
        for tx_id in list(client.transactions):
            client.close_transaction(tx_id)
        client.reply(request, ACK)

    def _transaction_start(self, client: Client, request: Message) -> None:
        core = self._core
        if request.tx_id:
            raise RefusedError("EBUSY")
        core.check_quota(client, "transactions", len(client.transactions) + 1)
        client.reply(request, b"%d\0" % core.open_transaction(client))

    def _transaction_end(self, client: Client, request: Message) -> None:
        core = self._core
        (verdict,) = core.strings(request, 1)
        if verdict not in (b"T", b"F"):
            raise RefusedError("EINVAL")
        transaction = client.close_transaction(request.tx_id)
        if transaction is None:
            raise RefusedError("ENOENT")
        if verdict == b"T" and not transaction.commit():
            raise RefusedError("EAGAIN")
        client.reply(request, ACK)
        if verdict == b"T":
            for (path, exact), seen_by in transaction.changes.items():
                core.fire(path, exact=exact, seen_by=seen_by)


def _parse_depth(untrusted_text: bytes) -> int:
    if not untrusted_text.isdigit() or len(untrusted_text) > _DEPTH_DIGITS_MAX:
        raise RefusedError("EINVAL")
    return int(untrusted_text)

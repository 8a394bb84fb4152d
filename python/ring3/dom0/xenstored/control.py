"""CONTROL requests: what the administrator asks of the daemon itself. Source: docs/misc/xenstore.txt of Xen."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from typing import Final, Protocol

from ring3.abi.xs_wire import XENSTORE_PAYLOAD_MAX, XsType
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.core import Core
from ring3.dom0.xenstored.handlers import Handlers
from ring3.dom0.xenstored.paths import name_of, parent_of
from ring3.dom0.xenstored.perms import parse_domid
from ring3.dom0.xenstored.quota import SOFT, Quotas
from ring3.dom0.xenstored.wire import Message, RefusedError, split_strings

OK: Final = "OK"
_HOST_ERRORS: Final = ("EACCES", "EIO", "EISDIR", "ENOENT", "ENOSPC", "EPERM", "EROFS")


class Daemon(Protocol):
    """The transport's side: what only a process can do."""

    def set_tracing(self, *, enabled: bool) -> None:
        """Logs each request, or no longer."""

    def note(self, text: str) -> None:
        """Writes to the log."""

    def log_to(self, path: str) -> None:
        """Writes what tracing says to a file from now on. Raises OSError."""

    def report(self, path: str, text: str) -> None:
        """Writes a text to a file. Raises OSError."""

    def live_update(self, arguments: list[str]) -> str:
        """Prepares or starts the replacement of the running program. Returns "OK", or why not."""


class ControlRequests:
    """CONTROL, with Xen's commands."""

    def __init__(self, core: Core, daemon: Daemon) -> None:
        self._core = core
        self._daemon = daemon
        self._commands = {
            "check": self._check,
            "help": self._help,
            "live-update": self._daemon.live_update,
            "log": self._log,
            "logfile": self._logfile,
            "memreport": self._memreport,
            "print": self._print,
            "quota": self._quota,
            "quota-soft": self._quota_soft,
        }

    def table(self) -> Handlers:
        """Returns the handlers by request type."""
        return {XsType.CONTROL: self._control}

    def _control(self, client: Client, request: Message) -> None:
        self._core.require_privilege(client)
        words = [text.decode(errors="replace") for text in split_strings(request.payload)]
        command = self._commands.get(words[0]) if words else None
        if command is None:
            raise RefusedError("EINVAL")
        answer = command(words[1:]).encode()[: XENSTORE_PAYLOAD_MAX - 1]
        client.reply(request, answer + b"\0")

    def _help(self, _arguments: list[str]) -> str:
        return "commands: " + ", ".join(sorted(self._commands))

    def _check(self, _arguments: list[str]) -> str:
        """Is every node in its parent's list?"""
        for path, _node in self._core.store.items():
            above = self._core.store.get(parent_of(path))
            if path.startswith(b"/") and path != b"/" and (above is None or name_of(path) not in above.children):
                return f"node {path.decode(errors='replace')} is not in its parent's list"
        return OK

    def _log(self, arguments: list[str]) -> str:
        if arguments not in (["on"], ["off"]):
            raise RefusedError("EINVAL")
        self._daemon.set_tracing(enabled=arguments == ["on"])
        return OK

    def _logfile(self, arguments: list[str]) -> str:
        if len(arguments) != 1 or not arguments[0]:
            raise RefusedError("EINVAL")
        with _refused():
            self._daemon.log_to(arguments[0])
        return OK

    def _memreport(self, arguments: list[str]) -> str:
        if len(arguments) > 1:
            raise RefusedError("EINVAL")
        nodes = self._core.store.items()
        size = sum(len(path) + len(node.value) for path, node in nodes)
        text = f"{len(nodes)} nodes, {size} bytes of paths and values"
        if arguments:
            with _refused():
                self._daemon.report(arguments[0], text + "\n")
        else:
            self._daemon.note(text)
        return OK

    def _print(self, arguments: list[str]) -> str:
        if len(arguments) != 1:
            raise RefusedError("EINVAL")
        self._daemon.note(arguments[0])
        return OK

    def _quota(self, arguments: list[str]) -> str:
        match arguments:
            case []:
                return self._core.quotas.report()
            case ["set", name, value]:
                return self._set_quota(self._core.quotas, name, value)
            case [domid]:
                nr_nodes, nr_bytes = self._core.store.owned(parse_domid(domid.encode()))
                return f"Domain {domid}:\nnodes            : {nr_nodes:>8}\nmemory           : {nr_bytes:>8}"
            case _:
                raise RefusedError("EINVAL")

    def _quota_soft(self, arguments: list[str]) -> str:
        match arguments:
            case []:
                return self._core.soft_quotas.report()
            case ["set", name, value]:
                return self._set_quota(self._core.soft_quotas, name, value, prefix=SOFT)
            case _:
                raise RefusedError("EINVAL")

    def _set_quota(self, quotas: Quotas, name: str, value: str, *, prefix: str = "") -> str:
        if not value.isdecimal() or len(value) > 10 or not quotas.set(name, int(value)):
            raise RefusedError("EINVAL")
        self._core.recorder.quota(prefix + name, int(value))
        return OK


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Refuses what the host refuses, by the same name where xenstore has it."""
    try:
        yield
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "")
        raise RefusedError(name if name in _HOST_ERRORS else "EINVAL") from error

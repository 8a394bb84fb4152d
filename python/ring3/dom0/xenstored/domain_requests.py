"""Requests about domains: which of them xenstored serves, and on whose behalf."""

from __future__ import annotations

from typing import Final, Protocol

from ring3.abi.xen import DOMID_SELF
from ring3.abi.xs_wire import XsType
from ring3.dom0.xenstored.clients import Client
from ring3.dom0.xenstored.core import ACK, Core
from ring3.dom0.xenstored.handlers import Handlers
from ring3.dom0.xenstored.paths import INTRODUCE_DOMAIN, RELEASE_DOMAIN, home
from ring3.dom0.xenstored.perms import parse_domid
from ring3.dom0.xenstored.wire import Message, RefusedError, split_leading_strings

_NUMBER_DIGITS_MAX: Final = 19
_U16_MAX: Final = 0xFFFF


class Domains(Protocol):
    """The transport's side: which domains have a ring."""

    def introduce(self, domid: int, mfn: int, port: int) -> bool:
        """Maps the ring and binds the port; a domain that is known gets a new connection by the port, on the same ring.

        Returns whether the domain is new. Raises RefusedError.
        """

    def release(self, domid: int) -> None:
        """Drops the ring. Raises RefusedError(ENOENT)."""

    def is_introduced(self, domid: int) -> bool:
        """Returns whether the domain has a ring."""

    def resume(self, domid: int) -> None:
        """Forgets that the domain was shut down. Raises RefusedError(ENOENT)."""

    def set_target(self, domid: int, target: int) -> None:
        """Gives a domain its target's rights. Raises RefusedError(ENOENT)."""


class DomainRequests:
    """INTRODUCE, RELEASE, RESUME, SET_TARGET, GET_DOMAIN_PATH, IS_DOMAIN_INTRODUCED."""

    def __init__(self, core: Core, domains: Domains) -> None:
        self._core = core
        self._domains = domains

    def table(self) -> Handlers:
        """Returns the handlers by request type."""
        return {
            XsType.INTRODUCE: self._introduce,
            XsType.RELEASE: self._release,
            XsType.GET_DOMAIN_PATH: self._get_domain_path,
            XsType.IS_DOMAIN_INTRODUCED: self._is_domain_introduced,
            XsType.RESUME: self._resume,
            XsType.SET_TARGET: self._set_target,
        }

    def _introduce(self, client: Client, request: Message) -> None:
        self._core.require_privilege(client)
        strings = split_leading_strings(request.payload)
        if len(strings) < 3 or not all(text.isdigit() and len(text) <= _NUMBER_DIGITS_MAX for text in strings[1:3]):
            raise RefusedError("EINVAL")
        domid = parse_domid(strings[0])
        is_new = self._domains.introduce(domid, int(strings[1]), int(strings[2]))
        client.reply(request, ACK)
        if is_new:
            self._core.fire_special(INTRODUCE_DOMAIN, domid)

    def _release(self, client: Client, request: Message) -> None:
        domid = self._domid_of_privileged(client, request)
        self._domains.release(domid)
        self._core.forget_domain(domid)
        client.reply(request, ACK)
        self._core.fire_special(RELEASE_DOMAIN, domid)

    def _resume(self, client: Client, request: Message) -> None:
        self._domains.resume(self._domid_of_privileged(client, request))
        client.reply(request, ACK)

    def _set_target(self, client: Client, request: Message) -> None:
        self._core.require_privilege(client)
        domid, target = (parse_domid(text) for text in self._core.strings(request, 2))
        self._domains.set_target(domid, target)
        client.reply(request, ACK)

    def _get_domain_path(self, client: Client, request: Message) -> None:
        client.reply(request, home(_parse_any_domid(self._core.strings(request, 1)[0])) + b"\0")

    def _is_domain_introduced(self, client: Client, request: Message) -> None:
        self._core.require_privilege(client)
        domid = _parse_any_domid(self._core.strings(request, 1)[0])
        is_introduced = domid == DOMID_SELF or self._domains.is_introduced(domid)
        client.reply(request, b"T\0" if is_introduced else b"F\0")

    def _domid_of_privileged(self, client: Client, request: Message) -> int:
        """Returns the domain that the request is about, which cannot be domain 0."""
        self._core.require_privilege(client)
        domid = parse_domid(self._core.strings(request, 1)[0])
        if domid == 0:
            raise RefusedError("EINVAL")
        return domid


def _parse_any_domid(untrusted_text: bytes) -> int:
    """Returns a domid that need not be a real domain's. Raises RefusedError(EINVAL)."""
    if not untrusted_text.isdigit() or len(untrusted_text) > 5 or int(untrusted_text) > _U16_MAX:
        raise RefusedError("EINVAL")
    return int(untrusted_text)

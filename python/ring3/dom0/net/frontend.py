"""What a front end says of itself in xenstore. All of it is the domain's, and may be anything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ring3.dom0.net.vif import Features
from ring3.errors import GuestError
from ring3.libs.xenstore import XenstoreClient

NR_QUEUES_MAX: Final = 4
MULTICAST_REQUEST: Final = "request-multicast-control"
_U32_MAX: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """Grants of the rings and ports of one queue; one port for both rings, or two."""

    tx_ref: int
    rx_ref: int
    tx_port: int
    rx_port: int


@dataclass(frozen=True, slots=True)
class Frontend:
    """A front end that wants to be connected."""

    queues: list[QueueKeys]
    features: Features
    control: tuple[int, int] | None = None
    """Grant and port of the control ring, if it has one."""


def read_frontend(xenstore: XenstoreClient, path: str, domid: int) -> Frontend:
    """Reads the nodes at `path`. Raises GuestError with what is wrong with them."""
    reader = _Reader(xenstore, path, domid)
    if not reader.flag("request-rx-copy"):
        raise GuestError(domid, "request-rx-copy is not set: packets are delivered by copying only")
    nr_queues = reader.number("multi-queue-num-queues", 1)
    if not 1 <= nr_queues <= NR_QUEUES_MAX:
        raise GuestError(domid, f"{nr_queues} queues: there are 1 to {NR_QUEUES_MAX}")
    places = [""] if nr_queues == 1 else [f"queue-{index}/" for index in range(nr_queues)]
    scatter = reader.flag("feature-sg")
    gso_v4, gso_v6 = reader.flag("feature-gso-tcpv4"), reader.flag("feature-gso-tcpv6")
    features = Features(
        scatter=scatter,
        gso_v4=gso_v4 and scatter,
        gso_v6=gso_v6 and scatter,
        blank_v4=not reader.flag("feature-no-csum-offload"),
        blank_v6=reader.flag("feature-ipv6-csum-offload"),
        multicast_filter=reader.flag(MULTICAST_REQUEST),
    )
    control = None
    if reader.has("ctrl-ring-ref"):
        control = reader.number("ctrl-ring-ref"), reader.number("event-channel-ctrl")
    return Frontend([_queue(reader, place) for place in places], features, control)


def wants_multicast_filter(xenstore: XenstoreClient, path: str) -> bool:
    """Returns whether the front end at `path` has its filter used now. What is no number says no."""
    text = xenstore.read_optional(f"{path}/{MULTICAST_REQUEST}") or ""
    return text.isascii() and text.isdecimal() and text.strip("0") != ""


def _queue(reader: _Reader, place: str) -> QueueKeys:
    tx_ref, rx_ref = reader.number(f"{place}tx-ring-ref"), reader.number(f"{place}rx-ring-ref")
    if reader.has(f"{place}event-channel-tx"):
        tx_port = reader.number(f"{place}event-channel-tx")
        return QueueKeys(tx_ref, rx_ref, tx_port, reader.number(f"{place}event-channel-rx"))
    port = reader.number(f"{place}event-channel")
    return QueueKeys(tx_ref, rx_ref, port, port)


@dataclass(frozen=True, slots=True)
class _Reader:
    xenstore: XenstoreClient
    path: str
    domid: int

    def has(self, name: str) -> bool:
        return self.xenstore.read_optional(f"{self.path}/{name}") is not None

    def flag(self, name: str) -> bool:
        return self.number(name, 0) != 0

    def number(self, name: str, default: int | None = None) -> int:
        text = self.xenstore.read_optional(f"{self.path}/{name}")
        if text is None and default is not None:
            return default
        if text is None or not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) > _U32_MAX:
            raise GuestError(self.domid, f"{name} is {text if text is None else repr(text[:40])}")
        return int(text)

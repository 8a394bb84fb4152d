"""Connecting to a front end: what it says in xenstore, which may be anything, and its rings.

Source: xen/include/public/io/blkif.h, "Frontend XenBus Nodes" and "Multiple hardware queues/rings".
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ring3.abi.blkif import PROTOCOLS, XEN_IO_PROTO_ABI_X86_64, Protocol
from ring3.dom0.block.journal import Journal
from ring3.dom0.block.ring import BackRing, nr_slots
from ring3.dom0.block.vbd import Queue
from ring3.errors import GuestError
from ring3.libs.device import Device
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import Grants
from ring3.libs.xenstore import XenstoreClient

MAX_RING_PAGE_ORDER: Final = 4
MAX_QUEUES: Final = 4
_U32_MAX: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class QueueKeys:
    """Where a queue is: grants of its ring's pages, and the front end's port."""

    grefs: tuple[int, ...]
    port: int


@dataclass(frozen=True, slots=True)
class FrontKeys:
    """What a front end says of itself."""

    protocol_name: str
    is_persistent: bool
    queues: tuple[QueueKeys, ...]

    @property
    def protocol(self) -> Protocol:
        """How it lays its structures out."""
        return PROTOCOLS[self.protocol_name]


def read_keys(xenstore: XenstoreClient, device: Device) -> FrontKeys:
    """Reads the front end's nodes. Raises GuestError for what makes no sense."""
    values = _Values(xenstore, device)
    name = values.text("protocol") or XEN_IO_PROTO_ABI_X86_64
    if name not in PROTOCOLS:
        raise GuestError(device.domid, f"protocol is {name:.40}")
    nr_queues = values.number("multi-queue-num-queues", default=1)
    if not 1 <= nr_queues <= MAX_QUEUES:
        raise GuestError(device.domid, f"multi-queue-num-queues is {nr_queues}, of at most {MAX_QUEUES}")
    order = values.text("ring-page-order")
    if order is not None:
        nr_pages = 1 << min(values.number("ring-page-order"), 31)
    else:
        nr_pages = values.number("num-ring-pages", default=1)
    if nr_pages not in (1 << order for order in range(MAX_RING_PAGE_ORDER + 1)):
        raise GuestError(device.domid, f"the ring is of {nr_pages} pages")
    queues = []
    for queue in range(nr_queues):
        prefix = f"queue-{queue}/" if nr_queues > 1 else ""
        if nr_pages == 1 and values.text(f"{prefix}ring-ref") is not None:
            grefs: tuple[int, ...] = (values.number(f"{prefix}ring-ref"),)
        else:
            grefs = tuple(values.number(f"{prefix}ring-ref{page}") for page in range(nr_pages))
        queues.append(QueueKeys(grefs, values.number(f"{prefix}event-channel")))
    return FrontKeys(name, values.text("feature-persistent") == "1", tuple(queues))


class _Values:
    """A front end's nodes."""

    def __init__(self, xenstore: XenstoreClient, device: Device) -> None:
        self._xenstore = xenstore
        self._device = device

    def text(self, name: str) -> str | None:
        return self._xenstore.read_optional(f"{self._device.front}/{name}")

    def number(self, name: str, *, default: int | None = None) -> int:
        text = self.text(name)
        if text is None and default is not None:
            return default
        if text is None or not (text.isascii() and text.isdecimal()) or len(text) > 10 or int(text) > _U32_MAX:
            raise GuestError(self._device.domid, f"{name} is {text!r:.40}")
        return int(text)


def journal_path(directory: Path, device: Device, queue: int) -> Path:
    """Returns where a queue's journal is, while it is served or waits for a successor to serve it."""
    return directory / f"{device.domid}-{device.number}-{queue}.journal"


def open_queue(
    grants: Grants, events: EventChannels, device: Device, keys: FrontKeys, number: int, directory: Path, *, adopt: bool
) -> Queue:
    """Maps a queue's ring and binds its port. Raises GuestError, HypercallError, OSError; nothing is kept then.

    To adopt is to go on where another back end of the same ring was killed.
    """
    where = keys.queues[number]
    path = journal_path(directory, device, number)
    if not adopt:
        path.unlink(missing_ok=True)
    pages = grants.map(device.domid, where.grefs)
    journal: Journal | None = None
    try:
        nr = nr_slots(len(pages.view), keys.protocol)
        journal = Journal(path, f"{where} {keys.protocol_name}", nr, keys.protocol.slot_bytes)
        ring = BackRing(device.domid, pages.view, keys.protocol, journal)
        port = events.rebind_interdomain(device.domid, where.port)
    except BaseException:
        if journal is not None:
            journal.close(keep=False)
        pages.close()
        raise
    journal.begin()
    return Queue(ring, pages, journal, port)

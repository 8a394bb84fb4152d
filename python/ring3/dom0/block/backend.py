"""One disk's back end: its image, what xenstore says of it, and where it stands with its front end.

Source: xen/include/public/io/blkif.h, "Backend XenBus Nodes" and state diagram; io/xenbus.h;
drivers/block/xen-blkback of Linux (behaviour).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ring3.abi.blkif import VDISK_CDROM, VDISK_READONLY, VDISK_REMOVABLE, Protocol
from ring3.dom0 import xenbus
from ring3.dom0.block.connect import MAX_QUEUES, MAX_RING_PAGE_ORDER, journal_path, open_queue, read_keys
from ring3.dom0.block.direct import DirectImage
from ring3.dom0.block.grants import GrantPool
from ring3.dom0.block.image import EmptyImage, Image, RawImage
from ring3.dom0.block.nbd import NbdImage
from ring3.dom0.block.pool import Pool
from ring3.dom0.block.quick import QuickPath, RingEvents
from ring3.dom0.block.requests import MAX_INDIRECT_SEGMENTS
from ring3.dom0.block.vbd import Queue, Vbd
from ring3.dom0.keeper import Keeper
from ring3.dom0.xenbus import XenbusState
from ring3.errors import DomainError, GuestError, HypercallError, XenstoreRequestError
from ring3.libs.device import Device
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import Grants
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
KIND: Final = "vbd"
_READY: Final = (XenbusState.INITIALISED, XenbusState.CONNECTED)


@dataclass(frozen=True, slots=True)
class Place:
    """What all back ends of the service share."""

    xenstore: XenstoreClient
    grants: Grants
    events: EventChannels
    machine: memoryview
    pool: Pool
    directory: Path
    keeper: Keeper | None
    came_back: Callable[[Vbd, Queue], None]
    poller_fd: int
    """An epoll set of all that the service waits for."""
    take_ports: Callable[[Iterable[int]], None]
    """Takes events that were pending."""


class Backend:
    """A disk from the appearance of its node to its removal."""

    def __init__(self, place: Place, device: Device) -> None:
        self._place = place
        self._device = device
        self._image: Image | None = None
        self._has_failed = False
        self._is_read_only = True
        self._has_discard = False
        self._info = 0
        self.name = f"{KIND} {device.number} of domain {device.domid}"
        self.vbd: Vbd | None = None
        self.is_waiting = False
        """Whether a script has yet to make what the disk is to be; then begin() again."""
        self.is_over = False

    # -- the image

    def begin(self) -> None:
        """Opens the image and says what the disk can do; `hotplug-status` tells the toolstack how that went."""
        was_waiting = self.is_waiting
        try:
            self._image = self._open_image()
        except (OSError, EOFError) as error:
            path = self._read("physical-device-path")
            self._write("hotplug-error", f"{path}: {getattr(error, 'strerror', None) or error}")
            self._write("hotplug-status", "error")
            return
        if was_waiting and self.is_waiting:
            return
        self._is_read_only = self._read("mode") != "w"
        is_cdrom = self._read("device-type") == "cdrom"
        self._info = (
            (VDISK_CDROM if is_cdrom else 0)
            | (VDISK_READONLY if self._is_read_only else 0)
            | (VDISK_REMOVABLE if self._read("removable") == "1" else 0)
        )
        image = self._image
        if image is not None:
            self._has_discard = not self._is_read_only and image.can_discard() and self._read("discard-enable") != "0"
        features = {
            "feature-barrier": "1",
            "feature-flush-cache": "1",
            "feature-discard": str(int(self._has_discard)),
            "feature-persistent": "1",
            "feature-max-indirect-segments": str(MAX_INDIRECT_SEGMENTS),
            "max-ring-page-order": str(MAX_RING_PAGE_ORDER),
            "max-ring-pages": str(1 << MAX_RING_PAGE_ORDER),
            "multi-queue-max-queues": str(MAX_QUEUES),
        }
        if self._has_discard:
            features |= {"discard-granularity": "4096", "discard-alignment": "0", "discard-secure": "0"}
        for name, value in features.items():
            self._write(name, value)
        if not self.is_waiting and self._read("hotplug-status") != "connected":
            self._write("hotplug-status", "connected")

    def _open_image(self) -> Image | None:
        self.is_waiting = False
        if self._read("type") == "qdisk":
            path = self._place.directory / f"{self._device.domid}-{self._device.number}.nbd"
            return NbdImage(path)
        keeper = self._place.keeper
        fds = keeper.take(self._device.name) if keeper is not None else []
        if len(fds) > 1:
            return DirectImage(fds[0], fds[1])
        if fds:
            if self._read("direct-io-safe") == "1":
                _log.info("%s: the image cannot be opened with O_DIRECT: the host's page cache is used", self.name)
            return RawImage(fds[0])
        self.is_waiting = bool(self._read("script"))
        if self._read("params") and not self.is_waiting:
            raise OSError("the toolstack has not opened the image")
        return None if self.is_waiting else EmptyImage()

    # -- states

    def next_step(self) -> str | None:
        """Returns whether it is time to "connect", to "disconnect", or for neither."""
        front = self._front_state()
        if front in _READY:
            if self.vbd is not None or self._image is None or self._has_failed:
                return None
            # Asked to close, and has not yet: it may wait for answers before it does.
            return "connect" if self._is_online() or self._was_served() else None
        self._has_failed = False
        return "disconnect"

    def show_state(self, *, is_served: bool) -> None:
        """Sets our state by the front end's."""
        front = self._front_state()
        if not is_served:
            self._switch(XenbusState.CLOSED)
            self.is_over = True
        elif self.vbd is not None:
            if self._is_online():
                self._switch(XenbusState.CONNECTED)
        elif self._has_failed or front is XenbusState.CLOSING:
            self._switch(XenbusState.CLOSING)
        elif not self._is_online():
            self._switch(XenbusState.CLOSED)
            self.is_over = True
        elif front is XenbusState.CLOSED:
            self._switch(XenbusState.CLOSED)
        else:
            self._switch(XenbusState.INIT_WAIT)

    def fail(self, reason: str) -> None:
        """Tells the front end that there will be no more."""
        self._has_failed = True
        self._write(self._device.error, reason)
        self._switch(XenbusState.CLOSING)

    def _front_state(self) -> XenbusState | None:
        return xenbus.read_state(self._place.xenstore, self._device.front)

    def _is_online(self) -> bool:
        return self._read("online") != "0"

    def _was_served(self) -> bool:
        """Returns whether somebody has served this very ring before us."""
        state = xenbus.read_state(self._place.xenstore, self._device.back)
        if state is XenbusState.CLOSING:
            return journal_path(self._place.directory, self._device, 0).exists()
        return state is XenbusState.CONNECTED

    def _switch(self, state: XenbusState) -> None:
        xenbus.switch_state(self._place.xenstore, self._device, state)

    # -- connecting

    def connect(self) -> Vbd | None:
        """Connects to the front end; None, with a failed device, if what it says makes no sense."""
        place, device, image = self._place, self._device, self._image
        if image is None:
            return None
        adopt = self._was_served()
        queues: list[Queue] = []
        try:
            keys = read_keys(place.xenstore, device)
            for number in range(len(keys.queues)):
                queues.append(
                    open_queue(place.grants, place.events, device, keys, number, place.directory, adopt=adopt)
                )
        except (GuestError, HypercallError, DomainError, OSError) as error:
            _log.warning("%s: %s", self.name, error)
            for queue in queues:
                self._close_port(queue.port)
                queue.ring.release()
                queue.pages.close()
                queue.journal.close(keep=False)
            self.fail(str(error))
            return None
        nr_sectors = image.nr_sectors()
        grants = GrantPool(place.grants, device.domid, place.machine, is_persistent=keys.is_persistent)
        if isinstance(image, RawImage) and image.is_cached and keys.is_persistent:
            for queue in queues:
                self._open_quick_path(queue, image, keys.protocol, grants)
        vbd = self.vbd = Vbd(
            self.name,
            image,
            nr_sectors,
            keys.protocol,
            grants,
            place.machine,
            place.pool,
            came_back=lambda queue: place.came_back(vbd, queue),
            is_read_only=self._is_read_only,
            has_discard=self._has_discard,
        )
        vbd.queues += queues

        def write_properties(tx_id: int) -> None:
            values = {
                "sectors": nr_sectors,  # of 512 bytes, whatever sector-size is
                "info": self._info,
                "sector-size": image.logical_sector_bytes(),
                "physical-sector-size": image.physical_sector_bytes(),
            }
            for name, value in values.items():
                place.xenstore.write(f"{device.back}/{name}", str(value), tx_id=tx_id)

        place.xenstore.transaction(write_properties)
        _log.info("%s: connected, %d sectors, %d queues%s", self.name, nr_sectors, len(queues), ", adopted" * adopt)
        return vbd

    def _open_quick_path(self, queue: Queue, image: RawImage, protocol: Protocol, grants: GrantPool) -> None:
        place = self._place
        events = place.events
        notice = events.socket_fd, events.packet(queue.port), events.packet(queue.port, may_wait=True)
        wakes = RingEvents(
            *(events.shared_info_map, events.bells_at, events.fileno(), place.poller_fd, queue.port), place.take_ports
        )
        try:
            queue.quick = QuickPath(place.machine, queue.pages.view, queue.journal, protocol, image, notice, wakes)
        except OSError as error:  # no descriptors left: it does without
            _log.warning("%s: no quick path: %s", self.name, error)
            return
        grants.listeners.append(queue.quick.hold)

    def disconnect(self) -> None:
        """Lets go of the front end's rings and pages. No thread may use them any more."""
        if self.vbd is not None:
            for port in self.vbd.close(keep_journals=False):
                self._close_port(port)
            self.vbd = None

    def check_size(self) -> None:
        """Tells the front end if the image has changed its size: by our state, written again."""
        vbd, image = self.vbd, self._image
        if vbd is None or image is None:
            return
        nr_sectors = image.nr_sectors()
        if nr_sectors == vbd.nr_sectors:
            return
        _log.info("%s: %d sectors instead of %d", self.name, nr_sectors, vbd.nr_sectors)
        vbd.nr_sectors = nr_sectors

        def write(tx_id: int) -> None:
            xenstore, back = self._place.xenstore, self._device.back
            xenstore.write(f"{back}/sectors", str(nr_sectors), tx_id=tx_id)
            xenstore.write(f"{back}/state", str(int(XenbusState.CONNECTED)), tx_id=tx_id)

        self._place.xenstore.transaction(write)

    def end(self) -> None:
        """Lets go of everything, the image too."""
        self.disconnect()
        if self._image is not None:
            self._image.close()
            self._image = None

    def _close_port(self, port: int) -> None:
        try:
            self._place.events.close(port)
        except (HypercallError, DomainError) as error:
            _log.info("%s: port %d: %s", self.name, port, error)

    # -- our node

    def _read(self, name: str) -> str:
        return self._place.xenstore.read_optional(f"{self._device.back}/{name}") or ""

    def _write(self, name: str, value: str) -> None:
        """Writes below our node, if that is still there; an absolute path as it is."""
        xenstore, back = self._place.xenstore, self._device.back

        def write(tx_id: int) -> None:
            if xenstore.read_optional(f"{back}/state", tx_id=tx_id) is not None:
                xenstore.write(name if name.startswith("/") else f"{back}/{name}", value, tx_id=tx_id)

        try:
            xenstore.transaction(write)
        except XenstoreRequestError as error:
            _log.warning("%s: %s", self.name, error)

"""The states of network devices: which vifs there are, and which front ends they are connected to.

Source: xen/include/public/io/netif.h and io/xenbus.h; the order of states is that of Linux' front end.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from ring3.dom0 import xenbus
from ring3.dom0.net.area import Areas
from ring3.dom0.net.control import ControlRing
from ring3.dom0.net.credit import Credit
from ring3.dom0.net.frontend import (
    MULTICAST_REQUEST,
    NR_QUEUES_MAX,
    QueueKeys,
    read_frontend,
    wants_multicast_filter,
)
from ring3.dom0.net.hashing import Hashing
from ring3.dom0.net.ip_guard import IpGuard
from ring3.dom0.net.kept import Kept
from ring3.dom0.net.networks import Networks
from ring3.dom0.net.rx import RxQueue
from ring3.dom0.net.tx import TxQueue
from ring3.dom0.net.vif import Control, Features, Queue, Vif
from ring3.dom0.xenbus import XenbusState
from ring3.errors import DomainError, Error, GrantError, GuestError, HypercallError, XenstoreRequestError
from ring3.libs.device import Device, back_directory
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import GrantMapping, Grants
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
KIND: Final = "vif"
TOKEN: Final = "vif"
_FEATURES: Final = {
    "feature-sg": "1",
    "feature-gso-tcpv4": "1",
    "feature-gso-tcpv6": "1",
    "feature-ipv6-csum-offload": "1",
    "feature-rx-copy": "1",
    "feature-rx-flip": "0",
    "feature-multicast-control": "1",
    "feature-dynamic-multicast-control": "1",
    "feature-split-event-channels": "1",
    "feature-ctrl-ring": "1",
    "multi-queue-max-queues": str(NR_QUEUES_MAX),
}
_WATCHED: Final = ("state", MULTICAST_REQUEST)
"""Nodes of the front end."""


class Ports(Protocol):
    """Who is told what a port wakes."""

    def add_port(self, port: int, wake: Callable[[], None]) -> None: ...
    def remove_port(self, port: int) -> None: ...


class NetDevices:
    """Follows the devices. One that breaks the protocol is served no more, until its front end connects anew."""

    def __init__(
        self,
        xenstore: XenstoreClient,
        grants: Grants,
        events: EventChannels,
        areas: Areas,
        directory: Path,
        networks: Networks,
        ports: Ports,
        vifs: list[Vif],
    ) -> None:
        """`vifs` gets those that are connected."""
        self._xenstore = xenstore
        self._grants = grants
        self._events = events
        self._areas = areas
        self._directory = directory
        self._networks = networks
        self._ports = ports
        self._connected = vifs
        self._known: dict[Device, Vif | None] = {}
        """None: one that could not be set up."""
        self._waiting: set[Device] = set()
        """Those whose network is not there yet."""

    @property
    def has_waiting(self) -> bool:
        """Whether some network is not there yet."""
        return bool(self._waiting)

    def begin(self) -> None:
        """Looks for devices from now on; goes on with those that a predecessor served."""
        self._xenstore.watch(back_directory(KIND), TOKEN)
        for device in xenbus.devices(self._xenstore, KIND):
            self._look(device)

    def take(self, path: str) -> None:
        """Looks at what an event of ours is about."""
        device = Device.from_path(path)
        if device is not None:
            if device.kind == KIND:
                self._look(device)
                self._take_setting(device, path.rpartition("/")[2])
            return
        for found in {*self._known, *xenbus.devices(self._xenstore, KIND)}:
            self._look(found)

    def _take_setting(self, device: Device, name: str) -> None:
        """Takes over what may be changed while a front end is connected."""
        vif = self._known.get(device)
        if vif is None:
            return
        if name == "rate":
            vif.credit = Credit.parse(self._xenstore.read_optional(f"{device.back}/rate") or "")
        elif name == MULTICAST_REQUEST and vif.queues:
            has_filter = wants_multicast_filter(self._xenstore, device.front)
            vif.features = replace(vif.features, multicast_filter=has_filter)

    def look_for_gone_domains(self) -> None:
        """Lets go of devices of domains that are no more."""
        for device in list(self._known):
            if not self._xenstore.is_introduced(device.domid):
                self._look(device)

    def look_for_networks(self) -> None:
        """Says of those whose network has come that they are ready."""
        for device in list(self._waiting):
            vif = self._known.get(device)
            if vif is None or self._networks.is_ready(vif):
                self._waiting.discard(device)
                if vif is not None:
                    self._set_hotplug(device, "connected")
                    self._look(device)

    def _look(self, device: Device) -> None:
        state = xenbus.read_state(self._xenstore, device.back)
        if state is None or not self._xenstore.is_introduced(device.domid):
            self._forget(device)
            return
        if device not in self._known:
            self._set_up(device)
        vif = self._known[device]
        if vif is None:
            return
        front = xenbus.read_state(self._xenstore, device.front)
        is_online = self._xenstore.read_optional(f"{device.back}/online") != "0"
        match front:
            case XenbusState.CONNECTED if is_online:
                # One that was broken off goes through Closed first: else it would be taken back at once.
                if not vif.queues and device not in self._waiting and state is not XenbusState.CLOSING:
                    self._connect(device, vif)
            case XenbusState.INITIALISING | XenbusState.UNKNOWN if is_online:
                self.disconnect(vif)
                if device not in self._waiting:
                    xenbus.switch_state(self._xenstore, device, XenbusState.INIT_WAIT)
            case XenbusState.INITIALISED if is_online:
                pass
            case XenbusState.CLOSING | XenbusState.CONNECTED | XenbusState.INITIALISING | XenbusState.INITIALISED:
                self.disconnect(vif)
                xenbus.switch_state(self._xenstore, device, XenbusState.CLOSING)
            case _:
                self.disconnect(vif)
                xenbus.switch_state(self._xenstore, device, XenbusState.CLOSED)

    def _set_up(self, device: Device) -> None:
        self._known[device] = None
        for name in _WATCHED:
            self._xenstore.watch(f"{device.front}/{name}", TOKEN)
        try:
            vif = self._make(device)
        except (Error, OSError, ValueError) as error:
            _log.warning("vif%d.%d: %s", device.domid, device.number, error)
            self._set_hotplug(device, "error", str(error))
            return
        self._known[device] = vif
        for name, value in _FEATURES.items():
            self._write(f"{device.back}/{name}", value)
        self._waiting.add(device)
        self.look_for_networks()

    def _make(self, device: Device) -> Vif:
        read = self._xenstore.read_optional
        mac = bytes.fromhex((read(f"{device.back}/mac") or "").replace(":", ""))
        if len(mac) != 6 or mac[0] & 1:
            raise Error("its node `mac` is no address of a device")
        kept = Kept(self._directory / f"{device.domid}-{device.number}.orders")
        vif = Vif(device, mac, self._networks.none, self._areas.take(), kept)
        vif.is_guarded = read(f"{device.back}/antispoof") != "0"
        vif.ip_guard = IpGuard.parse(read(f"{device.back}/ip") or "")
        vif.credit = Credit.parse(read(f"{device.back}/rate") or "")
        try:
            self._networks.join(vif, read(f"{device.back}/network") or "")
        except BaseException:
            self._areas.give(vif.area)
            raise
        return vif

    # -- connecting

    def _connect(self, device: Device, vif: Vif) -> None:
        # Ours is Connected only if somebody has served these very rings before us.
        goes_on = xenbus.read_state(self._xenstore, device.back) is XenbusState.CONNECTED
        try:
            frontend = read_frontend(self._xenstore, device.front, device.domid)
            if goes_on:
                vif.hashing, vif.multicast = vif.kept.load()
            else:
                vif.kept.clear()
            for keys in frontend.queues:
                self._open(vif, keys, goes_on=goes_on)
            if frontend.control is not None:
                self._open_control(vif, *frontend.control)
        except (GuestError, GrantError, HypercallError, DomainError) as error:
            self.disconnect(vif)
            self._report(device, str(error))
            xenbus.switch_state(self._xenstore, device, XenbusState.CLOSING)
            return
        vif.features = frontend.features
        self._connected.append(vif)
        xenbus.switch_state(self._xenstore, device, XenbusState.CONNECTED)
        _log.info("%s is connected: %d queues, %s", vif.name, len(vif.queues), vif.features)

    def _open(self, vif: Vif, keys: QueueKeys, *, goes_on: bool) -> None:
        domid = vif.device.domid
        pages: list[GrantMapping] = []
        ports: list[int] = []
        try:
            for ref in (keys.tx_ref, keys.rx_ref):  # one by one: the second may not be there
                pages.append(self._grants.map(domid, [ref]))
            tx, rx = TxQueue(pages[0].view, domid, vif.multicast), RxQueue(pages[1].view, domid, vif.hashing)
            if goes_on:
                tx.give_up()
                rx.give_up()
            for remote in dict.fromkeys((keys.tx_port, keys.rx_port)):
                ports.append(self._events.rebind_interdomain(domid, remote))
        except BaseException:
            for port in ports:
                self._events.close(port)
            for page in pages:
                page.close()
            raise
        queue = Queue(tx, rx, ports[0], ports[-1], pages)
        queue.must_notify_tx = queue.must_notify_rx = goes_on
        vif.queues.append(queue)
        for port in ports:
            self._ports.add_port(port, queue.wake)

    def _open_control(self, vif: Vif, ref: int, remote: int) -> None:
        domid = vif.device.domid

        def fetch(gref: int, nr_bytes: int) -> bytes | None:
            try:
                with self._grants.map(domid, [gref], writable=False) as granted:
                    return bytes(granted.view[:nr_bytes])
            except GrantError:
                return None

        page = self._grants.map(domid, [ref])
        try:
            ring = ControlRing(page.view, domid, vif.hashing, len(vif.queues), fetch)
            port = self._events.rebind_interdomain(domid, remote)
        except BaseException:
            page.close()
            raise
        vif.control = Control(ring, port, page)
        self._ports.add_port(port, vif.control.wake)

    def disconnect(self, vif: Vif) -> None:
        """Lets go of a front end's rings and ports, and of what it ordered by them."""
        if vif in self._connected:
            self._connected.remove(vif)
        queues, vif.queues = vif.queues, []
        for queue in queues:
            queue.rx.drop_all()
            for flight in queue.tx.in_flight:
                if flight.packet is not None:
                    flight.packet.is_dead = not flight.packet.views
            for port in {queue.tx_port, queue.rx_port}:
                self._ports.remove_port(port)
                with contextlib.suppress(HypercallError, DomainError):
                    self._events.close(port)
            queue.tx.ring.release()
            queue.rx.ring.release()
            for page in queue.pages:
                page.close()
        self._close_control(vif)
        for packet in vif.unfit:
            packet.drop_user()
        vif.unfit.clear()
        vif.features, vif.hashing, vif.multicast = Features(), Hashing(), set()
        vif.kept.clear()

    def _close_control(self, vif: Vif) -> None:
        control, vif.control = vif.control, None
        if control is None:
            return
        self._ports.remove_port(control.port)
        with contextlib.suppress(HypercallError, DomainError):
            self._events.close(control.port)
        control.ring.ring.release()
        control.page.close()

    def break_off(self, vif: Vif, reason: str) -> None:
        """Serves a front end no more that has broken the protocol: it may connect anew."""
        self.disconnect(vif)
        self._report(vif.device, reason)
        xenbus.switch_state(self._xenstore, vif.device, XenbusState.CLOSING)

    def _forget(self, device: Device) -> None:
        if device not in self._known:
            return
        vif = self._known.pop(device)
        self._waiting.discard(device)
        for name in _WATCHED:
            with contextlib.suppress(XenstoreRequestError):
                self._xenstore.unwatch(f"{device.front}/{name}", TOKEN)
        if vif is not None:
            self.disconnect(vif)
            self._networks.leave(vif)
            self._areas.give(vif.area)
        xenbus.switch_state(self._xenstore, device, XenbusState.CLOSED)

    def _report(self, device: Device, text: str) -> None:
        _log.warning("vif%d.%d: %s", device.domid, device.number, text)
        with contextlib.suppress(XenstoreRequestError):
            self._xenstore.write(device.error, text)

    def _set_hotplug(self, device: Device, status: str, reason: str = "") -> None:
        if reason:
            self._write(f"{device.back}/hotplug-error", reason)
        self._write(f"{device.back}/hotplug-status", status)

    def _write(self, path: str, value: str) -> None:
        """Writes a node of a device, unless that has gone."""
        parent = path.rpartition("/")[0]

        def write(tx_id: int) -> None:
            if self._xenstore.read_optional(f"{parent}/state", tx_id=tx_id) is not None:
                self._xenstore.write(path, value, tx_id=tx_id)

        self._xenstore.transaction(write)

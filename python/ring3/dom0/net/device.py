"""The states of network devices: which vifs there are, and which front ends they are connected to.

Source: xen/include/public/io/netif.h and io/xenbus.h; the order of states is that of Linux' front end.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Final, Protocol

from ring3.dom0 import xenbus
from ring3.dom0.net.area import Areas
from ring3.dom0.net.credit import Credit
from ring3.dom0.net.frontend import NR_QUEUES_MAX, QueueKeys, read_frontend
from ring3.dom0.net.ip_guard import IpGuard
from ring3.dom0.net.networks import Networks
from ring3.dom0.net.rx import RxQueue
from ring3.dom0.net.tx import TxQueue
from ring3.dom0.net.vif import Features, Queue, Vif
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
    "feature-split-event-channels": "1",
    "feature-ctrl-ring": "0",
    "multi-queue-max-queues": str(NR_QUEUES_MAX),
}


class Ports(Protocol):
    """Who is told which queue a port belongs to."""

    def add_port(self, port: int, vif: Vif, queue: Queue) -> None: ...
    def remove_port(self, port: int) -> None: ...


class NetDevices:
    """Follows the devices. One that breaks the protocol is served no more, until its front end connects anew."""

    def __init__(
        self,
        xenstore: XenstoreClient,
        grants: Grants,
        events: EventChannels,
        areas: Areas,
        networks: Networks,
        ports: Ports,
        vifs: list[Vif],
    ) -> None:
        """`vifs` gets those that are connected."""
        self._xenstore = xenstore
        self._grants = grants
        self._events = events
        self._areas = areas
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
            return
        for found in {*self._known, *xenbus.devices(self._xenstore, KIND)}:
            self._look(found)

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
        self._xenstore.watch(f"{device.front}/state", TOKEN)
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
        vif = Vif(device, mac, self._networks.none, self._areas.take())
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
            for keys in frontend.queues:
                self._open(vif, keys, goes_on=goes_on)
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
            tx, rx = TxQueue(pages[0].view, domid), RxQueue(pages[1].view, domid)
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
            self._ports.add_port(port, vif, queue)

    def disconnect(self, vif: Vif) -> None:
        """Lets go of a front end's rings and ports."""
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
        for packet in vif.unfit:
            packet.drop_user()
        vif.unfit.clear()
        vif.multicast.clear()
        vif.features = Features()

    def break_off(self, vif: Vif, reason: str) -> None:
        """Serves a front end no more that has broken the protocol: it may connect anew."""
        self.disconnect(vif)
        self._report(vif.device, reason)
        xenbus.switch_state(self._xenstore, vif.device, XenbusState.CLOSING)

    def close_all(self) -> None:
        """Lets go of everything, and leaves the states as they are: a successor goes on."""
        for vif in [vif for vif in self._known.values() if vif is not None]:
            self.disconnect(vif)

    def _forget(self, device: Device) -> None:
        if device not in self._known:
            return
        vif = self._known.pop(device)
        self._waiting.discard(device)
        with contextlib.suppress(XenstoreRequestError):
            self._xenstore.unwatch(f"{device.front}/state", TOKEN)
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

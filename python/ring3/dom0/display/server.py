"""displayd's loop: which displays there are, their devices' states, and bytes whenever there are some."""

from __future__ import annotations

import logging
import select
import socket
from pathlib import Path
from typing import Final

from ring3.abi.fbif import Geometry
from ring3.dom0 import xenbus
from ring3.dom0.display.screen import Hypervisor, Screen
from ring3.dom0.keeper import Keeper
from ring3.dom0.poller import Poller
from ring3.dom0.xenbus import XenbusState
from ring3.errors import ConnectionLostError, DomainError, GuestError, HypercallError
from ring3.libs.connection import Connection
from ring3.libs.device import Device, back_directory
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import Grants
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
KINDS: Final = ("vfb", "vkbd")
_FEATURES: Final = {
    "vfb": {"request-update": "1", "feature-resize": "1"},
    "vkbd": {"feature-abs-pointer": "1"},
}
_MAX: Final = {"page-ref": (1 << 52) - 1, "page-gref": 0xFFFFFFFF, "event-channel": 0xFFFFFFFF}


class Server:
    """The displays, by domain. Readable `stop_fd` ends run()."""

    def __init__(self, conn: Connection, xenstore: XenstoreClient, stop_fd: int, keeper: Keeper | None) -> None:
        self._xenstore = xenstore
        self._keeper = keeper
        self._hypervisor = Hypervisor(conn, EventChannels(conn), Grants(conn))
        self._poller = Poller()
        self._screens: dict[int, Screen] = {}
        self._known: set[Device] = set()
        self._is_stopped = False
        self._poller.watch(stop_fd, select.EPOLLIN, self._stop)
        self._poller.watch(xenstore.fileno(), select.EPOLLIN, lambda _events: None)  # taken at the next turn
        self._poller.watch(self._hypervisor.events.fileno(), select.EPOLLIN, lambda _events: None)

    def run(self) -> None:
        """Serves until told to stop. Raises ConnectionLostError."""
        for kind in KINDS:
            self._xenstore.watch(back_directory(kind), "display")
        while not self._is_stopped:
            while events := list(self._xenstore.events()):
                for path in dict.fromkeys(path for path, _token in events):
                    self._take(path)
            self._hypervisor.events.pending()
            for screen in list(self._screens.values()):
                self._serve(screen)
            self._poller.wait(None)

    def close(self) -> None:
        """Lets go of everything."""
        for screen in self._screens.values():
            screen.close()
        self._poller.close()

    def _stop(self, _events: int) -> None:
        self._is_stopped = True

    def _serve(self, screen: Screen) -> None:
        device = Device("vfb", screen.domid, 0)
        try:
            screen.take_events()
            screen.show()
        except (GuestError, DomainError, HypercallError) as error:
            self._give_up(screen, device, error)
        screen.flush_keyboard()
        if screen.new_geometry is not None:
            found = screen.new_geometry
            text = f"{found.width} {found.height} {found.stride} {found.depth} {found.offset}"
            self._xenstore.write(f"{device.back}/geometry", text)
            screen.new_geometry = None

    def _give_up(self, screen: Screen, device: Device, error: Exception) -> None:
        _log.warning("%s of domain %d: %s", device.kind, device.domid, error)
        screen.disconnect(device)
        xenbus.switch_state(self._xenstore, device, XenbusState.CLOSING)

    # -- devices

    def _take(self, path: str) -> None:
        device = Device.from_path(path)
        found = [device] if device is not None else [each for kind in KINDS for each in self._all(kind)]
        for each in found:
            if each.number == 0:
                self._look(each)

    def _all(self, kind: str) -> set[Device]:
        return {device for device in self._known if device.kind == kind} | set(xenbus.devices(self._xenstore, kind))

    def _look(self, device: Device) -> None:
        xenstore = self._xenstore
        state = xenbus.read_state(xenstore, device.back)
        if state is None:
            self._forget(device)
            return
        if device not in self._known:
            self._known.add(device)
            self._begin(device)
            xenstore.watch(f"{device.front}/state", "display")
        screen = self._screens[device.domid]
        is_online = xenstore.read_optional(f"{device.back}/online") != "0"
        match xenbus.read_state(xenstore, device.front):
            case XenbusState.INITIALISED | XenbusState.CONNECTED if is_online:
                # One that was given up goes through Closed first: else it would be taken back at once.
                if not screen.is_connected(device) and state is not XenbusState.CLOSING:
                    self._connect(screen, device)
            case XenbusState.INITIALISING | XenbusState.UNKNOWN if is_online:
                screen.disconnect(device)
                xenbus.switch_state(xenstore, device, XenbusState.INIT_WAIT)
            case XenbusState.CLOSING:
                # A Linux that shuts down waits five seconds for this very state.
                screen.disconnect(device)
                xenbus.switch_state(xenstore, device, XenbusState.CLOSING)
            case _:
                screen.disconnect(device)
                xenbus.switch_state(xenstore, device, XenbusState.CLOSED)

    def _begin(self, device: Device) -> None:
        xenstore = self._xenstore
        screen = self._screens.get(device.domid)
        if screen is None:
            name = xenstore.read_optional(f"/local/domain/{device.domid}/name") or f"domain {device.domid}"
            screen = Screen(self._hypervisor, self._poller, device.domid, name)
            self._screens[device.domid] = screen
        if device.kind == "vfb":
            name = xenstore.read_optional(f"{device.back}/keymap") or "en-us"
            try:
                screen.keyboard.set_keymap(name)
            except KeyError:
                _log.warning("vfb of domain %d: no keymap %s is known: it is en-us", device.domid, name)
            screen.password = (xenstore.read_optional(f"{device.back}/vncpasswd") or "").encode()
            fds = self._keeper.take(f"vfb/{device.domid}/{device.number}") if self._keeper is not None else []
            for fd in fds[:1]:
                listener = socket.socket(fileno=fd)
                screen.listen(listener)
                port = str(listener.getsockname()[1])
                xenstore.write(f"/local/domain/{device.domid}/console/vnc-port", port)
        for name, value in {**_FEATURES[device.kind], "hotplug-status": "connected"}.items():
            xenstore.write(f"{device.back}/{name}", value)

    def _connect(self, screen: Screen, device: Device) -> None:
        try:
            port = self._number(device, "event-channel")
            if device.kind == "vfb":
                protocol = self._xenstore.read_optional(f"{device.front}/protocol")
                if protocol not in (None, "x86_64-abi"):
                    raise ValueError(f"protocol {protocol!r}: pages of 64-bit front ends are understood")
                screen.connect_framebuffer(self._number(device, "page-ref"), port, self._geometry(device))
            else:
                is_absolute = self._xenstore.read_optional(f"{device.front}/request-abs-pointer") == "1"
                screen.connect_keyboard(self._number(device, "page-gref"), port, is_absolute=is_absolute)
        except (GuestError, HypercallError, DomainError, ValueError) as error:
            self._give_up(screen, device, error)
            return
        xenbus.switch_state(self._xenstore, device, XenbusState.CONNECTED)

    def _number(self, device: Device, name: str) -> int:
        text = self._xenstore.read_optional(f"{device.front}/{name}") or ""
        if not text.isdecimal() or len(text) > 16 or int(text) > _MAX[name]:
            raise ValueError(f"{name} is {text[:40]!r}")
        return int(text)

    def _geometry(self, device: Device) -> Geometry | None:
        """Returns what a predecessor was told, if this connection is the one that it served."""
        if xenbus.read_state(self._xenstore, device.back) is not XenbusState.CONNECTED:
            return None
        text = self._xenstore.read_optional(f"{device.back}/geometry")
        return Geometry(*map(int, text.split())) if text else None

    def _forget(self, device: Device) -> None:
        if device not in self._known:
            return
        self._known.discard(device)
        self._xenstore.unwatch(f"{device.front}/state", "display")
        screen = self._screens[device.domid]
        screen.disconnect(device)
        if not any(known.domid == device.domid for known in self._known):
            screen.close()
            del self._screens[device.domid]


def serve(place: Path, stop_fd: int, keeper: Keeper | None) -> None:
    """Connects to hypervisor and xenstored and runs the daemon. Raises ConnectionLostError, HypercallError."""
    with Connection.connect(place / "control") as conn, XenstoreClient.connect(place / "xenstore") as xenstore:
        server = Server(conn, xenstore, stop_fd, keeper)
        try:
            server.run()
        except ConnectionLostError as error:
            _log.info("displayd: %s", error)
        finally:
            server.close()

"""One domain's display: its two back ends, and the VNC clients that look at it."""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from dataclasses import dataclass, field
from typing import Final

from ring3.abi import fbif
from ring3.abi.fbif import Geometry, Update
from ring3.dom0.display.keyboard import Keyboard
from ring3.dom0.display.rfb import KeyEvent
from ring3.dom0.display.viewer import Viewer
from ring3.dom0.poller import Poller
from ring3.errors import DomainError, GuestError, HypercallError, RingError
from ring3.libs.connection import Connection
from ring3.libs.device import Device
from ring3.libs.evtchn import EventChannels
from ring3.libs.framebuffer import Framebuffer
from ring3.libs.gnttab import Grants

_log = logging.getLogger(__name__)
WIDTH, HEIGHT = 800, 600
"""Of the picture before the front end has said: its default."""
NR_VIEWERS_MAX: Final = 16


@dataclass(frozen=True, slots=True)
class Hypervisor:
    """What screens reach domains by."""

    conn: Connection
    events: EventChannels
    grants: Grants

    def bind(self, domid: int, port: int) -> int:
        """Binds a domain's port. Raises HypercallError."""
        return self.events.rebind_interdomain(domid, port)


@dataclass(slots=True)
class Screen:
    """A display. `ports` are ours, by the kind of device."""

    hypervisor: Hypervisor
    poller: Poller
    domid: int
    name: str
    password: bytes = b""
    listener: socket.socket | None = None
    framebuffer: Framebuffer | None = None
    keyboard: Keyboard = field(default_factory=Keyboard)
    ports: dict[str, int] = field(default_factory=dict)
    viewers: list[Viewer] = field(default_factory=list)
    new_geometry: Geometry | None = None
    """The front end has set it; to be written down for a successor."""

    def listen(self, listener: socket.socket) -> None:
        """Lets VNC clients in."""
        if self.listener is None:
            listener.setblocking(False)
            self.listener = listener
            self.poller.watch(listener.fileno(), select.EPOLLIN, lambda _events: self._accept())

    # -- the front ends

    def connect_framebuffer(self, mfn: int, port: int, geometry: Geometry | None) -> None:
        """Raises GuestError, HypercallError."""
        framebuffer = Framebuffer(self.hypervisor.conn, self.domid, mfn)
        if geometry is not None:
            framebuffer.set_geometry(geometry)
        self.ports["vfb"] = self.hypervisor.bind(self.domid, port)
        self.framebuffer = framebuffer
        self._touch_all()

    def connect_keyboard(self, gref: int, port: int, *, is_absolute: bool) -> None:
        """Raises GuestError, HypercallError."""
        page = self.hypervisor.grants.map(self.domid, [gref])
        try:
            self.ports["vkbd"] = self.hypervisor.bind(self.domid, port)
        except BaseException:
            page.close()
            raise
        self.keyboard.connect(page, is_absolute=is_absolute)
        self._notify("vkbd")  # a predecessor may have ended between a key and the event that tells of it

    def is_connected(self, device: Device) -> bool:
        """Whether a device of ours is in use."""
        return device.kind in self.ports

    def disconnect(self, device: Device) -> None:
        """Lets go of a device, if it is in use."""
        if device.kind == "vfb":
            if self.framebuffer is not None:
                self.framebuffer.close()
            self.framebuffer = None
        else:
            self.keyboard.disconnect()
        port = self.ports.pop(device.kind, None)
        if port is not None:
            with contextlib.suppress(HypercallError, DomainError):
                self.hypervisor.events.close(port)

    def take_events(self) -> None:
        """Looks what the framebuffer's front end says. Raises GuestError."""
        if self.framebuffer is None:
            return
        raw = self.framebuffer.raw_page()
        page = fbif.FramebufferPage.parse(raw)
        if page.out_prod == page.out_cons:
            return
        if page.out_prod - page.out_cons & 0xFFFFFFFF > fbif.OUT_LENGTH:
            raise RingError(self.domid, f"vfb: {page.out_prod:#x} is too far from {page.out_cons:#x}")
        for event in fbif.out_events(raw, page.out_cons, page.out_prod):
            if isinstance(event, Update):
                for viewer in self.viewers:
                    viewer.touch(event)
            else:
                self.framebuffer.set_geometry(event)
                self.new_geometry = event
                self._touch_all()
        self.framebuffer.set_out_cons(page.out_prod)
        self._notify("vfb")

    # -- the clients

    def show(self) -> None:
        """Sends clients what they want. Raises GuestError."""
        for viewer in list(self.viewers):
            self._finish(viewer, is_alive=viewer.show(self.framebuffer))

    def close(self) -> None:
        """Ends the display."""
        for viewer in list(self.viewers):
            self._finish(viewer, is_alive=False)
        if self.listener is not None:
            self.poller.forget(self.listener.fileno())
            self.listener.close()
        for kind in ("vfb", "vkbd"):
            self.disconnect(Device(kind, self.domid, 0))

    def _accept(self) -> None:
        if self.listener is None:
            return
        try:
            sock, _address = self.listener.accept()
        except OSError:
            return
        if len(self.viewers) >= NR_VIEWERS_MAX:
            sock.close()
            return
        geometry = self.framebuffer.geometry if self.framebuffer is not None else None
        width, height = (geometry.width, geometry.height) if geometry is not None else (WIDTH, HEIGHT)
        viewer = Viewer(sock, width, height, self.name, self.password)
        self.viewers.append(viewer)
        self._finish(viewer, is_alive=viewer.flush())

    def _receive(self, viewer: Viewer, events: int) -> None:
        if viewer not in self.viewers:
            return
        typed = viewer.receive() if events & ~select.EPOLLOUT else []
        for event in typed or []:
            if isinstance(event, KeyEvent):
                if event.scancode:
                    self.keyboard.scan(event.scancode, is_pressed=event.is_pressed)
                else:
                    self.keyboard.type(event.keysym, is_pressed=event.is_pressed)
            else:
                self.keyboard.point(event.x, event.y, event.buttons)
        self.flush_keyboard()
        self._finish(viewer, is_alive=typed is not None and viewer.flush())

    def flush_keyboard(self) -> None:
        """Hands the front end what was typed; one that breaks the protocol gets no more."""
        try:
            if self.keyboard.flush(self.domid):
                self._notify("vkbd")
        except GuestError as error:
            _log.warning("%s", error)
            self.disconnect(Device("vkbd", self.domid, 0))

    def _finish(self, viewer: Viewer, *, is_alive: bool) -> None:
        if is_alive:
            events = select.EPOLLIN | (select.EPOLLOUT if viewer.has_unsent() else 0)
            self.poller.watch(viewer.fileno(), events, lambda events: self._receive(viewer, events))
            return
        if viewer in self.viewers:
            self.viewers.remove(viewer)
        self.poller.forget(viewer.fileno())
        viewer.sock.close()
        self.keyboard.release_all()
        self.flush_keyboard()

    def _touch_all(self) -> None:
        if self.framebuffer is not None:
            geometry = self.framebuffer.geometry
            for viewer in self.viewers:
                viewer.touch(Update(0, 0, geometry.width, geometry.height))

    def _notify(self, kind: str) -> None:
        if kind in self.ports:
            with contextlib.suppress(HypercallError, DomainError):
                self.hypervisor.events.notify(self.ports[kind])

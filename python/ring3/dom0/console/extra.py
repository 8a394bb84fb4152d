"""Consoles beyond the one that every domain has: devices of the kind `console`, with a front end in the domain.

Source: docs/misc/console.txt and docs/misc/channels.txt of Xen; drivers/tty/hvc/hvc_xen.c of Linux.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, Protocol

from ring3.dom0 import xenbus
from ring3.dom0.xenbus import XenbusState
from ring3.libs.device import Device, back_directory
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
KIND: Final = "console"
TOKEN: Final = "extra"
_U32_MAX: Final = 0xFFFFFFFF


class Consoles(Protocol):
    """Who maps rings and serves them."""

    def open_extra(self, device: Device, gref: int, port: int) -> bool:
        """Serves a console; False if what the domain says of it makes no sense."""

    def close_extra(self, device: Device) -> None:
        """Serves it no more, if it did."""

    def is_open(self, device: Device) -> bool:
        """Returns whether it is served."""


class ExtraConsoles:
    """Follows the devices' states. What is in a front end's nodes is the domain's, and may be anything."""

    def __init__(self, xenstore: XenstoreClient, consoles: Consoles, is_introduced: Callable[[int], bool]) -> None:
        self._xenstore = xenstore
        self._consoles = consoles
        self._is_introduced = is_introduced
        self._known: set[Device] = set()

    def begin(self) -> None:
        """Looks for devices from now on."""
        self._xenstore.watch(back_directory(KIND), TOKEN)

    def take(self, path: str) -> None:
        """Looks at what an event of ours is about."""
        device = Device.from_path(path)
        if device is not None:
            self._look(device)
            return
        self.look_at_all()

    def look_at_all(self) -> None:
        """Looks at every device, those of domains that were introduced meanwhile too."""
        for found in {*self._known, *xenbus.devices(self._xenstore, KIND)}:
            self._look(found)

    def domain_is_gone(self, domid: int) -> None:
        """Lets go of a domain's consoles."""
        for device in [device for device in self._known if device.domid == domid]:
            self._forget(device)

    def _look(self, device: Device) -> None:
        state = xenbus.read_state(self._xenstore, device.back)
        if state is None or device.number == 0 or not self._is_introduced(device.domid):
            self._forget(device)
            return
        if device not in self._known:
            self._known.add(device)
            self._xenstore.watch(f"{device.front}/state", TOKEN)
        front = xenbus.read_state(self._xenstore, device.front)
        is_online = self._xenstore.read_optional(f"{device.back}/online") != "0"
        match front:
            case XenbusState.INITIALISED | XenbusState.CONNECTED if is_online:
                if not self._consoles.is_open(device) and not self._connect(device):
                    xenbus.switch_state(self._xenstore, device, XenbusState.CLOSING)
                    return
                xenbus.switch_state(self._xenstore, device, XenbusState.CONNECTED)
            case XenbusState.INITIALISING | XenbusState.UNKNOWN if is_online:
                self._consoles.close_extra(device)
                xenbus.switch_state(self._xenstore, device, XenbusState.INIT_WAIT)
            case XenbusState.CLOSING:
                # A Linux that shuts down waits five seconds for this very state.
                self._consoles.close_extra(device)
                xenbus.switch_state(self._xenstore, device, XenbusState.CLOSING)
            case _:
                self._consoles.close_extra(device)
                xenbus.switch_state(self._xenstore, device, XenbusState.CLOSED)

    def _connect(self, device: Device) -> bool:
        numbers = []
        for name in ("ring-ref", "port"):
            text = self._xenstore.read_optional(f"{device.front}/{name}") or ""
            if not text.isdecimal() or int(text) > _U32_MAX:
                _log.warning("console %d of domain %d: %s is %.40r", device.number, device.domid, name, text)
                return False
            numbers.append(int(text))
        return self._consoles.open_extra(device, *numbers)

    def _forget(self, device: Device) -> None:
        self._consoles.close_extra(device)
        if device in self._known:
            self._known.discard(device)
            self._xenstore.unwatch(f"{device.front}/state", TOKEN)

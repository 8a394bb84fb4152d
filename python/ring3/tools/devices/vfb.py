"""Framebuffers with keyboard and pointer, seen by VNC (xl.cfg(5), vfb=).

`vnc=1,vnclisten=ADDRESS,vncdisplay=N,vncunused=1,vncpasswd=PASSWORD,keymap=NAME`, all of which may be left out.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError
from ring3.libs.device import Device
from ring3.tools.devices.bus import DeviceNodes

if TYPE_CHECKING:
    from ring3.tools.services import Services

FIRST_PORT: Final = 5900
_NR_DISPLAYS: Final = 100
"""How far the search for an unused one goes."""
_PASSWORD_BYTES_MAX: Final = 8
"""More has no effect in VNC's authentication."""
KEYMAPS: Final = ("en-us", "en-gb", "de", "fr", "es", "it")
"""Those that the display's back end has."""
_KEYS: Final = ("vnc", "vnclisten", "vncdisplay", "vncunused", "vncpasswd", "keymap", "sdl", "opengl")
_YES_NO: Final = {"0": False, "1": True}


def _split(listen: str) -> tuple[str, str]:
    """Returns address and display of `vnclisten`, in which an address of IPv6 with a display has brackets."""
    if listen.startswith("["):
        address, _bracket, rest = listen[1:].partition("]")
        return address, rest.removeprefix(":")
    if listen.count(":") > 1:
        return listen, ""
    address, _colon, place = listen.partition(":")
    return address, place


@dataclass(frozen=True, slots=True)
class Vfb:
    """A framebuffer."""

    has_vnc: bool = True
    address: str = "127.0.0.1"
    display: int = 0
    takes_unused: bool = True
    password: str = ""
    keymap: str = KEYMAPS[0]
    service: str = field(default="displayd", init=False)
    has_hotplug: bool = field(default=True, init=False)

    @classmethod
    def parse(cls, spec: str) -> Vfb:
        """Returns the framebuffer of a specification. Raises ConfigError."""
        given: dict[str, str] = {}
        for part in spec.split(",") if spec.strip() else []:
            key, equals, value = part.strip().partition("=")
            if not equals or key not in _KEYS or key in given:
                raise ConfigError(f"{part.strip()!r} is not part of a framebuffer", key="vfb")
            given[key] = value.strip().strip("'\"")
        flags = {key: given.get(key, default) for key, default in (("vnc", "1"), ("sdl", "0"), ("opengl", "0"))}
        # An address may name the display as well: vnclisten=0.0.0.0:1
        address, place = _split(given.get("vnclisten", "127.0.0.1"))
        display = given.get("vncdisplay", place or "0")
        flags["vncunused"] = given.get("vncunused", "0" if "vncdisplay" in given or place else "1")
        for key, value in flags.items():
            if value not in _YES_NO:
                raise ConfigError(f"{key} is 0 or 1", key="vfb")
        if flags["sdl"] == "1" or flags["opengl"] == "1":
            raise ConfigError("sdl and opengl need a display of the host: there is VNC alone", key="vfb")
        keymap = given.get("keymap", KEYMAPS[0])
        if keymap not in KEYMAPS:
            raise ConfigError(f"keymap={keymap}: it is one of {', '.join(KEYMAPS)}", key="vfb")
        try:
            ipaddress.ip_address(address)
        except ValueError:
            raise ConfigError(f"vnclisten is an IP address, not {address!r}", key="vfb") from None
        if not display.isdecimal() or int(display) > 0xFFFF - FIRST_PORT:
            raise ConfigError(f"{display!r} is no display number", key="vfb")
        password = given.get("vncpasswd", "")
        if len(password.encode()) > _PASSWORD_BYTES_MAX:
            raise ConfigError(f"VNC knows passwords of at most {_PASSWORD_BYTES_MAX} bytes", key="vfb")
        return cls(flags["vnc"] == "1", address, int(display), flags["vncunused"] == "1", password, keymap)

    def nodes(self, _domid: int) -> DeviceNodes:
        """Returns its nodes."""
        back = {
            "vnc": str(int(self.has_vnc)),
            "vnclisten": self.address,
            "vncdisplay": str(self.display),
            "vncunused": str(int(self.takes_unused)),
            "sdl": "0",
            "opengl": "0",
        }
        if self.keymap != KEYMAPS[0]:
            back["keymap"] = self.keymap
        if self.password:
            back["vncpasswd"] = self.password
        return DeviceNodes("vfb", 0, {}, back)

    def prepare(self, domid: int, services: Services) -> None:
        """Opens the socket that VNC clients connect to. Raises ConfigError where there is none to be had."""
        if not self.has_vnc:
            return
        with self._listen() as listener:
            services.give(Device("vfb", domid, 0).name, [listener.fileno()])

    def _listen(self) -> socket.socket:
        last = self.display + (_NR_DISPLAYS if self.takes_unused else 1)
        for display in range(self.display, last):
            family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
            listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((self.address, FIRST_PORT + display))
                listener.listen()
            except OSError as error:
                listener.close()
                reason = error.strerror
                continue
            return listener
        raise ConfigError(f"VNC display {self.display} at {self.address}: {reason}", key="vfb")


@dataclass(frozen=True, slots=True)
class Vkb:
    """The keyboard and pointer that belong to a framebuffer."""

    service: str = field(default="displayd", init=False)
    has_hotplug: bool = field(default=True, init=False)

    def nodes(self, _domid: int) -> DeviceNodes:
        """Returns its nodes."""
        return DeviceNodes("vkbd", 0)

    def prepare(self, _domid: int, _services: Services) -> None:
        """Has nothing to open."""


def parse_all(specs: list[str]) -> tuple[Vfb | Vkb, ...]:
    """Returns the devices of a domain's framebuffer, of which it has one at most. Raises ConfigError."""
    if len(specs) > 1:
        raise ConfigError("a domain has one framebuffer", key="vfb")
    return tuple(device for spec in specs for device in (Vfb.parse(spec), Vkb()))

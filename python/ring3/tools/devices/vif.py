"""Network devices: what a `vif=` entry says, and the nodes that come of it.

Source: docs/man/xl-network-configuration.5.pod of Xen. Ours are `network`, `switch`, `forward` and `antispoof`.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError
from ring3.libs.device import Device
from ring3.tools.devices.bus import DeviceNodes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ring3.tools.services import Services

KIND: Final = "vif"
NETWORKS: Final = ("user", "switch", "bridge")
DEFAULT_SWITCH: Final = "switch0"
DEFAULT_BRIDGE: Final = "xenbr0"
MTU_MIN: Final = 68
MTU_MAX: Final = 65521
"""What xen-netfront takes: 64 KiB less its headers."""
_OUI: Final = "00:16:3e"
"""Xen's own vendor prefix: addresses are made up below it."""
_MAC: Final = re.compile(r"[0-9a-fA-F]{1,2}(:[0-9a-fA-F]{1,2}){5}")
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,15}")
_FORWARD: Final = re.compile(r"(tcp|udp):([0-9A-Fa-f.:%\[\]]+/)?([0-9]{1,5})(?::([0-9]{1,5}))?")
_RATE: Final = re.compile(r"([0-9]+)([GMK]?)([Bb])/s(?:@([0-9]+)(us|ms|s))?")
_FACTORS: Final = {"": 1, "K": 1000, "M": 1000_000, "G": 1000_000_000}
_PERIODS_US: Final = {"us": 1, "ms": 1000, "s": 1000_000}
_DEFAULT_PERIOD_US: Final = 50_000
_OF_SCRIPTS: Final = ("gatewaydev", "netdev")
_SCRIPT: Final = "vif-bridge"
"""xl's default: what it does is done here."""
_NO_SCRIPTS: Final = "no hotplug script is run; network=user|switch|bridge says where to"
_OF_COLO: Final = ("colo", "forwarddev")
_FLAGS: Final = {"trusted": "trusted=1", "untrusted": "trusted=0"}
_NOT_FOR_PV: Final = ("model", "accel")
"""Of emulated cards; xl, too, takes no notice of them for a PV domain."""


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of the host that leads into the domain."""

    protocol: str
    address: str
    """With a trailing slash, or empty: all of the host's."""
    host_port: int
    guest_port: int

    @classmethod
    def parse(cls, text: str) -> Forward:
        """Reads `tcp:[ADDRESS/]PORT[:GUEST-PORT]`. Raises ConfigError."""
        found = _FORWARD.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"{text!r} is no port forward: tcp:[ADDRESS/]PORT[:GUEST-PORT], or udp:...", key="forward"
            )
        protocol, address, host, guest = found.groups()
        ports = int(host), int(guest or host)
        if not all(0 < port < 65536 for port in ports):
            raise ConfigError(f"{text!r}: a port is 1 to 65535", key="forward")
        return cls(protocol, address or "", *ports)

    def check(self) -> None:
        """Raises ConfigError for a port that somebody has: passt would leave it out without a word."""
        host = self.address.rstrip("/").partition("%")[0].strip("[]")
        is_tcp = self.protocol == "tcp"
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM if is_tcp else socket.SOCK_DGRAM) as probe:
            if is_tcp:  # connections that have ended are no obstacle
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, self.host_port))
            except OSError as error:
                where = f"{self.protocol}:{self.address}{self.host_port}"
                raise ConfigError(f"forward={where}: {error.strerror}", key=KIND) from error

    def option(self) -> list[str]:
        """Returns passt's options for it."""
        return [f"--{self.protocol}-ports", f"{self.address}{self.host_port}:{self.guest_port}"]


@dataclass(frozen=True, slots=True)
class VifConfig:
    """A network device that somebody wants. It is the number-th of its domain."""

    number: int
    mac: str
    network: str = "user"
    switch: str = ""
    bridge: str = ""
    vifname: str = ""
    ip: str = ""
    rate: str = ""
    """Bytes, comma, microseconds; as the node has it."""
    mtu: int = 0
    is_trusted: bool = True
    is_guarded: bool = True
    forwards: tuple[Forward, ...] = ()

    @classmethod
    def parse(cls, spec: str, number: int) -> VifConfig:
        """Reads an entry of `vif=`: pairs of key and value with commas between. Raises ConfigError."""
        words = [word.strip() for word in spec.split(",")]
        return cls.from_words([word for word in words if word], number)

    @classmethod
    def from_words(cls, words: list[str], number: int) -> VifConfig:
        """Reads pairs `key=value`. Raises ConfigError."""
        values: dict[str, list[str]] = {}
        for word in words:
            key, equals, value = _FLAGS.get(word, word).partition("=")
            if not equals:
                raise ConfigError(f"{word!r} is no key=value", key=KIND)
            values.setdefault(key.strip(), []).append(value.strip())
        forwards = tuple(map(Forward.parse, values.pop("forward", [])))
        for key, given in values.items():
            if len(given) > 1:
                raise ConfigError(f"{key} is there twice", key=KIND)
        return _Parser({key: given[0] for key, given in values.items()}).config(number, forwards)

    @property
    def service(self) -> str:
        """The network back end."""
        return "net"

    @property
    def has_hotplug(self) -> bool:
        """It says when the network is there."""
        return True

    def nodes(self, domid: int) -> DeviceNodes:  # noqa: ARG002
        """Returns its nodes."""
        front = {"handle": str(self.number), "mac": self.mac, "trusted": str(int(self.is_trusted))}
        place = {"user": "user", "switch": f"switch {self.switch}", "bridge": f"bridge {self.bridge}"}[self.network]
        back = {
            "mac": self.mac,
            "handle": str(self.number),
            "type": KIND,
            "network": place,
            "antispoof": str(int(self.is_guarded)),
        }
        optional = {"bridge": self.bridge, "vifname": self.vifname, "ip": self.ip, "rate": self.rate}
        back |= {name: value for name, value in optional.items() if value}
        if self.mtu:
            front["mtu"] = back["mtu"] = str(self.mtu)
        return DeviceNodes(KIND, self.number, front, back)

    def prepare(self, domid: int, services: Services) -> None:
        """Starts the helper, or opens the device of the host, that the network needs. Raises Error."""
        name = Device(KIND, domid, self.number).name
        if self.network == "user":
            directory = services.directory / "net"
            directory.mkdir(mode=0o700, exist_ok=True)
            socket = directory / f"{domid}-{self.number}.sock"
            socket.unlink(missing_ok=True)
            services.forget(name)
            for forward in self.forwards:
                forward.check()
            services.run(name, self.passt_command(str(socket)))
        elif self.network == "bridge":
            from ring3.tools.devices.tap import open_tap

            fd = open_tap(self.vifname or f"vif{domid}.{self.number}", self.bridge, self.mtu)
            try:
                services.give(name, [fd])
            finally:
                os.close(fd)

    def passt_command(self, socket: str) -> list[str]:
        """Returns how passt is started for it. Raises ConfigError if that is not installed."""
        program = shutil.which("passt")
        if program is None:
            raise ConfigError("a user network needs the program passt (Debian: package passt)", key=KIND)
        command = [program, "--foreground", "--quiet", "--socket", socket]
        if os.geteuid() == 0:  # it must be able to make that socket
            command += ["--runas", f"{os.geteuid()}:{os.getegid()}"]
        if self.mtu:
            command += ["--mtu", str(self.mtu)]
        # The addresses that it may use are the ones that it is given.
        words = [word for word in self.ip.split() if "/" not in word]
        for is_v6 in (False, True):
            command += [part for word in words if (":" in word) == is_v6 for part in ("--address", word)][:2]
        return command + [word for forward in self.forwards for word in forward.option()]


def parse_all(specs: Sequence[str]) -> tuple[VifConfig, ...]:
    """Returns the network devices of a domain. Raises ConfigError."""
    vifs = tuple(VifConfig.parse(spec, number) for number, spec in enumerate(specs))
    by_number: dict[int, VifConfig] = {}
    by_mac: dict[str, VifConfig] = {}
    for vif in vifs:
        if vif.number in by_number:
            raise ConfigError(f"devid={vif.number} is there twice", key=KIND)
        other = by_mac.setdefault(vif.mac, vif)
        if other is not vif:
            raise ConfigError(f"vif {other.number} and vif {vif.number} have the same mac={vif.mac}", key=KIND)
        by_number[vif.number] = vif
    return vifs


class _Parser:
    """The keys of one entry."""

    def __init__(self, values: dict[str, str]) -> None:
        self._values = values

    def config(self, number: int, forwards: tuple[Forward, ...]) -> VifConfig:
        """Returns what they say. Raises ConfigError."""
        kind = self._take("type", "vif")
        if kind != "vif":
            raise ConfigError(f"type={kind}: there is no emulated network card, a PV domain has none", key=KIND)
        for key in _NOT_FOR_PV:
            self._take(key)
        backend = self._take("backend", "0")
        if backend not in ("0", "Domain-0"):
            raise ConfigError(f"backend={backend}: domain 0 alone has network back ends", key=KIND)
        script = self._take("script")
        if script and script.rpartition("/")[2] != _SCRIPT:
            raise ConfigError(f"script={script}: {_NO_SCRIPTS}", key=KIND)
        for key in _OF_SCRIPTS:
            if self._take(key):
                raise ConfigError(f"{key}: {_NO_SCRIPTS}", key=KIND)
        for key in list(self._values):
            if key.startswith(_OF_COLO):
                raise ConfigError(f"{key}: there is no COLO", key=KIND)
        switch, bridge = self._name("switch"), self._name("bridge")
        network = self._take("network") or ("bridge" if bridge or script else "switch" if switch else "user")
        if network not in NETWORKS:
            raise ConfigError(f"network={network}: it is one of {', '.join(NETWORKS)}", key=KIND)
        if script and network != "bridge":
            raise ConfigError(f"script={script} does not go with network={network}", key=KIND)
        if (bridge and network != "bridge") or (switch and network != "switch"):
            raise ConfigError(f"a bridge or switch does not go with network={network}", key=KIND)
        if forwards and network != "user":
            raise ConfigError("ports are forwarded by network=user", key=KIND)
        devid = self._take("devid")
        if devid and not devid.isdecimal():
            raise ConfigError(f"devid={devid} is no number", key=KIND)
        config = VifConfig(
            number=int(devid) if devid else number,
            mac=_mac(self._take("mac")),
            network=network,
            switch=(switch or DEFAULT_SWITCH) if network == "switch" else "",
            bridge=(bridge or DEFAULT_BRIDGE) if network == "bridge" else "",
            vifname=self._name("vifname"),
            ip=_ip(self._take("ip")),
            rate=_rate(self._take("rate")),
            mtu=_mtu(self._take("mtu")),
            is_trusted=self._flag("trusted"),
            is_guarded=self._flag("antispoof"),
            forwards=forwards,
        )
        if self._values:
            raise ConfigError(f"unknown key {next(iter(self._values))}", key=KIND)
        return config

    def _take(self, key: str, default: str = "") -> str:
        return self._values.pop(key, default)

    def _name(self, key: str) -> str:
        value = self._take(key)
        if value and not _NAME.fullmatch(value):
            raise ConfigError(f"{key}={value} is no name (letters, digits, _ . -, at most 15)", key=KIND)
        return value

    def _flag(self, key: str) -> bool:
        value = self._take(key, "1")
        if value not in ("0", "1"):
            raise ConfigError(f"{key}={value}: it is 0 or 1", key=KIND)
        return value == "1"


def _mac(text: str) -> str:
    """Returns an address in its usual form, a random one of Xen's for none."""
    if not text:
        tail = os.urandom(3)
        return f"{_OUI}:{tail[0] & 0x7F:02x}:{tail[1]:02x}:{tail[2]:02x}"
    if not _MAC.fullmatch(text):
        raise ConfigError(f"mac={text} is no address such as 00:16:3e:00:00:01", key=KIND)
    octets = [int(octet, 16) for octet in text.split(":")]
    if octets[0] & 1 or not any(octets):
        raise ConfigError(f"mac={text} is no address that a device can have", key=KIND)
    return ":".join(f"{octet:02x}" for octet in octets)


def _ip(text: str) -> str:
    """Returns addresses and networks in their usual form, with blanks between."""
    try:
        found = [ipaddress.ip_network(word, strict=False) for word in text.split()]
    except ValueError as error:
        raise ConfigError(f"ip={text}: {error}", key=KIND) from error
    return " ".join(str(net.network_address) if net.num_addresses == 1 else str(net) for net in found)


def _rate(text: str) -> str:
    if not text:
        return ""
    found = _RATE.fullmatch(text)
    if found is None:
        raise ConfigError(f"rate={text} is not like 10Mb/s or 10Mb/s@50ms", key=KIND)
    number, factor, unit, period, period_unit = found.groups()
    period_us = int(period) * _PERIODS_US[period_unit] if period else _DEFAULT_PERIOD_US
    nr_bytes = int(number) * _FACTORS[factor] // (8 if unit == "b" else 1) * period_us // 1000_000
    if nr_bytes == 0:
        raise ConfigError(f"rate={text} lets nothing through", key=KIND)
    return f"{nr_bytes},{period_us}"


def _mtu(text: str) -> int:
    if not text:
        return 0
    if not text.isdecimal() or not MTU_MIN <= int(text) <= MTU_MAX:
        raise ConfigError(f"mtu={text}: it is {MTU_MIN} to {MTU_MAX}", key=KIND)
    return int(text)

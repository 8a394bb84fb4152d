"""What vifs can be connected to, by the node `network` of the back end: `user`, `switch NAME`, `bridge NAME`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ring3.dom0.net.packet import Packet
from ring3.dom0.net.switch import Switch
from ring3.dom0.net.tap import TapNetwork
from ring3.dom0.net.user import UserNetwork
from ring3.dom0.net.vif import Vif
from ring3.dom0.poller import Poller
from ring3.errors import Error

_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,32}")


class _Nothing:
    """Where a vif is that is connected to nothing."""

    wants_bytes = False

    def forward(self, vif: Vif, packet: Packet, now: float) -> None:
        """Drops it."""


class Networks:
    """All of them."""

    def __init__(
        self, directory: Path, poller: Poller, clock: Callable[[], float], given: Callable[[str], list[int]]
    ) -> None:
        """`given` returns what the toolstack has given for a device: the tap of a bridged one."""
        self._given = given
        self._directory = directory
        self._poller = poller
        self._clock = clock
        self._switches: dict[str, Switch] = {}
        self.outer: dict[Vif, UserNetwork | TapNetwork] = {}
        """Ways out of the machine, by the only vif that has each."""
        self._vifs: set[Vif] = set()
        self.on_leave: Callable[[Vif | Switch], None] = lambda _point: None
        """Is told what is no longer there."""
        self.none = _Nothing()

    def join(self, vif: Vif, text: str) -> None:
        """Connects a vif. Raises Error for what is no network."""
        for other in self._vifs:
            if other.mac == vif.mac:
                raise Error(f"the address {vif.mac.hex(':')} is {other.name}'s already")
        kind, _blank, name = text.partition(" ")
        match kind:
            case "user":
                user = UserNetwork(self._directory / f"{vif.device.domid}-{vif.device.number}.sock", self._poller)
                user.vif = vif
                vif.network = self.outer[vif] = user
            case "switch" if _NAME.fullmatch(name):
                switch = self._switches.setdefault(name, Switch(name))
                switch.add(vif)
                vif.network = switch
            case "bridge":
                fds = self._given(vif.device.name)
                if not fds:
                    raise Error("the toolstack has given no tap for it")
                vif.network = self.outer[vif] = TapNetwork(fds[0], vif, self._poller)
            case _:
                raise Error(f"there is no network {text!r}")
        self._vifs.add(vif)

    def leave(self, vif: Vif) -> None:
        """Disconnects a vif."""
        self._vifs.discard(vif)
        self.on_leave(vif)
        outer = self.outer.pop(vif, None)
        if outer is not None:
            outer.close()
        if isinstance(vif.network, Switch):
            vif.network.remove(vif)
            if not vif.network.ports:
                del self._switches[vif.network.name]
                self.on_leave(vif.network)
        vif.network = self.none

    def points(self) -> list[Vif | Switch]:
        """Returns all that packets pass by."""
        return [*self._vifs, *self._switches.values()]

    def want_bytes(self) -> None:
        """Has switches bring whole packets to domain 0 where somebody captures them, and headers elsewhere."""
        for switch in self._switches.values():
            is_port_captured = any(vif.captures for vif in self._vifs if vif.network is switch)
            switch.wants_bytes = bool(switch.captures) or is_port_captured

    def is_ready(self, vif: Vif) -> bool:
        """Returns whether a vif's network is there."""
        outer = self.outer.get(vif)
        return outer is None or outer.connect(self._clock())

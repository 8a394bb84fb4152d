"""Attaching and detaching devices, as libxl does: nodes of both halves, waiting for the back end, removal.

A device has three places in xenstore: the front end's node, which is the domain's; the back end's, which domain 0
owns; and below /libxl a copy of the latter, which the domain cannot change and tools go by.

Source: libxl_device.c of Xen (behaviour); xenstore-paths.pandoc; xen/include/public/io/xenbus.h.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from ring3.errors import ConfigError, ConnectionLostError, Error, XenstoreRequestError
from ring3.libs.device import Device, back_directory, libxl_directory

if TYPE_CHECKING:
    from ring3.libs.xenstore import XenstoreClient
    from ring3.tools.services import Services

STATE_INITIALISING: Final = "1"
STATE_CLOSING: Final = "5"
STATE_CLOSED: Final = "6"
HOTPLUG_TIMEOUT_S: Final = 40.0
"""Source: libxl_internal.h, LIBXL_HOTPLUG_TIMEOUT."""
DETACH_TIMEOUT_S: Final = 10.0
"""Source: libxl_internal.h, LIBXL_DESTROY_TIMEOUT."""
_END_TIMEOUT_S: Final = 2.0
_POLL_MIN_S: Final = 0.002
_POLL_MAX_S: Final = 0.05
_OWN_WAY: Final = ("console",)
"""Kinds that are not detached one by one: the console daemon follows the domain."""


@dataclass(frozen=True, slots=True)
class DeviceNodes:
    """What a device is in xenstore. `backend`, `frontend`, their ids, `online` and the states are added.

    `when_written` does what needs the nodes, such as running a script that reads them.
    """

    kind: str
    number: int
    front: Mapping[str, str] = field(default_factory=dict)
    back: Mapping[str, str] = field(default_factory=dict)
    when_written: Callable[[XenstoreClient, Services, Device], None] | None = None

    def of(self, domid: int) -> Device:
        """Returns the device that a domain has by them."""
        return Device(self.kind, domid, self.number)

    @property
    def name(self) -> str:
        """What people call it."""
        return self.back.get("dev", f"{self.kind}/{self.number}")


class DeviceConfig(Protocol):
    """A device that somebody wants."""

    @property
    def service(self) -> str:
        """The service of domain 0 that is its back end."""

    @property
    def has_hotplug(self) -> bool:
        """Whether the back end says by `hotplug-status` that it has all it needs, or by `hotplug-error` what not."""

    def nodes(self, domid: int) -> DeviceNodes:
        """Returns its nodes."""

    def prepare(self, domid: int, services: Services) -> None:
        """Opens what the back end needs and hands it over. Raises Error."""


def attach(xenstore: XenstoreClient, services: Services, domid: int, config: DeviceConfig) -> DeviceNodes:
    """Makes a device and waits until its back end has what it needs. Raises Error; nothing is left of it then."""
    nodes = config.nodes(domid)
    if xenstore.read_optional(f"{nodes.of(domid).libxl}/backend") is not None:
        raise ConfigError(f"{nodes.name}: the domain has such a device already", key=nodes.kind)
    try:
        services.need(config.service)
        config.prepare(domid, services)
        xenstore.transaction(lambda tx_id: write_nodes(xenstore, domid, nodes, tx_id=tx_id))
        if nodes.when_written is not None:
            nodes.when_written(xenstore, services, nodes.of(domid))
        if config.has_hotplug:
            _wait_for_hotplug(xenstore, domid, nodes)
    except BaseException:
        with contextlib.suppress(Error):
            remove(xenstore, services, domid, nodes.kind, nodes.number)
        raise
    return nodes


def write_nodes(xenstore: XenstoreClient, domid: int, nodes: DeviceNodes, *, tx_id: int) -> None:
    """Writes the three places of a device."""
    device = nodes.of(domid)
    front, back = device.front, device.back
    back_nodes = {
        "frontend": front,
        "frontend-id": str(domid),
        "online": "1",
        "state": STATE_INITIALISING,
        **nodes.back,
    }
    front_nodes = {"backend": back, "backend-id": "0", "state": STATE_INITIALISING, **nodes.front}
    places = (
        (front, front_nodes, [f"n{domid}", "r0"]),
        (back, back_nodes, ["n0", f"r{domid}"]),
        (device.libxl, {"frontend": front, "backend": back, **back_nodes}, ["n0"]),
    )
    for top, values, perms in places:
        xenstore.mkdir(top, tx_id=tx_id)
        xenstore.set_perms(top, perms, tx_id=tx_id)  # children inherit them
        for name, value in values.items():
            xenstore.write(f"{top}/{name}", value, tx_id=tx_id)


def numbers(xenstore: XenstoreClient, domid: int, kind: str) -> list[int]:
    """Returns the device numbers of a kind that a domain has, in ascending order."""
    return sorted(int(name) for name in xenstore.directory_optional(libxl_directory(domid, kind)) if name.isdecimal())


def kinds(xenstore: XenstoreClient, domid: int) -> list[str]:
    """Returns the kinds of device that a domain has."""
    return [kind for kind in xenstore.directory_optional(f"/libxl/{domid}/device") if kind not in _OWN_WAY]


def detach(
    xenstore: XenstoreClient,
    services: Services,
    domid: int,
    kind: str,
    number: int,
    *,
    called: str | None = None,
    is_forced: bool = False,
    timeout_s: float = DETACH_TIMEOUT_S,
) -> None:
    """Takes a device away. Raises Error where the domain holds it beyond the time; forced, it goes all the same."""
    device = Device(kind, domid, number)
    if xenstore.read_optional(f"{device.libxl}/backend") is None:
        raise ConfigError(f"{called or f'{kind}/{number}'}: the domain has no such device", key=kind)
    name = _name(xenstore, device)
    close(xenstore, domid, kind, number)
    if not _wait_until_closed(xenstore, domid, kind, number, timeout_s) and not is_forced:
        raise Error(f"{name}: the domain does not let go of it (--force takes it away nevertheless)")
    remove(xenstore, services, domid, kind, number)


def close(xenstore: XenstoreClient, domid: int, kind: str, number: int) -> None:
    """Asks both halves to close."""
    back = Device(kind, domid, number).back

    def write(tx_id: int) -> None:
        if xenstore.read_optional(f"{back}/state", tx_id=tx_id) is None:
            return
        xenstore.write(f"{back}/online", "0", tx_id=tx_id)
        if xenstore.read_optional(f"{back}/state", tx_id=tx_id) != STATE_CLOSED:
            xenstore.write(f"{back}/state", STATE_CLOSING, tx_id=tx_id)

    xenstore.transaction(write)


def remove(xenstore: XenstoreClient, services: Services, domid: int, kind: str, number: int) -> None:
    """Removes a device's nodes, and what the supervisor holds for it; its script, if it has one, undoes its work."""
    device = Device(kind, domid, number)
    services.forget(device.name)
    script = xenstore.read_optional(f"{device.back}/script")
    if script:
        from ring3.tools.devices import block_script

        failure = block_script.run(script, "remove", device, services.directory / "xenstore")
        if failure is not None:
            print(f"ring3: {_name(xenstore, device)}: {script}: {failure}", file=sys.stderr)
    for path in (device.front, device.back, device.libxl):
        _remove(xenstore, path)
    for path in (f"{back_directory(kind)}/{domid}", libxl_directory(domid, kind)):
        if not xenstore.directory_optional(path):
            _remove(xenstore, path)


def end_all(xenstore: XenstoreClient, services: Services, domid: int) -> None:
    """Takes all devices away from a domain that ends. xenstored must have released it: that tells the back ends."""
    found = [(kind, number) for kind in kinds(xenstore, domid) for number in numbers(xenstore, domid, kind)]
    for kind, number in found:
        close(xenstore, domid, kind, number)
    deadline = time.monotonic() + _END_TIMEOUT_S
    for kind, number in found:
        _wait_until_closed(xenstore, domid, kind, number, max(0.0, deadline - time.monotonic()))
        with contextlib.suppress(ConnectionLostError):
            remove(xenstore, services, domid, kind, number)
    _remove(xenstore, f"/libxl/{domid}")


def _name(xenstore: XenstoreClient, device: Device) -> str:
    """Returns what people call a device that is there."""
    return xenstore.read_optional(f"{device.back}/dev") or f"{device.kind}/{device.number}"


def domains_with_scripts(xenstore: XenstoreClient) -> list[int]:
    """Returns the domains that have a device which a script has made, and should undo."""
    found = []
    for name in xenstore.directory_optional("/libxl"):
        if name.isdecimal() and any(
            xenstore.read_optional(f"{Device(kind, int(name), number).back}/script")
            for kind in kinds(xenstore, int(name))
            for number in numbers(xenstore, int(name), kind)
        ):
            found.append(int(name))
    return found


def _wait_for_hotplug(xenstore: XenstoreClient, domid: int, nodes: DeviceNodes) -> None:
    back = nodes.of(domid).back

    def is_done() -> bool:
        status = xenstore.read_optional(f"{back}/hotplug-status")
        if status == "error":
            reason = xenstore.read_optional(f"{back}/hotplug-error") or "no reason given"
            raise Error(f"{nodes.name}: {reason}")
        return status == "connected"

    if not _wait(is_done, HOTPLUG_TIMEOUT_S):
        raise Error(f"{nodes.name}: the back end is not ready after {HOTPLUG_TIMEOUT_S:.0f} s")


def _wait_until_closed(xenstore: XenstoreClient, domid: int, kind: str, number: int, timeout_s: float) -> bool:
    path = f"{Device(kind, domid, number).back}/state"
    return _wait(lambda: xenstore.read_optional(path) in (STATE_CLOSED, None), timeout_s)


def _wait(is_done: Callable[[], bool], timeout_s: float) -> bool:
    """Waits for something to become true. Polls: the connection's events belong to who set its watches."""
    deadline = time.monotonic() + timeout_s
    pause_s = _POLL_MIN_S
    while not is_done():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause_s, left))
        pause_s = min(2 * pause_s, _POLL_MAX_S)
    return True


def _remove(xenstore: XenstoreClient, path: str) -> None:
    try:
        xenstore.rm(path)
    except XenstoreRequestError as error:
        if error.errno_name != "ENOENT":
            raise


def front_number(xenstore: XenstoreClient, front: str, node: str) -> str:
    """Returns a number that the front end wrote, for people to read: "-1" if it wrote none, as xl has it."""
    text = xenstore.read_optional(f"{front}/{node}") or ""
    return text if text.isascii() and text.isdecimal() else "-1"

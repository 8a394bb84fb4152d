"""The xenstore nodes of a PV domain. Source: xenstore-paths.pandoc of Xen; what Linux reads and writes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from ring3.errors import DomainExists, XenstoreRequestError

if TYPE_CHECKING:
    from ring3.builder.pv import BuiltDomain
    from ring3.libs.xenstore import XenstoreClient
    from ring3.tools.config import DomainConfig

CONSOLE_LIMIT_BYTES: Final = 1 << 20
_GUEST_WRITES: Final = (
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
)


def home(domid: int) -> str:
    """Returns the domain's home."""
    return f"/local/domain/{domid}"


def write_nodes(xenstore: XenstoreClient, config: DomainConfig, built: BuiltDomain, uuid: str) -> None:
    """Writes home and /vm nodes, all or none. Raises DomainExists for a name that is in use."""
    domid = built.domid
    read_only, guest_owned = ["n0", f"r{domid}"], [f"n{domid}"]
    top = home(domid)
    nodes = {
        "vm": f"/vm/{uuid}",
        "name": config.name,
        "domid": str(domid),
        "memory/static-max": str(config.memory_mib << 10),
        "memory/target": str(config.memory_mib << 10),
        "control/platform-feature-xs_reset_watches": "1",
        "store/port": str(built.store_evtchn),
        "store/ring-ref": str(built.store_mfn),
        "console/type": "xenconsoled",
        "console/output": "pty",
        "console/limit": str(CONSOLE_LIMIT_BYTES),
        "console/port": str(built.console_evtchn),
        "console/ring-ref": str(built.console_mfn),
    }
    nodes |= availability(config.nr_vcpus, config.nr_vcpus_max)

    def write_all(tx_id: int) -> None:
        if config.name in names(xenstore, tx_id=tx_id).values():
            raise DomainExists(config.name)
        batch = xenstore.batch(tx_id=tx_id)
        batch.rm(top)
        batch.mkdir(top)
        batch.set_perms(top, read_only)  # children inherit them
        for name in ("memory", "cpu", "control", "device", "console", "store"):
            batch.mkdir(f"{top}/{name}")
        for name, value in nodes.items():
            batch.write(f"{top}/{name}", value)
        for name in _GUEST_WRITES:
            batch.write(f"{top}/{name}", "")
            batch.set_perms(f"{top}/{name}", guest_owned)
        vm = f"/vm/{uuid}"
        batch.mkdir(vm)
        batch.set_perms(vm, read_only)
        for name, value in {"name": config.name, "uuid": uuid, "start_time": f"{time.time():.2f}"}.items():
            batch.write(f"{vm}/{name}", value)
        batch.commit()
        if config.channels:
            from ring3.tools import channels

            channels.write_nodes(xenstore, domid, config.channels, tx_id=tx_id)

    xenstore.transaction(write_all)


def availability(nr_vcpus: int, nr_vcpus_max: int) -> dict[str, str]:
    """Returns the nodes, relative to the domain's home, that say which vCPUs it should use: the first ones."""
    return {f"cpu/{vcpu}/availability": "online" if vcpu < nr_vcpus else "offline" for vcpu in range(nr_vcpus_max)}


def monitor(domid: int) -> str:
    """Returns the node with the pid of the process that waits for a background domain's end."""
    return f"/tool/monitor/{domid}"


def remove_nodes(xenstore: XenstoreClient, domid: int) -> None:
    """Removes the nodes of a domain, as far as they are there."""
    from ring3.tools import channels

    vm = xenstore.read_optional(f"{home(domid)}/vm")
    top = [home(domid), monitor(domid), channels.back_directory(domid)]
    for path in [*top, *([vm] if vm and vm.startswith("/vm/") else [])]:
        try:
            xenstore.rm(path)
        except XenstoreRequestError as error:
            if error.errno_name != "ENOENT":
                raise


def names(xenstore: XenstoreClient, *, tx_id: int = 0) -> dict[int, str]:
    """Returns the name of every domain that has one."""
    found = {}
    for domid in xenstore.directory("/local/domain", tx_id=tx_id):
        name = xenstore.read_optional(f"/local/domain/{domid}/name", tx_id=tx_id)
        if domid.isdigit() and name:
            found[int(domid)] = name
    return found

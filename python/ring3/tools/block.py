"""`ring3 block-attach`, `block-detach`, `block-list`: xl's options and output."""

from __future__ import annotations

from functools import partial

from ring3.libs.device import Device
from ring3.tools import rundir
from ring3.tools.devices import bus
from ring3.tools.devices.disk import KIND, Disk
from ring3.tools.devices.disk_spec import vdev_number
from ring3.tools.toolstack import Toolstack


def attach(name: str, words: list[str]) -> int:
    """Gives a running domain a disk."""
    disk = Disk.parse(",".join(words))
    with Toolstack(rundir.default()) as toolstack:
        domid = toolstack.find_guest(name, "disks").domid
        bus.attach(toolstack.xenstore, toolstack.services, domid, disk)
    return 0


def detach(name: str, device: str, *, is_forced: bool) -> int:
    """Takes a disk away; the domain has to let go of it, unless it is forced."""
    number = vdev_number(device)
    with Toolstack(rundir.default()) as toolstack:
        domid = toolstack.find_guest(name, "disks").domid
        services = toolstack.services
        bus.detach(toolstack.xenstore, services, domid, KIND, number, called=device, is_forced=is_forced)
    return 0


def list_disks(names: list[str]) -> int:
    """Prints the disks of domains."""
    print(f"{'Vdev':<5} {'BE':<3} {'handle':<6} {'state':<5} {'evt-ch':<6} {'ring-ref':<8} {'BE-path':<30}")
    with Toolstack(rundir.default()) as toolstack:
        for name in names:
            domid = toolstack.find(name).domid
            for number in bus.numbers(toolstack.xenstore, domid, KIND):
                value = partial(bus.front_number, toolstack.xenstore, Device(KIND, domid, number).front)
                back = Device(KIND, domid, number).back
                print(
                    f"{number:<5} {0:<3} {domid:<6} {value('state'):<5} {value('event-channel'):<6} "
                    f"{value('ring-ref'):<8} {back:<30}"
                )
    return 0

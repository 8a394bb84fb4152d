"""`ring3 network-attach`, `network-detach`, `network-list`: xl's options and output."""

from __future__ import annotations

from functools import partial

from ring3.errors import ConfigError
from ring3.libs.device import Device
from ring3.tools import rundir
from ring3.tools.devices import bus
from ring3.tools.devices.vif import KIND, VifConfig
from ring3.tools.toolstack import Toolstack


def attach(name: str, words: list[str]) -> int:
    """Gives a running domain a network device, with the lowest free number unless `devid` says which."""
    with Toolstack(rundir.default()) as toolstack:
        domid = toolstack.find_guest(name, "network").domid
        used = bus.numbers(toolstack.xenstore, domid, KIND)
        number = next(number for number in range(len(used) + 1) if number not in used)
        config = VifConfig.from_words([part for word in words for part in word.split(",") if part], number)
        bus.attach(toolstack.xenstore, toolstack.services, domid, config)
    return 0


def detach(name: str, device: str, *, is_forced: bool) -> int:
    """Takes a network device away, by its number or its address."""
    with Toolstack(rundir.default()) as toolstack:
        domid = toolstack.find_guest(name, "network").domid
        number = find_number(toolstack, domid, device)
        bus.detach(toolstack.xenstore, toolstack.services, domid, KIND, number, is_forced=is_forced)
    return 0


def list_vifs(names: list[str]) -> int:
    """Prints the network devices of domains."""
    head = ("Idx", "BE", "Mac Addr.", "handle", "state", "evt-ch", "tx-", "rx-ring-ref", "BE-path")
    print("{:<3} {:<2} {:<17} {:<6} {:<5} {:<6} {:>5}/{:<5} {:<30}".format(*head))
    with Toolstack(rundir.default()) as toolstack:
        for name in names:
            domid = toolstack.find(name).domid
            for number in bus.numbers(toolstack.xenstore, domid, KIND):
                vif = Device(KIND, domid, number)
                value = partial(bus.front_number, toolstack.xenstore, vif.front)
                mac = toolstack.xenstore.read_optional(f"{vif.libxl}/mac") or ""
                port = value("event-channel") if value("event-channel") != "-1" else value("event-channel-tx")
                print(
                    f"{number:<3} {0:<2} {mac:<17} {number:>6} {value('state'):>5} {port:>6} "
                    f"{value('tx-ring-ref'):>5}/{value('rx-ring-ref'):<11} {vif.back:<30}"
                )
    return 0


def find_number(toolstack: Toolstack, domid: int, device: str | None) -> int:
    """Returns the number of a network device that is given by its number or its address; the first one for none."""
    numbers = bus.numbers(toolstack.xenstore, domid, KIND)
    if device is None and numbers:
        return numbers[0]
    if device is not None and device.isdecimal():
        return int(device)
    for number in numbers:
        mac = toolstack.xenstore.read_optional(f"{Device(KIND, domid, number).libxl}/mac")
        if device is not None and mac == device.lower():
            return number
    raise ConfigError(f"the domain has no network device {device or ''}".rstrip(), key=KIND)

"""What ring3d knows beside the core: the policy's view of the machine and its domains.

Hypercalls come from many threads, each holding the Python lock while a handler runs. A handler that calls the core may
be overtaken there, so a domain's record is written once, at creation, except for the fields that say otherwise.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ring3._core import CoreError
from ring3.abi.domctl import XEN_DOMINF_running
from ring3.abi.errno import ESRCH
from ring3.errors import HypercallError

if TYPE_CHECKING:
    from ring3._core import DomainInfo, Hypervisor

DOM0 = 0


@dataclass(slots=True)
class DomainRecord:
    """What the core need not know of a domain. `handle` and `has_vcpus` change during its life."""

    max_vcpus: int
    handle: bytes
    ssidref: int
    has_vcpus: bool = False


class Dom0Info(NamedTuple):
    """Domain 0 as a domain: the host's processes, which have no frames of their own and no vCPU here."""

    domid: int = DOM0
    flags: int = XEN_DOMINF_running
    nr_pages: int = 0
    max_pages: int = 0
    shared_info_mfn: int = 0
    cpu_time_ns: int = 0
    nr_online_vcpus: int = 1
    max_vcpu_id: int = 0
    handle: bytes = bytes(16)


@dataclass(slots=True)
class Xen:
    """The one machine of this process."""

    core: Hypervisor
    cpu_khz: int
    domains: dict[int, DomainRecord] = field(default_factory=dict)
    console_start: int = 0
    """Bytes of the console ring, counted from the start of time, that XEN_SYSCTL_readconsole has cleared."""

    def domids(self) -> list[int]:
        """Returns every domain's id in ascending order, domain 0 first."""
        return sorted({DOM0, *self.core.domain_list()})

    def info(self, domid: int) -> DomainInfo | Dom0Info:
        """Returns what there is to know. Raises HypercallError(ESRCH)."""
        try:
            return self.core.domain_info(domid)
        except CoreError as error:
            if domid == DOM0:
                return Dom0Info()
            raise HypercallError(ESRCH) from error

    def forget_dead(self) -> None:
        """Drops the records of domains that are gone."""
        alive = set(self.core.domain_list())
        for domid in [domid for domid in self.domains if domid not in alive]:
            self.domains.pop(domid, None)


def host_cpu_khz() -> int:
    """Returns the frequency of the time stamp counter as the host's kernel shows it, or 0."""
    try:
        match = re.search(r"^cpu MHz\s*:\s*([0-9.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return 0
    return int(float(match[1]) * 1000) if match else 0

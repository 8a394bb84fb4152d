"""What a person asks of a domain, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError

if TYPE_CHECKING:
    from ring3.tools.channels import Channel
    from ring3.tools.cpuid import Wish
    from ring3.tools.devices.bus import DeviceConfig

NR_VCPUS_MAX: Final = 32
"""vcpu_info slots in shared_info; more need VCPUOP_register_vcpu_info before a vCPU starts."""
NR_CHANNELS_MAX: Final = 9
"""Linux takes the last digit of a console device's number for the number."""
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:+-]{0,62}")


class OnReboot(StrEnum):
    """What happens when the guest reboots."""

    RESTART = "restart"
    DESTROY = "destroy"


class TscMode(StrEnum):
    """What a domain reads as TSC: `tsc_mode` of xl.cfg(5), explained in xen-tscmode(7)."""

    DEFAULT = "default"
    ALWAYS_EMULATE = "always_emulate"
    NATIVE = "native"


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """A domain to create. Memory in MiB."""

    name: str
    kernel: Path
    ramdisk: Path | None = None
    cmdline: str = ""
    memory_mib: int = 512
    nr_vcpus: int = 1
    nr_vcpus_max: int = 0
    """What `vcpu-set` can give it later; 0: no more than it starts with."""
    on_reboot: OnReboot = OnReboot.RESTART
    tsc_mode: TscMode = TscMode.DEFAULT
    cpuid: tuple[Wish, ...] = ()
    """What its CPUs show otherwise than by default; later ones count."""
    channels: tuple[Channel, ...] = ()
    devices: tuple[DeviceConfig, ...] = ()
    """In the order in which they are attached, of all kinds."""

    def __post_init__(self) -> None:
        """Raises ConfigError for a value that no domain can have."""
        if not _NAME.fullmatch(self.name) or self.name.isdigit():
            raise ConfigError(
                f"{self.name!r} is not a domain name (letters, digits, _ . : + -, at most 63, not a number)", key="name"
            )
        if self.memory_mib < 1:
            raise ConfigError("memory is at least 1 MiB", key="memory")
        if not 1 <= self.nr_vcpus <= NR_VCPUS_MAX:
            raise ConfigError(f"a domain has 1 to {NR_VCPUS_MAX} vCPUs", key="vcpus")
        if self.nr_vcpus_max == 0:
            object.__setattr__(self, "nr_vcpus_max", self.nr_vcpus)
        if not self.nr_vcpus <= self.nr_vcpus_max <= NR_VCPUS_MAX:
            raise ConfigError(f"with {self.nr_vcpus} vCPUs it is {self.nr_vcpus} to {NR_VCPUS_MAX}", key="maxvcpus")
        if len(self.channels) > NR_CHANNELS_MAX:
            raise ConfigError(f"a domain has at most {NR_CHANNELS_MAX} channels", key="channel")


def name_from_kernel(kernel: Path) -> str:
    """Returns a domain name for a kernel file, for who gives none."""
    name = re.sub(r"[^A-Za-z0-9_.:+-]", "-", kernel.name)[:63].lstrip(".:+-")
    return name if name and not name.isdigit() else "domain"

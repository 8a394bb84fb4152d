"""What `ring3 run` and `create` are asked for: options, and a configuration file (xl.cfg(5)) that they add to.

An option takes the place of the file's setting; disks and other devices come after the file's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError
from ring3.tools.config import DomainConfig, OnReboot, TscMode, name_from_kernel

if TYPE_CHECKING:
    import argparse

    from ring3.tools.channels import Channel
    from ring3.tools.config_file import Setting
    from ring3.tools.cpuid import Wish
    from ring3.tools.devices.bus import DeviceConfig

_MEMORY_MIB: Final = 512
_TEXTS: Final = ("name", "kernel", "ramdisk", "cmdline", "root", "extra", "on_reboot", "tsc_mode", "type", "builder")
_NUMBERS: Final = ("memory", "vcpus", "maxvcpus")
_LISTS: Final = ("disk", "vif", "vfb", "p9", "channel")


def domain_config(options: argparse.Namespace) -> DomainConfig:
    """Returns the domain that is wanted. Raises ConfigError."""
    file = _from_file(options.config) if options.config is not None else _File()
    texts, numbers, lists = file.texts, file.numbers, file.lists
    kernel = options.kernel or (Path(texts["kernel"]) if "kernel" in texts else None)
    if kernel is None:
        raise ConfigError("no kernel is given", file=options.config, key="kernel")
    specs = {key: [*lists.get(key, []), *getattr(options, key)] for key in _LISTS}
    ramdisk = options.ramdisk or (Path(texts["ramdisk"]) if "ramdisk" in texts else None)
    return DomainConfig(
        name=options.name or texts.get("name") or name_from_kernel(kernel),
        kernel=kernel,
        ramdisk=ramdisk,
        cmdline=options.cmdline if options.cmdline is not None else _cmdline(texts),
        memory_mib=options.memory or numbers.get("memory", _MEMORY_MIB),
        nr_vcpus=options.vcpus or numbers.get("vcpus", 1),
        nr_vcpus_max=options.maxvcpus or numbers.get("maxvcpus", 0),
        on_reboot=OnReboot(options.on_reboot or texts.get("on_reboot", "restart")),
        tsc_mode=TscMode(options.tsc_mode or texts.get("tsc_mode", "default")),
        cpuid=(*file.cpuid, *_cpuid(options.cpuid)),
        channels=_channels(specs["channel"]),
        devices=_devices(specs),
    )


def _cpuid(specs: list[str]) -> list[Wish]:
    if not specs:
        return []
    from ring3.tools import cpuid

    return [wish for spec in specs for wish in cpuid.parse_option(spec)]


def _channels(specs: list[str]) -> tuple[Channel, ...]:
    if not specs:
        return ()
    from ring3.tools.channels import Channel

    return tuple(map(Channel.parse, specs))


def _devices(specs: dict[str, list[str]]) -> tuple[DeviceConfig, ...]:
    """Returns the devices; imports what kinds there are and no more: `run` is judged by its start-up time."""
    found: list[DeviceConfig] = []
    if specs["disk"]:
        from ring3.tools.devices.disk import Disk

        found += [Disk.parse(spec) for spec in specs["disk"]]
    if specs["p9"]:
        from ring3.tools.devices import p9

        found += p9.parse_all(specs["p9"])
    if specs["vfb"]:
        from ring3.tools.devices import vfb

        found += vfb.parse_all(specs["vfb"])
    if specs["vif"]:
        from ring3.tools.devices import vif

        found += vif.parse_all(specs["vif"])
    return tuple(found)


def _cmdline(texts: dict[str, str]) -> str:
    if "cmdline" in texts:  # then root and extra have no effect
        return texts["cmdline"]
    return " ".join([*([f"root={texts['root']}"] if texts.get("root") else []), *texts.get("extra", "").split()])


@dataclass(slots=True)
class _File:
    """What a configuration file says."""

    texts: dict[str, str] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    lists: dict[str, list[str]] = field(default_factory=dict)
    cpuid: list[Wish] = field(default_factory=list)


def _from_file(path: Path) -> _File:
    from ring3.tools import config_file

    file = _File()
    texts, numbers, lists = file.texts, file.numbers, file.lists
    for key, setting in config_file.read(path).items():
        value = setting.value
        if key in _TEXTS and isinstance(value, str):
            texts[key] = value
        elif key in _NUMBERS and isinstance(value, int) and value > 0:
            numbers[key] = value
        elif key in _LISTS and isinstance(value, list) and all(isinstance(item, str) for item in value):
            lists[key] = [str(item) for item in value]
        elif key == "cpuid":
            file.cpuid = _cpuid_of_file(path, setting)
        else:
            raise _refusal(path, key, setting)
    if texts.get("type", "pv") != "pv" or texts.get("builder", "linux") not in ("linux", "generic"):
        raise ConfigError("domains are paravirtualized: type is pv", file=path, key="type")
    if texts.get("on_reboot", "restart") not in tuple(OnReboot):
        raise ConfigError(f"it is one of {', '.join(OnReboot)}", file=path, key="on_reboot")
    if texts.get("tsc_mode", "default") not in tuple(TscMode):
        raise ConfigError(f"it is one of {', '.join(TscMode)}", file=path, key="tsc_mode")
    return file


def _cpuid_of_file(path: Path, setting: Setting) -> list[Wish]:
    from ring3.tools import cpuid

    value = setting.value
    try:
        if isinstance(value, str):
            return cpuid.parse_string(value)
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return cpuid.parse_list(str(item) for item in value)
    except ValueError as error:
        raise ConfigError(str(error), file=path, line=setting.line, key="cpuid") from error
    raise ConfigError("it is a string or a list of strings", file=path, line=setting.line, key="cpuid")


def _refusal(path: Path, key: str, setting: Setting) -> ConfigError:
    kinds = ((_TEXTS, "a string"), (_NUMBERS, "a positive number"), (_LISTS, "a list of strings"))
    wanted = next((kind for keys, kind in kinds if key in keys), None)
    message = f"it is {wanted}" if wanted else "this setting is not supported"
    return ConfigError(message, file=path, line=setting.line, key=key)

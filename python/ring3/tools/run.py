"""`ring3 run`: one guest in the foreground, with a machine of its own, from start to end."""

from __future__ import annotations

import gc
import signal
from typing import TYPE_CHECKING, Final

from ring3.tools import launch, rundir
from ring3.tools.launch import MachineOptions

if TYPE_CHECKING:
    from ring3.tools.config import DomainConfig

_MACHINE_OVERHEAD_MIB: Final = 16
_DEVICE_MIB: Final = 3
"""Frames of domain 0 that a back end may need for a device."""
EXIT_DESTROYED: Final = 4


def machine_mib(guest_mib: int, nr_devices: int = 0) -> int:
    """Returns how large a machine is that holds one guest: M2P, shared frames and slack come on top. It is sparse."""
    return guest_mib + guest_mib // 128 + _MACHINE_OVERHEAD_MIB + nr_devices * _DEVICE_MIB


class _TerminatedError(BaseException):
    """SIGTERM or SIGHUP came before the guest had a console to watch them."""


def _terminate(_number: int, _frame: object) -> None:
    raise _TerminatedError


def run(config: DomainConfig, *, engine: str) -> int:
    """Runs the guest to its end and returns the exit code. Raises Error where it could not start."""
    # Until the guest runs nothing becomes garbage, and a collector that looks for it costs time, and shared pages.
    gc.disable()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _terminate)
    try:
        return _run(config, engine)
    except _TerminatedError:
        return EXIT_DESTROYED


def _run(config: DomainConfig, engine: str) -> int:
    launch.check_host_memory(config.memory_mib)
    place = rundir.private()
    try:
        options = MachineOptions(
            machine_mib(config.memory_mib, len(config.devices)), launch.pcpus_for(config.nr_vcpus_max), engine
        )
        machine = launch.start(place, options, in_background=False)
        try:
            # Imported only now, while the machine starts up beside us.
            from ring3.tools import foreground

            return foreground.run_on(machine, config)
        finally:
            machine.stop()
    finally:
        place.remove()

"""`ring3 run`: one guest in the foreground, with a machine of its own, from start to end."""

from __future__ import annotations

import contextlib
import sys
from typing import Final

from ring3.errors import ConnectionLostError, DomainNotFound
from ring3.tools import launch, rundir, store_nodes
from ring3.tools.config import DomainConfig, OnReboot
from ring3.tools.crash import crash_report
from ring3.tools.ending import Ending, ending_of
from ring3.tools.launch import Machine, MachineOptions
from ring3.tools.terminal import Attachment, Left, connect, raw_mode
from ring3.tools.toolstack import Domain, Images, Toolstack, load_images

EXIT_POWERED_OFF: Final = 0
EXIT_NOT_STARTED: Final = 1
EXIT_CRASHED: Final = 3
EXIT_DESTROYED: Final = 4
_EXIT_OF: Final = {
    Ending.POWEROFF: EXIT_POWERED_OFF,
    Ending.REBOOT: EXIT_POWERED_OFF,
    Ending.SUSPEND: EXIT_POWERED_OFF,
    Ending.CRASH: EXIT_CRASHED,
    Ending.WATCHDOG: EXIT_CRASHED,
    Ending.UNKNOWN: EXIT_CRASHED,
    Ending.DESTROYED: EXIT_DESTROYED,
}
_MACHINE_OVERHEAD_MIB: Final = 16


def machine_mib(guest_mib: int) -> int:
    """Returns how large a machine is that holds one guest: M2P, shared frames and slack come on top. It is sparse."""
    return guest_mib + guest_mib // 128 + _MACHINE_OVERHEAD_MIB


def run(config: DomainConfig, *, engine: str) -> int:
    """Runs the guest to its end and returns the exit code. Raises Error where it could not start."""
    launch.check_host_memory(config.memory_mib)
    place = rundir.private()
    try:
        options = MachineOptions(machine_mib(config.memory_mib), launch.pcpus_for(config.nr_vcpus), engine)
        machine = launch.start(place, options, in_background=False)
        try:
            images = load_images(config)
            return _run_on(machine, config, images)
        finally:
            machine.stop()
    finally:
        place.remove()


def _run_on(machine: Machine, config: DomainConfig, images: Images) -> int:
    try:
        toolstack = Toolstack(machine.rundir)
    except ConnectionLostError:
        machine.wait_until_ready()  # raises with ring3d's own reason, if it has one
        raise
    with toolstack:
        has_started = False
        try:
            domain = toolstack.create(config, images)
            has_started = True
            with raw_mode() as is_terminal:
                return _Foreground(toolstack, config, images, Attachment(is_terminal=is_terminal)).run(domain)
        except ConnectionLostError as error:
            if not has_started:
                raise
            print(f"ring3: {error}", file=sys.stderr)
            return EXIT_DESTROYED


class _Foreground:
    """The guest and its restarts."""

    def __init__(self, toolstack: Toolstack, config: DomainConfig, images: Images, attachment: Attachment) -> None:
        self._toolstack = toolstack
        self._config = config
        self._images = images
        self._attachment = attachment
        self._ending: Ending | None = None

    def run(self, domain: Domain) -> int:
        """Stays with the domain, and with those that take its place after a reboot; returns the exit code."""
        self._toolstack.xenstore.watch("@releaseDomain", "end")
        while True:
            ending, report = self._stay_with(domain)
            if ending is Ending.REBOOT and self._config.on_reboot is OnReboot.RESTART:
                domain = self._toolstack.create(self._config, self._images)
                continue
            if report:
                sys.stderr.write(report.replace("\n", "\r\n") if sys.stderr.isatty() else report)
            return _EXIT_OF[ending]

    def _stay_with(self, domain: Domain) -> tuple[Ending, str]:
        """Attaches to one domain until it ends, and destroys what is left of it."""
        node = f"{store_nodes.home(domain.domid)}/domid"
        self._toolstack.xenstore.watch(node, "end")
        self._ending = None
        console = connect(self._toolstack.rundir.console(domain.domid))
        with console:
            left = Left.BY_EVENT
            if not self._has_ended(domain):
                source = self._toolstack.xenstore
                left = self._attachment.run(console, source, lambda: self._has_ended(domain))
            if left in (Left.BY_KEY, Left.BY_SIGNAL, Left.OUTPUT_CLOSED):
                self._ending = Ending.DESTROYED
            elif self._ending is None and not self._has_ended(domain):
                # The console went first: whoever destroys a domain detaches that before.
                self._wait_for_end(domain)
            ending = self._ending or Ending.DESTROYED
            is_crash = _EXIT_OF[ending] == EXIT_CRASHED
            report = crash_report(self._toolstack.conn, domain.domid, ending) if is_crash else ""
            with contextlib.suppress(DomainNotFound):
                self._toolstack.destroy(domain.domid)
            self._attachment.drain(console)
        self._toolstack.xenstore.unwatch(node, "end")
        return ending, report

    def _has_ended(self, domain: Domain) -> bool:
        for _event in self._toolstack.xenstore.events():
            pass  # any may be about this domain: the hypervisor knows
        self._ending = ending_of(self._toolstack.conn, domain.domid, domain.handle)
        return self._ending is not None

    def _wait_for_end(self, domain: Domain) -> None:
        while not self._has_ended(domain):
            if self._toolstack.xenstore.next_event(timeout_s=2.0) is None:
                return

"""The guest of `ring3 run`: its console, its reboots, its end."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import Final

from ring3.errors import ConnectionLostError, DomainNotFound, Error
from ring3.libs.process import settle
from ring3.tools import store_nodes
from ring3.tools.config import DomainConfig, OnReboot
from ring3.tools.console_stream import ConsoleStream
from ring3.tools.ending import Ending, ending_of
from ring3.tools.launch import Machine
from ring3.tools.run import EXIT_DESTROYED
from ring3.tools.terminal import Attachment, Left, raw_mode
from ring3.tools.toolstack import Domain, Toolstack, load_images

EXIT_POWERED_OFF: Final = 0
EXIT_NOT_STARTED: Final = 1
EXIT_CRASHED: Final = 3
_EXIT_OF: Final = {
    Ending.POWEROFF: EXIT_POWERED_OFF,
    Ending.REBOOT: EXIT_POWERED_OFF,
    Ending.SUSPEND: EXIT_POWERED_OFF,
    Ending.CRASH: EXIT_CRASHED,
    Ending.WATCHDOG: EXIT_CRASHED,
    Ending.UNKNOWN: EXIT_CRASHED,
    Ending.DESTROYED: EXIT_DESTROYED,
}


def run_on(machine: Machine, config: DomainConfig) -> int:
    """Runs a guest on a machine of its own to its end; returns the exit code. Raises Error where it could not start."""
    images = load_images(config)
    try:
        toolstack = Toolstack(machine.rundir)
    except Error:
        machine.wait_until_ready()  # raises with ring3d's own reason, if it has one
        raise
    with toolstack:
        has_started = False
        try:
            domain = toolstack.create(config, images)
            has_started = True
            del images  # a reboot, which is rare, reads them again
            gc.enable()
            settle()
            toolstack.conn.trim()
            if os.isatty(0) and os.isatty(2):
                print("ring3: Ctrl-] leaves, and destroys the guest", file=sys.stderr)
            with raw_mode() as is_terminal:
                return _Foreground(toolstack, config, Attachment(is_terminal=is_terminal)).run(domain)
        except ConnectionLostError as error:
            if not has_started:
                raise
            print(f"ring3: {error}", file=sys.stderr)
            return EXIT_DESTROYED


class _Foreground:
    """The guest and its restarts."""

    def __init__(self, toolstack: Toolstack, config: DomainConfig, attachment: Attachment) -> None:
        self._toolstack = toolstack
        self._config = config
        self._attachment = attachment
        self._ending: Ending | None = None

    def run(self, domain: Domain) -> int:
        """Stays with the domain, and with those that take its place after a reboot; returns the exit code."""
        self._toolstack.xenstore.watch("@releaseDomain", "end")
        while True:
            ending, report = self._stay_with(domain)
            if ending is Ending.REBOOT and self._config.on_reboot is OnReboot.RESTART:
                domain = self._toolstack.create(self._config, load_images(self._config))
                continue
            if report:
                sys.stderr.write(report.replace("\n", "\r\n") if sys.stderr.isatty() else report)
            return _EXIT_OF[ending]

    def _stay_with(self, domain: Domain) -> tuple[Ending, str]:
        """Attaches to one domain until it ends, and destroys what is left of it."""
        node = f"{store_nodes.home(domain.domid)}/domid"
        self._toolstack.xenstore.watch(node, "end")
        self._ending = None
        toolstack = self._toolstack
        console = ConsoleStream(
            toolstack.rundir.console_stream(domain.domid), lambda: toolstack.expects_console(domain, 0)
        )
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
            report = ""
            if is_crash:
                from ring3.tools.crash import crash_report

                report = crash_report(self._toolstack.conn, domain.domid, ending)
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

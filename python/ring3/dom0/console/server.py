"""The console daemon's loop: news of domains and devices, and bytes whenever there are some."""

from __future__ import annotations

import logging
import os
import select
from pathlib import Path

from ring3.dom0.console import extra
from ring3.dom0.console.extra import ExtraConsoles
from ring3.dom0.console.hub import ConsoleHub
from ring3.dom0.keeper import Keeper
from ring3.dom0.poller import Poller
from ring3.errors import ConnectionLostError
from ring3.libs.connection import Connection
from ring3.libs.device import Device
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)


class Server:
    """consoled. Readable `stop_fd` ends run()."""

    def __init__(
        self, conn: Connection, xenstore: XenstoreClient, directory: Path, stop_fd: int, keeper: Keeper | None
    ) -> None:
        self._xenstore = xenstore
        self._poller = Poller()
        self._hub = ConsoleHub(conn, directory, self._poller, keeper)
        self._extra = ExtraConsoles(xenstore, self, self._xenstore.is_introduced)
        self._is_stopped = False
        for fd, handler in (
            (stop_fd, self._stop),
            (self._hub.fileno(), self._hub.take_events),
            (xenstore.fileno(), lambda _events: None),  # taken at the next turn
        ):
            self._poller.watch(fd, select.EPOLLIN, handler)

    def run(self) -> None:
        """Serves until told to stop, or until hypervisor or xenstored is gone: then every console ends."""
        try:
            self._xenstore.watch("@introduceDomain", "introduce")
            self._xenstore.watch("@releaseDomain", "release")
            self._extra.begin()
            while self._take_news():
                pass
            self._hub.finish_leftovers()
            self._xenstore.write("/tool/consoled", str(os.getpid()))  # tells `ring3 up` that consoles are served
            while not self._is_stopped:
                self._turn()
        except ConnectionLostError as error:
            _log.info("consoled: %s", error)
        self._hub.close_all()
        self._poller.close()

    def _turn(self) -> None:
        # Before waiting: events that came along with a reply make no descriptor readable.
        while self._take_news():
            pass
        self._poller.wait(0 if self._hub.runnable else None)
        self._hub.serve()

    def _stop(self, _events: int) -> None:
        self._is_stopped = True

    def _take_news(self) -> bool:
        events = list(self._xenstore.events())
        tokens = {token for _path, token in events}
        if "release" in tokens:
            self._look_for_gone_domains()
        if "introduce" in tokens:
            self._look_for_new_domains()
            self._extra.look_at_all()  # their nodes were there before the domain was introduced
        for path in dict.fromkeys(path for path, token in events if token == extra.TOKEN):
            self._extra.take(path)
        return bool(events)

    # -- domains

    def _look_for_new_domains(self) -> None:
        for name in self._xenstore.directory("/local/domain"):
            if not name.isdigit() or name == "0" or self._hub.is_open(int(name), 0):
                continue
            if self._xenstore.is_introduced(int(name)):
                self._open(int(name))

    def _open(self, domid: int) -> None:
        home = f"/local/domain/{domid}/console"
        ring_ref = self._xenstore.read_optional(f"{home}/ring-ref")
        port = self._xenstore.read_optional(f"{home}/port")
        if not (ring_ref and port and ring_ref.isdigit() and port.isdigit()):
            return
        console = self._hub.open_first(domid, int(ring_ref), int(port))
        if console is not None and self._xenstore.read_optional(f"{home}/output") == "pty":
            device = self._hub.attach_pty(console)
            if device is not None:
                self._xenstore.write(f"{home}/tty", device)

    def _look_for_gone_domains(self) -> None:
        for domid in self._hub.domids():
            self._hub.wake(domid)
            if not self._xenstore.is_introduced(domid):
                self._hub.close(domid, 0)
                self._extra.domain_is_gone(domid)

    # -- extra consoles

    def open_extra(self, device: Device, gref: int, port: int) -> bool:
        """Serves a console beyond the first; False if what the domain says of it makes no sense."""
        is_channel = self._xenstore.read_optional(f"{device.front}/name") is not None
        console = self._hub.open_extra(device.domid, device.number, gref, port, is_channel=is_channel)
        if console is None:
            return False
        if self._xenstore.read_optional(f"{device.back}/connection") == "pty":
            tty = self._hub.attach_pty(console)
            if tty is not None:
                self._xenstore.write(f"{device.front}/tty", tty)
        return True

    def close_extra(self, device: Device) -> None:
        """Serves it no more, if it did."""
        self._hub.close(device.domid, device.number)

    def is_open(self, device: Device) -> bool:
        """Returns whether it is served."""
        return self._hub.is_open(device.domid, device.number)


def serve(control_path: Path, xenstore_path: Path, directory: Path, stop_fd: int, keeper: Keeper | None = None) -> None:
    """Connects to hypervisor and xenstored and runs the daemon. Raises ConnectionLostError, HypercallError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    with Connection.connect(control_path) as conn, XenstoreClient.connect(xenstore_path) as xenstore:
        Server(conn, xenstore, directory, stop_fd, keeper).run()

"""The network back end's loop: news of devices, events of rings, packets from networks."""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Callable
from pathlib import Path

from ring3.dom0.keeper import Keeper
from ring3.dom0.net import device
from ring3.dom0.net.area import Areas
from ring3.dom0.net.capture import Captures
from ring3.dom0.net.device import NetDevices
from ring3.dom0.net.networks import Networks
from ring3.dom0.net.plumbing import Plumbing
from ring3.dom0.net.user import RETRY_S
from ring3.dom0.poller import Poller
from ring3.errors import ConnectionLostError
from ring3.libs.connection import Connection
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import Grants
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)


class Server:
    """The service. Readable `stop_fd` ends run()."""

    def __init__(
        self, conn: Connection, xenstore: XenstoreClient, directory: Path, stop_fd: int, keeper: Keeper | None
    ) -> None:
        self._xenstore = xenstore
        self._poller = Poller()
        self._events = EventChannels(conn)
        self._by_port: dict[int, Callable[[], None]] = {}
        self._plumbing = Plumbing(conn, lambda vif, reason: self._devices.break_off(vif, reason))
        self._networks = Networks(
            directory, self._poller, time.monotonic, keeper.take if keeper is not None else lambda _name: []
        )
        self._captures = Captures(directory, self._poller, self._networks)
        self._devices = NetDevices(
            xenstore,
            Grants(conn),
            self._events,
            Areas(conn, directory),
            directory,
            self._networks,
            self,
            self._plumbing.vifs,
        )
        self._is_stopped = False
        for fd, handler in (
            (stop_fd, self._stop),
            (self._events.fileno(), self._take_events),
            (xenstore.fileno(), lambda _events: None),  # taken at the next turn
        ):
            self._poller.watch(fd, select.EPOLLIN, handler)

    def run(self) -> None:
        """Serves until told to stop, or until hypervisor or xenstored is gone."""
        try:
            self._xenstore.watch("@releaseDomain", "release")
            self._devices.begin()
            self._xenstore.write("/tool/net", str(os.getpid()))
            while not self._is_stopped:
                self._turn()
        except ConnectionLostError as error:
            _log.info("net: %s", error)
        self._captures.close()
        self._poller.close()

    def _turn(self) -> None:
        while self._take_news():
            pass
        now = time.monotonic()
        delay = self._look_after_networks(now)
        for outer in list(self._networks.outer.values()):
            outer.receive(now)
        due = self._plumbing.turn(now)
        for outer in list(self._networks.outer.values()):
            outer.flush()
        self._plumbing.complete()
        self._captures.flush()
        self._notify()
        if any(outer.has_more() for outer in self._networks.outer.values()):
            due = 0.0
        if due is not None:
            delay = due if delay is None else min(delay, due)
        self._poller.wait(delay)

    def _look_after_networks(self, now: float) -> float | None:
        if self._devices.has_waiting:
            self._devices.look_for_networks()
        is_waiting = self._devices.has_waiting
        for outer in self._networks.outer.values():
            is_waiting = not outer.connect(now) or is_waiting
        return RETRY_S if is_waiting else None

    def _notify(self) -> None:
        for vif in self._plumbing.vifs:
            if vif.control is not None and vif.control.must_notify:
                vif.control.must_notify = False
                self._events.post(vif.control.port)
            for queue in vif.queues:
                is_tx, is_rx = queue.must_notify_tx, queue.must_notify_rx
                queue.must_notify_tx = queue.must_notify_rx = False
                ports = {port for port, must in ((queue.tx_port, is_tx), (queue.rx_port, is_rx)) if must}
                for port in ports:
                    self._events.post(port)

    # -- events

    def _stop(self, _events: int) -> None:
        self._is_stopped = True

    def _take_events(self, _events: int) -> None:
        for port in self._events.pending():
            wake = self._by_port.get(port)
            if wake is not None:
                wake()

    def _take_news(self) -> bool:
        events = list(self._xenstore.events())
        if any(token == "release" for _path, token in events):
            self._devices.look_for_gone_domains()
        for path in dict.fromkeys(path for path, token in events if token == device.TOKEN):
            self._devices.take(path)
        return bool(events)

    def add_port(self, port: int, wake: Callable[[], None]) -> None:
        """Has events of a port call wake()."""
        self._by_port[port] = wake

    def remove_port(self, port: int) -> None:
        """A port is ours no more."""
        self._by_port.pop(port, None)


def serve(control_path: Path, xenstore_path: Path, directory: Path, stop_fd: int, keeper: Keeper | None = None) -> None:
    """Connects to hypervisor and xenstored and runs the service. Raises ConnectionLostError, HypercallError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    with Connection.connect(control_path) as conn, XenstoreClient.connect(xenstore_path) as xenstore:
        Server(conn, xenstore, directory, stop_fd, keeper).run()

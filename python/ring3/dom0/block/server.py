"""The block service's loop: disks come and go in xenstore, and their rings are served whenever there is something."""

from __future__ import annotations

import logging
import mmap
import os
import select
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from ring3.dom0 import xenbus
from ring3.dom0.block.backend import KIND, Backend, Place
from ring3.dom0.block.pool import Pool
from ring3.dom0.block.vbd import Queue, Vbd
from ring3.dom0.keeper import Keeper
from ring3.dom0.poller import Poller
from ring3.dom0.xenbus import XenbusState
from ring3.errors import ConnectionLostError, RingError
from ring3.libs.connection import Connection
from ring3.libs.device import Device, back_directory
from ring3.libs.evtchn import EventChannels
from ring3.libs.gnttab import Grants
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
_TOKEN: Final = KIND
_SIZE_CHECK_S: Final = 1.0
"""How often images are looked at for a change of size."""
_ROUNDS_MAX: Final = 16
"""So often queues are served before anything else is looked at."""


class Server:
    """The block service. Readable `stop_fd` ends run()."""

    def __init__(
        self, conn: Connection, xenstore: XenstoreClient, directory: Path, stop_fd: int, keeper: Keeper | None
    ) -> None:
        self._xenstore = xenstore
        self._events = EventChannels(conn)
        self._pool = Pool()
        self._poller = Poller()
        self._memory = mmap.mmap(conn.memfd, conn.nr_frames << 12)
        self._place = Place(
            xenstore,
            Grants(conn),
            self._events,
            memoryview(self._memory),
            self._pool,
            directory,
            keeper,
            self._came_back,
            self._poller.fileno(),
            self._take_ports,
        )
        self._backends: dict[Device, Backend] = {}
        self._by_port: dict[int, tuple[Vbd, Queue]] = {}
        self._runnable: dict[Queue, Vbd] = {}
        self._is_stopped = False
        self._may_have_news = True
        for fd, handler in (
            (stop_fd, self._stop),
            (self._events.fileno(), self._take_events),
            (xenstore.fileno(), self._expect_news),
            (self._pool.fileno(), lambda _events: self._pool.finish()),
        ):
            self._poller.watch(fd, select.EPOLLIN, handler)
        self._next_size_check = 0.0

    def run(self) -> None:
        """Serves until told to stop, or until hypervisor or xenstored is gone."""
        try:
            self._xenstore.watch(back_directory(KIND), _TOKEN)
            self._xenstore.watch("@releaseDomain", "release")
            while not self._is_stopped:
                self._turn()
        except ConnectionLostError as error:
            _log.info("block: %s", error)
        # What the guests' rings hold stays as it is: a successor goes on with it.
        self._pool.close()

    # -- the loop

    def _stop(self, _events: int) -> None:
        self._is_stopped = True

    def _turn(self) -> None:
        while self._may_have_news:
            self._may_have_news = self._take_news()
        timeout_s = 0.0 if self._runnable else _SIZE_CHECK_S if self._backends else -1
        self._poller.wait(timeout_s)
        if self._is_stopped:
            return
        self._serve()
        if time.monotonic() >= self._next_size_check:
            self._next_size_check = time.monotonic() + _SIZE_CHECK_S
            for backend in list(self._backends.values()):
                backend.check_size()

    def _expect_news(self, _events: int) -> None:
        self._may_have_news = True

    def _take_events(self, _events: int) -> None:
        self._take_ports(self._events.pending())

    def _take_ports(self, ports: Iterable[int]) -> None:
        for port in ports:
            found = self._by_port.get(port)
            if found is not None:
                self._runnable[found[1]] = found[0]

    def _serve(self) -> None:
        """Serves all queues that have something to do, for some rounds while more keeps coming."""
        for _round in range(_ROUNDS_MAX):
            for queue, vbd in list(self._runnable.items()):
                try:
                    has_more = vbd.serve(queue, idle_ms=self._idle_ms())
                except RingError as error:
                    self._break(vbd, error)
                    continue
                if not has_more:
                    self._runnable.pop(queue, None)
                if queue.has_news:
                    queue.has_news = False
                    self._events.post(queue.port)
            if not self._runnable:
                return

    def _idle_ms(self) -> int:
        """Returns for how long there is nothing to do but for the one runnable queue, should nothing come."""
        if self._may_have_news or len(self._runnable) > 1:
            return 0
        return max(0, int((self._next_size_check - time.monotonic()) * 1000))

    def _came_back(self, vbd: Vbd, queue: Queue) -> None:
        self._runnable[queue] = vbd

    def _break(self, vbd: Vbd, error: RingError) -> None:
        for backend in self._backends.values():
            if backend.vbd is vbd:
                _log.warning("%s: %s", vbd.name, error)
                self._disconnect(backend)
                backend.fail(str(error))

    # -- devices

    def _take_news(self) -> bool:
        """Looks at the devices that events are about; returns whether there were any."""
        events = list(self._xenstore.events())
        devices: dict[Device, None] = {}
        for path, token in events:
            device = Device.from_path(path)
            if token == "release" or device is None:
                devices |= dict.fromkeys([*self._backends, *xenbus.devices(self._xenstore, KIND)])
            elif device.kind == KIND:
                devices[device] = None
        for device in devices:
            self._look(device)
        return bool(events)

    def _look(self, device: Device) -> None:
        backend = self._backends.get(device)
        is_there = xenbus.read_state(self._xenstore, device.back) is not None
        is_served = is_there and self._xenstore.is_introduced(device.domid)
        if backend is None:
            if not is_served or self._has_ended(device):
                return
            backend = self._backends[device] = Backend(self._place, device)
            backend.begin()
            self._xenstore.watch(f"{device.front}/state", _TOKEN)
        elif backend.is_waiting and is_served:
            backend.begin()
        step = backend.next_step() if is_served else None
        if step == "connect":
            vbd = backend.connect()
            if vbd is not None:
                for queue in vbd.queues:
                    self._by_port[queue.port] = vbd, queue
                    self._runnable[queue] = vbd
                    queue.has_news = True  # whoever served it before may not have come to say so
        elif step == "disconnect" or not is_served:
            self._disconnect(backend)
        backend.show_state(is_served=is_served)
        if backend.is_over:
            backend.end()
            del self._backends[device]
            self._xenstore.unwatch(f"{device.front}/state", _TOKEN)

    def _has_ended(self, device: Device) -> bool:
        """Returns whether a disk has been taken away, and only its nodes are there still."""
        state = xenbus.read_state(self._xenstore, device.back)
        return state is XenbusState.CLOSED and self._xenstore.read_optional(f"{device.back}/online") == "0"

    def _disconnect(self, backend: Backend) -> None:
        vbd = backend.vbd
        if vbd is None:
            return
        for queue in vbd.queues:
            self._by_port.pop(queue.port, None)
        while not vbd.is_idle:  # threads use the guest's pages
            select.select([self._pool.fileno()], [], [])
            self._pool.finish()
        for queue in vbd.queues:
            self._runnable.pop(queue, None)
        backend.disconnect()


def serve(control_path: Path, xenstore_path: Path, directory: Path, stop_fd: int, keeper: Keeper | None) -> None:
    """Connects to hypervisor and xenstored and runs the service. Raises ConnectionLostError, HypercallError."""
    directory.mkdir(mode=0o700, exist_ok=True)
    os.umask(0o077)
    with Connection.connect(control_path) as conn, XenstoreClient.connect(xenstore_path) as xenstore:
        Server(conn, xenstore, directory, stop_fd, keeper).run()

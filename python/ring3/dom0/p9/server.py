"""9pfsd: one process for each share, forked from this one before it has read anything of a domain.

This one reads only what domain 0 has written: which devices there are. It can start processes that reach any directory,
so it takes no byte from a domain; those that do are confined to theirs (`device`).
"""

from __future__ import annotations

import logging
import os
import select
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from ring3.dom0 import xenbus
from ring3.dom0.p9 import device as p9_device
from ring3.errors import ConnectionLostError
from ring3.libs.device import Device, back_directory
from ring3.libs.process import die_with_parent
from ring3.libs.xenstore import XenstoreClient

_log = logging.getLogger(__name__)
KIND: Final = "9pfs"
_PAUSE_S: Final = 0.5
"""A device's process that fails is started again after this."""


@dataclass(slots=True)
class _Child:
    """The process of a device; pid -1: none, and when there shall be one again."""

    pid: int = -1
    pidfd: int = -1
    start_at: float = 0.0


class Server:
    """The devices and their processes. Readable `stop_fd` ends run()."""

    def __init__(self, run_dir: Path, xenstore: XenstoreClient, stop_fd: int) -> None:
        self._run_dir = run_dir
        self._place = run_dir / KIND
        self._xenstore = xenstore
        self._stop_fd = stop_fd
        self._children: dict[Device, _Child] = {}
        self._poll = select.poll()
        for fd in (stop_fd, xenstore.fileno()):
            self._poll.register(fd, select.POLLIN)

    def run(self) -> None:
        """Serves until told to stop. Raises ConnectionLostError."""
        self._place.mkdir(mode=0o700, exist_ok=True)
        self._xenstore.watch(back_directory(KIND), "devices")
        while True:
            while list(self._xenstore.events()):
                self._look()
            now = time.monotonic()
            for device, child in self._children.items():
                if child.pid < 0 and child.start_at <= now:
                    self._start(device, child)
            waiting = [child.start_at - now for child in self._children.values() if child.pid < 0]
            ready = self._poll.poll(max(0, int(min(waiting) * 1000) + 1) if waiting else None)
            fds = {fd for fd, _events in ready}
            if self._stop_fd in fds:
                return
            for child in self._children.values():
                if child.pidfd in fds:
                    self._bury(child)
            for device in [device for device, child in self._children.items() if child.pid < 0]:
                if xenbus.read_state(self._xenstore, device.back) is None:
                    self._forget(device)

    def _look(self) -> None:
        for device in xenbus.devices(self._xenstore, KIND):
            self._children.setdefault(device, _Child())

    def _start(self, device: Device, child: _Child) -> None:
        child.pid = os.fork()
        if child.pid == 0:
            self._live(device)
        child.pidfd = os.pidfd_open(child.pid)
        self._poll.register(child.pidfd, select.POLLIN)

    def _live(self, device: Device) -> NoReturn:
        code = 1
        try:
            die_with_parent(signal.SIGKILL)
            for other in self._children.values():
                if other.pidfd >= 0:
                    os.close(other.pidfd)
            self._xenstore.close()
            place = self._place_of(device)
            code = p9_device.serve(self._run_dir / "control", self._run_dir / "xenstore", device, place)
        except ConnectionLostError as error:
            _log.info("%s", error)
            code = 0
        except BaseException:
            _log.exception("9pfs %d of domain %d failed", device.number, device.domid)
        finally:
            logging.shutdown()
            os._exit(code)

    def _bury(self, child: _Child) -> None:
        self._poll.unregister(child.pidfd)
        os.close(child.pidfd)
        _pid, status = os.waitpid(child.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        child.pid = child.pidfd = -1
        # Who kills it wants it back; what it cannot do now, it cannot in a moment.
        child.start_at = time.monotonic() + (0.0 if code == -signal.SIGKILL else _PAUSE_S)

    def _forget(self, device: Device) -> None:
        del self._children[device]
        shutil.rmtree(self._place_of(device), ignore_errors=True)

    def _place_of(self, device: Device) -> Path:
        return self._place / f"{device.domid}-{device.number}"


def serve(run_dir: Path, stop_fd: int) -> None:
    """Connects to xenstored and runs the daemon. Raises ConnectionLostError."""
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        Server(run_dir, xenstore, stop_fd).run()

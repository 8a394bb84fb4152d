"""Boot: from options to a machine that serves its control socket, until it is told to stop.

Lock order: none are held here; the core's threads call handlers while this thread waits in select.
"""

from __future__ import annotations

import gc
import logging
import os
import selectors
import signal
import socket
import time
from pathlib import Path
from typing import Final, NamedTuple

from ring3._core import CoreError, EngineUnavailableError, Hypervisor
from ring3.errors import EngineUnavailable, Error, NoMemory
from ring3.hypervisor import archives, control_socket, lockdown, log, registry, table
from ring3.hypervisor.state import Xen, host_cpu_khz

_log = logging.getLogger(__name__)

NR_FRAMES_PER_MIB: Final = 256
_ACCEPT_PAUSE_S: Final = 0.1
_ = table  # imported to register the hypercalls


class BootOptions(NamedTuple):
    """Xen's command line, as far as there is one."""

    memory_mib: int
    nr_pcpus: int
    engine: str = "bt"
    log_path: Path | None = None


def boot(options: BootOptions) -> Xen:
    """Makes the machine, starts its threads, and locks the process down. Raises NoMemory, EngineUnavailable, Error."""
    nr_frames = options.memory_mib * NR_FRAMES_PER_MIB
    try:
        log.set_up(options.log_path)
    except OSError as error:
        raise Error(f"the log file cannot be opened: {error}") from error
    cpu_khz = host_cpu_khz()
    archive_fds = archives.open_files()
    lockdown.limit_resources(nr_frames)
    lockdown.give_up_files()
    try:
        core = Hypervisor(
            nr_frames=nr_frames, nr_pcpus=options.nr_pcpus, engine=options.engine, archive_fds=archive_fds
        )
    except EngineUnavailableError as error:
        raise EngineUnavailable(options.engine, str(error.args[-1])) from error
    except CoreError as error:
        raise NoMemory(
            0, f"the host has no room for a machine of {options.memory_mib} MiB: {error.args[-1]}"
        ) from error
    log.add_console_ring(core)
    xen = Xen(core, cpu_khz)
    registry.install(xen, core)
    core.start()
    lockdown.give_up_system_calls()
    _log.info(
        "Ring3: %d MiB, %d pCPUs, engine %s, pid %d", options.memory_mib, options.nr_pcpus, options.engine, os.getpid()
    )
    return xen


def serve(xen: Xen, listener: socket.socket, lifetime_fd: int | None = None) -> None:
    """Serves the control socket until SIGTERM, SIGINT or end of file on `lifetime_fd`; then stops the machine."""
    wake_r, wake_w = socket.socketpair()
    wake_r.setblocking(False)
    wake_w.setblocking(False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: None)
    old_wakeup_fd = signal.set_wakeup_fd(wake_w.fileno(), warn_on_full_buffer=False)
    selector = selectors.DefaultSelector()
    selector.register(wake_r, selectors.EVENT_READ)
    if lifetime_fd is not None:
        selector.register(lifetime_fd, selectors.EVENT_READ)
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    try:
        while all(key.fileobj is listener for key, _events in selector.select()):
            _accept(xen, listener)
        _log.info("stopping: %d domains", len(xen.core.domain_list()))
    finally:
        selector.close()
        signal.set_wakeup_fd(old_wakeup_fd)
        wake_r.close()
        wake_w.close()
        listener.close()
        xen.core.stop()


def _accept(xen: Xen, listener: socket.socket) -> None:
    try:
        sock, _address = listener.accept()
    except BlockingIOError:
        return
    except OSError as error:
        # Out of descriptors, most likely: the peer stays in the queue, so give others time to close some.
        _log.warning("control socket: %s", error)
        time.sleep(_ACCEPT_PAUSE_S)
        return
    with sock:
        sock.setblocking(True)
        try:
            control_socket.welcome(xen.core, sock)
        except (OSError, CoreError) as error:
            _log.warning("control socket: a connection failed: %s", error)


def run(options: BootOptions, listener: socket.socket, ready_fd: int, lifetime_fd: int | None = None) -> int:
    """The whole life of ring3d. Writes "ok" or the reason of a failure to `ready_fd`. Returns the exit code."""
    try:
        xen = boot(options)
    except Error as error:
        os.write(ready_fd, str(error).encode())
        os.close(ready_fd)
        return 1
    os.write(ready_fd, b"ok")
    os.close(ready_fd)
    gc.freeze()  # what boot made stays
    serve(xen, listener, lifetime_fd)
    return 0

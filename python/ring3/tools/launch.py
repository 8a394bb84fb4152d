"""Starting the hypervisor and domain 0.

The programs are started by forking, with their sockets bound beforehand: they need no new interpreter, nobody has to
wait for a socket to appear, and they start up while the toolstack reads the kernel. What all of them import is imported
before the first fork, so that they share these pages (docs/design/0008-processes.md).

Who ends whom: each program watches a pipe of which its keeper holds the other end. The services end with ring3d; a
foreground ring3d ends with the command that started it.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

from ring3.errors import BuildError, Error
from ring3.libs.process import settle
from ring3.tools.rundir import RunDir

_READY_BYTES_MAX: Final = 4096
_SHARED_MODULES: Final = (
    *("argparse", "ctypes", "logging", "mmap", "resource", "selectors", "threading", "traceback"),
    *("ring3.libs.domctl", "ring3.libs.evtchn", "ring3.libs.foreignmemory", "ring3.libs.sysctl", "ring3.libs.xenstore"),
    "ring3.dom0.warden",
)
"""What more than one of the programs imports, and this one, too."""
_STOP_TIMEOUT_MS: Final = 10_000


class MachineOptions(NamedTuple):
    """What a machine is made of."""

    memory_mib: int
    nr_pcpus: int
    engine: str = "bt"


@dataclass(slots=True)
class Machine:
    """A machine that is starting or running: ring3d, and the supervisor of the services."""

    rundir: RunDir
    pid: int
    dom0_pid: int
    """The supervisor; in the foreground, the one that the warden has started last."""
    ready_fd: int
    lifetime_fd: int
    """End of file here stops a foreground ring3d; -1 for one in the background."""
    warden: threading.Thread | None = None
    """Of a foreground machine: it waits for the supervisor."""

    def wait_until_ready(self) -> None:
        """Waits for ring3d to have booted. Raises Error with the reason why it did not."""
        message = b""
        while chunk := os.read(self.ready_fd, _READY_BYTES_MAX):
            message += chunk
            if message == b"ok":
                return
        raise Error(message.decode(errors="replace") or "the hypervisor ended while it booted")

    def stop(self) -> None:
        """Ends a foreground machine and waits for its processes."""
        if self.lifetime_fd >= 0:
            os.close(self.lifetime_fd)
            self.lifetime_fd = -1
        _reap(self.pid)
        if self.warden is not None:
            self.warden.join(_STOP_TIMEOUT_MS / 1000)
            if self.warden.is_alive():
                _reap(self.dom0_pid)
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1


def start(rundir: RunDir, options: MachineOptions, *, in_background: bool) -> Machine:
    """Starts ring3d and the supervisor of the services; returns at once. Raises ConfigError if one is running there."""
    lock_fd = rundir.take_lock()
    rundir.remove_sockets()
    rundir.console_dir.mkdir(mode=0o700, exist_ok=True)
    control = _listen(rundir.control, socket.SOCK_SEQPACKET)
    xenstore = _listen(rundir.xenstore, socket.SOCK_STREAM)
    requests = _listen(rundir.requests, socket.SOCK_SEQPACKET)
    ready_r, ready_w = os.pipe()
    # ring3d's own lifetime; and the services', whose other end ring3d holds.
    life_r, life_w = os.pipe()
    services_r, services_w = os.pipe()
    _prepare_to_fork()

    log = ["--log", str(rundir.log)] if in_background else []
    errors = rundir.path / "stderr.log" if in_background else None
    hypervisor = [
        *("--memory", str(options.memory_mib), "--pcpus", str(options.nr_pcpus), "--engine", options.engine),
        *("--listen-fd", str(control.fileno()), "--ready-fd", str(ready_w), *log),
        *(() if in_background else ("--lifetime-fd", str(life_r))),
    ]

    def run_hypervisor() -> int:
        rundir.pid_file.write_text(f"{os.getpid()}\n")
        # It removes no socket at its end: it gives up the file system. `ring3 down` does, or who starts the next one.
        return _program("ring3.hypervisor.__main__", hypervisor)

    pid = _fork(
        run_hypervisor,
        name="ring3d",
        keep={lock_fd, control.fileno(), ready_w, services_w, *(() if in_background else (life_r,))},
        errors=errors,
    )
    dom0 = [
        *("supervisor", "--run-dir", str(rundir.path), "--lifetime-fd", str(services_r)),
        *("--xenstore-fd", str(xenstore.fileno()), "--requests-fd", str(requests.fileno())),
        *(("--log-dir", str(rundir.path), "--watched") if in_background else ()),
    ]
    sockets = (xenstore, requests)
    if in_background:
        keep = {services_r, *(sock.fileno() for sock in sockets)}
        dom0_pid = _fork(lambda: _program("ring3.dom0.__main__", dom0), name="ring3-dom0", keep=keep, errors=errors)
        os.close(life_w)
        machine = Machine(rundir, pid, dom0_pid, ready_r, -1)
        for sock in sockets:
            sock.close()
        os.close(services_r)
    else:
        machine = Machine(rundir, pid, 0, ready_r, life_w)
        machine.warden = _watch_dom0(machine, dom0, services_r, sockets)
    control.close()
    for fd in (lock_fd, ready_w, life_r, services_w):
        os.close(fd)
    return machine


def _watch_dom0(
    machine: Machine, arguments: list[str], lifetime_fd: int, sockets: tuple[socket.socket, ...]
) -> threading.Thread:
    """Starts the supervisor, and the thread that starts it again. Takes over the descriptors.

    A warden of its own, as a machine in the background has it, would cost some 4 MiB.
    """
    keep = {lifetime_fd, *(sock.fileno() for sock in sockets)}

    def start(shelf: Any, _ours: socket.socket) -> int:
        program = partial(_program, "ring3.dom0.__main__", arguments, shelf)
        machine.dom0_pid = _fork(program, name="ring3-dom0", keep=keep | shelf.fds(), errors=None)
        return machine.dom0_pid

    warden = importlib.import_module("ring3.dom0.warden").Warden(start, is_busy=True)

    def watch() -> None:
        try:
            warden.stay(lifetime_fd)
        finally:
            os.close(lifetime_fd)
            for sock in sockets:  # who asks a service that will never be there again is not to wait for an answer
                sock.close()

    thread = threading.Thread(target=watch, name="warden", daemon=True)
    thread.start()
    return thread


def fork_background(body: Callable[[], int], name: str, errors: Path) -> int:
    """Runs body() in a process that outlives this one and shares no descriptor with it. Returns its pid."""
    _prepare_to_fork()
    return _fork(body, name=name, keep=set(), errors=errors)


def wait_for_process(pid: int, timeout_ms: int) -> None:
    """Waits for any process to end, at most that long."""
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(pid)
        try:
            _wait_pidfd(pidfd, timeout_ms)
        finally:
            os.close(pidfd)


def stop_background(rundir: RunDir) -> None:
    """Ends the machine that `ring3 up` started and waits for it. Raises Error if there is none."""
    if not rundir.is_running():
        rundir.remove_sockets()
        raise Error(f"no hypervisor is running in {rundir.path}")
    try:
        pid = int(rundir.pid_file.read_text())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError) as error:
        raise Error(f"{rundir.pid_file}: {error}") from error
    dom0_pid = rundir.read_pid("dom0")
    try:
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
            if _wait_pidfd(pidfd):
                break
    finally:
        os.close(pidfd)
    if dom0_pid is not None:
        wait_for_process(dom0_pid, _STOP_TIMEOUT_MS)  # a next machine shall find nobody at work here
    if not rundir.is_running():
        rundir.remove_sockets()


def check_host_memory(wanted_mib: int) -> None:
    """Raises BuildError if the host's kernel does not have that much memory to give: machine memory is sparse, so it
    would end by the out-of-memory killer otherwise."""
    available_mib = available_host_mib()
    if available_mib is not None and wanted_mib > available_mib:
        raise BuildError(f"not enough memory on the host: {wanted_mib} MiB wanted, {available_mib} MiB available")


def pcpus_for(nr_wanted: int) -> int:
    """Returns that many pCPUs, or as many as the host gives this process, if that is less."""
    return max(1, min(nr_wanted, len(os.sched_getaffinity(0))))


def available_host_mib() -> int | None:
    """Returns what the host has left, its control group's limit considered; None where /proc does not say."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        available = (int(lines["MemAvailable"].split()[0]) + int(lines["SwapFree"].split()[0])) // 1024
    except (OSError, KeyError, ValueError):
        return None
    with contextlib.suppress(OSError, ValueError):
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        available = min(available, max(0, limit - used) >> 20)
    return available


def _listen(path: Path, kind: socket.SocketKind) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, kind | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen(64)
    return listener


def _prepare_to_fork() -> None:
    """Leaves nothing that would be printed twice, and makes what the children are to share."""
    for module in _SHARED_MODULES:
        importlib.import_module(module)
    sys.stdout.flush()
    sys.stderr.flush()
    settle()


def _program(module: str, arguments: list[str], *more: object) -> int:
    """Runs what `python -m module arguments` would."""
    main: Callable[..., int] = importlib.import_module(module).main
    return main(arguments, *more)


def _fork(body: Callable[[], int], *, name: str, keep: set[int], errors: Path | None) -> int:
    """Runs body() in a child that has these descriptors and no others but the standard ones. Returns its pid.

    Its standard error goes to the file `errors`, or where the caller's goes.
    """
    pid = os.fork()
    if pid == 0:
        _child(body, name, keep, errors)
    return pid


def _child(body: Callable[[], int], name: str, keep: set[int], errors: Path | None) -> NoReturn:
    code = 1
    try:
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        # A session of its own: a terminal's signals are for the command, which then ends us in good order.
        os.setsid()
        if errors is not None:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        # So that `ps` shows which is which.
        Path("/proc/self/comm").write_text(name)
        _close_others(keep | {0, 1, 2})
        gc.enable()
        code = body()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        os._exit(code)


def _close_others(keep: set[int]) -> None:
    first = 0
    for fd in sorted(keep):
        if first < fd:  # an empty range would close everything
            os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))


def _reap(pid: int) -> None:
    """Waits for a child; one that does not end by itself is killed."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if not _wait_pidfd(pidfd):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
    finally:
        os.close(pidfd)


def _wait_pidfd(pidfd: int, timeout_ms: int = _STOP_TIMEOUT_MS) -> bool:
    """Returns whether the process ended within the time limit."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(timeout_ms))

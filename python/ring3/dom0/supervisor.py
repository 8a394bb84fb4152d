"""Starts each service of domain 0 as a process, and starts it again whenever it ends.

The sockets that clients connect to are the supervisor's: who connects while a service is away waits a moment. What else
shall outlive a service, the supervisor keeps for it (`keeper`). Services that not every machine needs, and helper
programs, it starts when the toolstack asks for them (`requests`). Should it be killed itself, a successor goes on with
what lies on a shelf (`warden`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, NoReturn, TypeAlias

from ring3.dom0.helper import execute, last_line
from ring3.dom0.keeper import Kept
from ring3.dom0.requests import RequestError, RequestSocket
from ring3.dom0.warden import Shelf, count_short_lives

_log = logging.getLogger(__name__)
_PAUSE_MIN_S: Final = 0.05
_PAUSE_MAX_S: Final = 2.0
"""Before a service with short lives is started again: a pause that grows."""
_NR_QUICK_STARTS: Final = 5
"""So many short lives in a row are forgiven before any pause."""
_END_TIMEOUT_S: Final = 5.0


class Start(NamedTuple):
    """How a service begins: what it speaks to the supervisor by, and what its predecessor left to it, if that asked
    for a successor by another interpreter.
    """

    keeper_fd: int
    program: str | None = None
    fds: tuple[int, ...] = ()


Body: TypeAlias = Callable[[Start], int]
"""What a service does; returns its exit code."""


@dataclass(slots=True)
class _Service:
    """A service or helper, while it runs and between its lives."""

    name: str
    body: Body
    kept: Kept = field(default_factory=lambda: Kept(socket.socket(socket.AF_UNIX)))
    pid: int = -1
    pidfd: int = -1
    started_at: float = 0.0
    nr_short_lives: int = 0
    start_at: float = 0.0
    program: str | None = None
    fds: list[int] = field(default_factory=list)
    helper_fds: list[int] = field(default_factory=list)
    """What a helper program gets at each start."""
    is_helper: bool = False


class Supervisor:
    """The services, until the lifetime pipe ends. They watch that pipe themselves."""

    def __init__(
        self,
        bodies: Mapping[str, Body],
        lifetime_fd: int,
        run_dir: Path,
        *,
        listener: socket.socket | None = None,
        on_demand: Collection[str] = (),
        shelf: Shelf | None = None,
    ) -> None:
        """`on_demand` names the services that run only once somebody asks for them at `listener`; on `shelf` lies what
        a successor of this process needs.
        """
        self._bodies = bodies
        self._shelf = shelf if shelf is not None else Shelf()
        self._services = [self._new_service(name, body) for name, body in bodies.items() if name not in on_demand]
        self._lifetime_fd = lifetime_fd
        self._run_dir = run_dir
        self._given: dict[str, list[int]] = {}
        self._requests = RequestSocket(listener, self) if listener is not None else None
        self._clients: dict[int, socket.socket] = {}
        self._poll = select.poll()
        self._poll.register(lifetime_fd, select.POLLIN)
        if listener is not None:
            self._poll.register(listener, select.POLLIN)

    def _new_service(self, name: str, body: Body) -> _Service:
        service = _Service(name, body)
        service.kept.given = lambda wanted: self._given.get(wanted, [])
        service.kept.shelf, service.kept.owner = self._shelf, name
        return service

    def run(self) -> int:
        """Returns the exit code, when all have ended."""
        self._take_over()
        for service in self._services:
            if service.pid < 0:
                self._start(service)
        while not self._turn():
            pass
        return self._end()

    def _turn(self) -> bool:
        waiting = [service.start_at for service in self._services if service.pid < 0]
        timeout_ms = max(0, int((min(waiting) - time.monotonic()) * 1000) + 1) if waiting else None
        for fd, _events in self._poll.poll(timeout_ms):
            if fd == self._lifetime_fd:
                return True
            if self._take_request(fd):
                continue
            for service in self._services:
                if fd == service.pidfd:
                    self._bury(service)
                elif fd == service.kept.sock.fileno() and service.pid >= 0 and not service.kept.serve():
                    self._poll.unregister(fd)
        for service in self._services:
            if service.pid < 0 and time.monotonic() >= service.start_at:
                self._start(service)
        return False

    # -- what a predecessor has left

    def _take_over(self) -> None:
        """Goes on with the services, helpers and descriptors of a supervisor that was killed."""
        found = self._shelf.found
        for key, item in found.items():
            match key:
                case "given", name:
                    self._given[name] = item.fds
                case "helper", name:
                    self._services.append(self._new_helper(name, json.loads(item.value), item.fds))
                case "service", name if self._find(name) is None and name in self._bodies:
                    self._services.append(self._new_service(name, self._bodies[name]))
        for key, item in found.items():
            service = self._find(key[1])
            if service is None:
                continue
            match key:
                case "service", _name:
                    self._adopt(service, int(item.value), *item.fds)
                case "pty", _name, terminal:
                    service.kept.ptys[terminal] = item.fds[0], item.fds[1], item.value
                case (("kept" | "replace"), *_):
                    service.kept.find(key, item.value, item.fds)
        if found:
            names = ", ".join(service.name for service in self._services if service.pid >= 0)
            _log.warning("the supervisor was killed; its successor goes on with %s", names)

    def _adopt(self, service: _Service, pid: int, sock_fd: int, pidfd: int) -> None:
        service.kept.sock.close()
        service.kept.sock = socket.socket(fileno=sock_fd)
        service.pid, service.pidfd, service.started_at = pid, pidfd, time.monotonic()
        for fd in (pidfd, sock_fd):
            self._poll.register(fd, select.POLLIN)

    # -- what the toolstack asks for

    def _take_request(self, fd: int) -> bool:
        """Returns whether a descriptor was one of a toolstack."""
        if self._requests is None:
            return False
        if fd == self._requests.listener.fileno():
            client = self._requests.accept()
            if client is not None:
                self._clients[client.fileno()] = client
                self._poll.register(client, select.POLLIN)
            return True
        client = self._clients.get(fd)
        if client is None:
            return False
        if not self._requests.serve(client):
            self._poll.unregister(fd)
            self._clients.pop(fd).close()
        return True

    def need(self, service: str) -> None:
        """Runs a service from now on. Raises RequestError."""
        if service not in self._bodies:
            raise RequestError(f"no service {service}")
        if self._find(service) is None:
            self._services.append(self._new_service(service, self._bodies[service]))
            self._start(self._services[-1])

    def give(self, name: str, fds: list[int]) -> None:
        """Keeps descriptors under a name."""
        for fd in self._given.pop(name, []):
            os.close(fd)
        self._given[name] = fds
        self._shelf.put(("given", name), "", fds)

    def run_helper(self, name: str, command: Sequence[str], fds: list[int]) -> None:
        """Runs a program, and again should it end. Raises RequestError."""
        if self._find(name) is not None or name in self._bodies:
            for fd in fds:
                os.close(fd)
            raise RequestError(f"{name} runs already")
        service = self._new_helper(name, command, fds)
        self._shelf.put(("helper", name), json.dumps(list(command)), fds)
        self._services.append(service)
        self._start(service)

    def _new_helper(self, name: str, command: Sequence[str], fds: list[int]) -> _Service:
        service = self._new_service(name, lambda _start: execute(command, fds, self._helper_log(name)))
        service.helper_fds, service.is_helper = fds, True
        return service

    def forget(self, name: str) -> None:
        """Closes descriptors and ends a helper."""
        if name in self._given:
            for fd in self._given.pop(name):
                os.close(fd)
            self._shelf.drop("given", name)
        service = self._find(name)
        if service is None or not service.is_helper:
            return
        if service.pid >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(service.pidfd, signal.SIGTERM)
            self._poll.unregister(service.pidfd)
            with contextlib.suppress(KeyError):
                self._poll.unregister(service.kept.sock.fileno())
            self._await_end(service, time.monotonic() + _END_TIMEOUT_S)
            os.close(service.pidfd)
        for fd in service.helper_fds:
            os.close(fd)
        self._shelf.drop("helper", name)
        self._shelf.drop("service", name)
        service.kept.close()
        self._services.remove(service)
        self._helper_log(name).unlink(missing_ok=True)

    def _helper_log(self, name: str) -> Path:
        """Returns where a helper's standard error goes: what it says is not for the terminal of who began all."""
        return self._run_dir / f"helper-{name.replace('/', '-')}.log"

    def pid_of(self, name: str) -> int:
        """Returns the process of a service or helper. Raises RequestError."""
        service = self._find(name)
        if service is None or service.pid < 0:
            raise RequestError(f"{name} does not run")
        return service.pid

    def is_service(self, pid: int) -> bool:
        """Returns whether a process is a service of ours."""
        return any(service.pid == pid for service in self._services)

    def _find(self, name: str) -> _Service | None:
        return next((service for service in self._services if service.name == name), None)

    # -- processes

    def _start(self, service: _Service) -> None:
        # A pair for each life: a successor must not find an answer that its predecessor did not wait for.
        service.kept.sock.close()
        service.kept.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        go_r, go_w = os.pipe()
        pid = self._fork_for_warden() if service.is_helper and self._shelf.has_warden else os.fork()
        if pid == 0:
            os.close(go_w)
            # A service that nobody knows of would be there twice: it begins when it lies on the shelf.
            if not os.read(go_r, 1):
                os._exit(0)
            os.close(go_r)
            self._child(service, theirs.detach())
        theirs.close()
        os.close(go_r)
        for fd in service.fds:
            os.close(fd)
        service.program, service.fds = None, []
        service.pid = pid
        service.pidfd = os.pidfd_open(pid)
        self._shelf.put(("service", service.name), str(pid), [service.kept.sock.fileno(), service.pidfd])
        service.kept.settle()
        os.write(go_w, b"\0")
        os.close(go_w)
        service.started_at = time.monotonic()
        for fd in (service.pidfd, service.kept.sock.fileno()):
            self._poll.register(fd, select.POLLIN)

    def _fork_for_warden(self) -> int:
        """As os.fork(), but the child is the warden's: a program that ends with its parent then outlives this one."""
        pid_r, pid_w = os.pipe()
        between = os.fork()
        if between == 0:
            pid = os.fork()
            if pid:
                os.write(pid_w, str(pid).encode())
                os._exit(0)
            os.close(pid_r)
            os.close(pid_w)
            return 0
        os.close(pid_w)
        os.waitpid(between, 0)  # its child is the warden's then
        pid = int(os.read(pid_r, 16))
        os.close(pid_r)
        return pid

    def _child(self, service: _Service, keeper_fd: int) -> NoReturn:
        code = 1
        try:
            self._let_go(service)
            code = service.body(Start(keeper_fd, service.program, tuple(service.fds)))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            _log.exception("%s failed", service.name)
        finally:
            logging.shutdown()
            os._exit(code)

    def _let_go(self, service: _Service) -> None:
        """Closes in a child what is not the service's own."""
        self._shelf.close()
        for other in self._services:
            other.kept.close()
            if other is not service:
                for fd in other.helper_fds:
                    os.close(fd)
            if other.pidfd >= 0:
                os.close(other.pidfd)
        for fds in self._given.values():
            for fd in fds:
                os.close(fd)
        for client in self._clients.values():
            client.close()
        if self._requests is not None:
            self._requests.listener.close()

    def _bury(self, service: _Service) -> None:
        self._poll.unregister(service.pidfd)
        with contextlib.suppress(KeyError):  # it may have closed its side
            self._poll.unregister(service.kept.sock.fileno())
        os.close(service.pidfd)
        code = self._exit_code(service.pid)
        lived_s = time.monotonic() - service.started_at
        service.program, service.fds = service.kept.take()
        is_replaced = service.program is not None
        service.nr_short_lives = 0 if is_replaced else count_short_lives(service.nr_short_lives, lived_s, code)
        nr_slow = max(0, service.nr_short_lives - _NR_QUICK_STARTS)
        pause_s = min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2.0**nr_slow) if nr_slow else 0.0
        service.start_at = time.monotonic() + pause_s
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if not is_replaced:
            if service.is_helper and code > 0:
                how += f" ({last_line(self._helper_log(service.name))})"
            _log.warning("%s (%d) %s after %.1f s; it is started again", service.name, service.pid, how, lived_s)
        else:
            _log.info("%s (%d) makes room for %s", service.name, service.pid, service.program)
        service.pid = service.pidfd = -1

    def _end(self) -> int:
        deadline = time.monotonic() + _END_TIMEOUT_S
        for service in self._services:
            if service.pid >= 0:
                if service.is_helper:  # knows nothing of the lifetime pipe
                    with contextlib.suppress(ProcessLookupError):
                        signal.pidfd_send_signal(service.pidfd, signal.SIGTERM)
                self._await_end(service, deadline)
            if not service.is_helper:
                (self._run_dir / f"{service.name}.pid").unlink(missing_ok=True)
        (self._run_dir / "dom0.pid").unlink(missing_ok=True)
        return 0

    def _await_end(self, service: _Service, deadline: float) -> None:
        """Waits for a process to end, and kills it when the time is over."""
        poll = select.poll()
        poll.register(service.pidfd, select.POLLIN)
        if not poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(service.pidfd, signal.SIGKILL)
            poll.poll()
        self._exit_code(service.pid)

    def _exit_code(self, pid: int) -> int:
        """Buries a process that has ended: a child of ours, or of the warden."""
        try:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        except ChildProcessError:
            return self._shelf.exit_code(pid)

"""Starts each service of domain 0 as a process, and starts it again whenever it ends.

The sockets that clients connect to are the supervisor's: who connects while a service is away waits a moment. What else
shall outlive a service, the supervisor keeps for it (`keeper`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn, TypeAlias

from ring3.dom0.keeper import Kept

_log = logging.getLogger(__name__)
_SHORT_LIFE_S: Final = 2.0
"""A service that failed in less than this is started again after a pause that grows."""
_PAUSE_MIN_S: Final = 0.05
_PAUSE_MAX_S: Final = 2.0
_NR_QUICK_STARTS: Final = 5
"""So many short lives in a row are forgiven before any pause."""
_END_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Start:
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


class Supervisor:
    """The services, until the lifetime pipe ends. They watch that pipe themselves."""

    def __init__(self, bodies: Mapping[str, Body], lifetime_fd: int, run_dir: Path) -> None:
        self._services = [_Service(name, body) for name, body in bodies.items()]
        self._lifetime_fd = lifetime_fd
        self._run_dir = run_dir
        self._poll = select.poll()
        self._poll.register(lifetime_fd, select.POLLIN)

    def run(self) -> int:
        """Returns the exit code, when all have ended."""
        for service in self._services:
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
            for service in self._services:
                if fd == service.pidfd:
                    self._bury(service)
                elif fd == service.kept.sock.fileno() and service.pid >= 0 and not service.kept.serve():
                    self._poll.unregister(fd)
        for service in self._services:
            if service.pid < 0 and time.monotonic() >= service.start_at:
                self._start(service)
        return False

    def _start(self, service: _Service) -> None:
        # A pair for each life: a successor must not find an answer that its predecessor did not wait for.
        service.kept.sock.close()
        service.kept.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            self._child(service, theirs.detach())
        theirs.close()
        for fd in service.fds:
            os.close(fd)
        service.program, service.fds = None, []
        service.pid = pid
        service.pidfd = os.pidfd_open(pid)
        service.started_at = time.monotonic()
        for fd in (service.pidfd, service.kept.sock.fileno()):
            self._poll.register(fd, select.POLLIN)

    def _child(self, service: _Service, keeper_fd: int) -> NoReturn:
        code = 1
        try:
            for other in self._services:
                other.kept.close()
            code = service.body(Start(keeper_fd, service.program, tuple(service.fds)))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            _log.exception("%s failed", service.name)
        finally:
            logging.shutdown()
            os._exit(code)

    def _bury(self, service: _Service) -> None:
        self._poll.unregister(service.pidfd)
        with contextlib.suppress(KeyError):  # it may have closed its side
            self._poll.unregister(service.kept.sock.fileno())
        os.close(service.pidfd)
        _pid, status = os.waitpid(service.pid, 0)
        lived_s = time.monotonic() - service.started_at
        service.program, service.fds = service.kept.take()
        code = os.waitstatus_to_exitcode(status)
        # Who kills a service wants it back; one that fails by itself would do nothing but that.
        is_own_fault = service.program is None and code not in (-signal.SIGKILL, -signal.SIGTERM)
        service.nr_short_lives = service.nr_short_lives + 1 if lived_s < _SHORT_LIFE_S and is_own_fault else 0
        nr_slow = max(0, service.nr_short_lives - _NR_QUICK_STARTS)
        pause_s = min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2.0**nr_slow) if nr_slow else 0.0
        service.start_at = time.monotonic() + pause_s
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        if service.program is None:
            _log.warning("%s (%d) %s after %.1f s; it is started again", service.name, service.pid, how, lived_s)
        else:
            _log.info("%s (%d) makes room for %s", service.name, service.pid, service.program)
        service.pid = service.pidfd = -1

    def _end(self) -> int:
        deadline = time.monotonic() + _END_TIMEOUT_S
        for service in self._services:
            if service.pid >= 0:
                poll = select.poll()
                poll.register(service.pidfd, select.POLLIN)
                if not poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(service.pid, signal.SIGKILL)
                os.waitpid(service.pid, 0)
            (self._run_dir / f"{service.name}.pid").unlink(missing_ok=True)
        (self._run_dir / "dom0.pid").unlink(missing_ok=True)
        return 0

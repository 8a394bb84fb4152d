"""Starts each service of domain 0 as a process, and starts it again whenever it ends.

The sockets that clients connect to are the supervisor's: who connects while a service is away waits a moment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

_log = logging.getLogger(__name__)
_SHORT_LIFE_S: Final = 2.0
"""A service that lived shorter than this is started again after a pause that grows."""
_PAUSE_MIN_S: Final = 0.05
_PAUSE_MAX_S: Final = 2.0
_NR_QUICK_STARTS: Final = 5
"""So many short lives in a row are forgiven before any pause."""
_END_TIMEOUT_S: Final = 5.0


@dataclass(slots=True)
class _Service:
    name: str
    body: Callable[[], int]
    pid: int = -1
    pidfd: int = -1
    started_at: float = 0.0
    nr_short_lives: int = 0
    start_at: float = 0.0


def supervise(bodies: Mapping[str, Callable[[], int]], lifetime_fd: int, run_dir: Path) -> int:
    """Keeps the services running until the lifetime pipe ends, and they with it. Returns the exit code.

    The bodies watch the pipe themselves.
    """
    services = [_Service(name, body) for name, body in bodies.items()]
    poll = select.poll()
    poll.register(lifetime_fd, select.POLLIN)
    for service in services:
        _start(service, poll)
    while True:
        waiting = [service.start_at for service in services if service.pid < 0]
        timeout_ms = max(0, int((min(waiting) - time.monotonic()) * 1000) + 1) if waiting else None
        for fd, _events in poll.poll(timeout_ms):
            if fd == lifetime_fd:
                return _end(services, run_dir)
            for service in services:
                if fd == service.pidfd:
                    _bury(service, poll)
        for service in services:
            if service.pid < 0 and time.monotonic() >= service.start_at:
                _start(service, poll)


def _start(service: _Service, poll: select.poll) -> None:
    pid = os.fork()
    if pid == 0:
        _child(service)
    service.pid = pid
    service.pidfd = os.pidfd_open(pid)
    service.started_at = time.monotonic()
    poll.register(service.pidfd, select.POLLIN)


def _child(service: _Service) -> NoReturn:
    code = 1
    try:
        code = service.body()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        _log.exception("%s failed", service.name)
    finally:
        logging.shutdown()
        os._exit(code)


def _bury(service: _Service, poll: select.poll) -> None:
    poll.unregister(service.pidfd)
    os.close(service.pidfd)
    _pid, status = os.waitpid(service.pid, 0)
    lived_s = time.monotonic() - service.started_at
    code = os.waitstatus_to_exitcode(status)
    # Who kills a service wants it back; one that fails by itself would do nothing but that.
    is_own_fault = code not in (-signal.SIGKILL, -signal.SIGTERM)
    service.nr_short_lives = service.nr_short_lives + 1 if lived_s < _SHORT_LIFE_S and is_own_fault else 0
    nr_slow = max(0, service.nr_short_lives - _NR_QUICK_STARTS)
    pause_s = min(_PAUSE_MAX_S, _PAUSE_MIN_S * 2.0**nr_slow) if nr_slow else 0.0
    service.start_at = time.monotonic() + pause_s
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    _log.warning("%s (%d) %s after %.1f s; it is started again", service.name, service.pid, how, lived_s)
    service.pid = service.pidfd = -1


def _end(services: list[_Service], run_dir: Path) -> int:
    deadline = time.monotonic() + _END_TIMEOUT_S
    for service in services:
        if service.pid >= 0:
            poll = select.poll()
            poll.register(service.pidfd, select.POLLIN)
            if not poll.poll(max(0, int((deadline - time.monotonic()) * 1000))):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(service.pid, 9)
            os.waitpid(service.pid, 0)
        (run_dir / f"{service.name}.pid").unlink(missing_ok=True)
    (run_dir / "dom0.pid").unlink(missing_ok=True)
    return 0

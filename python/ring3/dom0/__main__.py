"""The services of domain 0 as a program: `python -m ring3.dom0 xenstored --run-dir R ...`.

`ring3 up` and `ring3 run` start a supervisor, which starts one process for each service and starts it again should it
end: `python -m ring3.dom0 supervisor --run-dir R ...`. With `--watched` a warden does the same for the supervisor.
A service may also be started by hand.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import os
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Final, NoReturn

from ring3.dom0.confine import confine
from ring3.dom0.keeper import Keeper
from ring3.dom0.supervisor import Start, Supervisor
from ring3.dom0.warden import Shelf, watch
from ring3.errors import ConnectionLostError
from ring3.libs.process import settle

_log = logging.getLogger("ring3.dom0")
SERVICES: Final = ("xenstored", "consoled", "block", "9pfsd", "displayd", "net")
ON_DEMAND: Final = ("block", "9pfsd", "displayd", "net")
"""Those that run once the toolstack asks for them (`requests`)."""
SUPERVISOR: Final = "supervisor"
_SERVICE_MODULES: Final = ("ring3.dom0.xenstored.server", "ring3.dom0.console.server")
"""What the supervisor imports, so that services share these pages, and start at once when they must start again."""


def main(arguments: list[str], shelf: Shelf | None = None) -> int:
    """Runs a service until the lifetime pipe ends or the hypervisor is gone; returns the exit code. `shelf` is for a
    supervisor whose warden is the caller.
    """
    parser = argparse.ArgumentParser(prog="ring3-dom0", description="Services of domain 0.")
    parser.add_argument("service", choices=(SUPERVISOR, *SERVICES))
    parser.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="state directory")
    parser.add_argument("--xenstore-fd", type=int, metavar="N", help="listening Unix socket of xenstored")
    parser.add_argument("--requests-fd", type=int, metavar="N", help="listening Unix socket of the supervisor")
    parser.add_argument("--lifetime-fd", type=int, metavar="N", help="pipe whose end of file stops them")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="for log files (standard error without it)")
    parser.add_argument("--watched", action="store_true", help="start the supervisor again should it be killed")
    # What a supervisor gives to a service that another interpreter shall run.
    parser.add_argument("--keeper-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--kept-fds", default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    # Without a keeper's pipe, one of our own that nobody closes: a service can so be started again by hand.
    if options.lifetime_fd is None:
        options.lifetime_fd = os.pipe()[0]
    if options.xenstore_fd is None and options.service in ("xenstored", SUPERVISOR):
        options.xenstore_fd = _listen(options.run_dir / "xenstore").detach()
    if options.service == SUPERVISOR and not options.watched:
        return _supervise(options, shelf or Shelf())
    if options.service == SUPERVISOR:
        with contextlib.suppress(OSError):
            Path("/proc/self/comm").write_text("ring3-warden")
        settle()
        return watch(partial(_supervise, options), options.lifetime_fd)
    return _serve(options.service, options)


def _supervise(options: argparse.Namespace, shelf: Shelf) -> int:
    """The life of the supervisor."""
    _begin(SUPERVISOR, options)
    for module in _SERVICE_MODULES:
        importlib.import_module(module)
    settle()
    bodies = {name: partial(_start, name, options) for name in SERVICES}
    listener = socket.socket(fileno=options.requests_fd) if options.requests_fd is not None else None
    supervisor = Supervisor(
        bodies, options.lifetime_fd, options.run_dir, listener=listener, on_demand=ON_DEMAND, shelf=shelf
    )
    return supervisor.run()


def _start(service: str, options: argparse.Namespace, start: Start) -> int:
    """The life of a service as a child of the supervisor."""
    if start.program is not None:
        _execute(service, start.program, start, options)
    options.keeper_fd = start.keeper_fd
    return _serve(service, options)


def _serve(service: str, options: argparse.Namespace) -> int:
    _begin(service, options)
    if service != "xenstored" and options.xenstore_fd is not None:
        # Who holds the listener of a xenstored that is gone keeps others waiting for an answer.
        os.close(options.xenstore_fd)
        options.xenstore_fd = None
    place: Path = options.run_dir
    keeper = Keeper(options.keeper_fd) if options.keeper_fd is not None else None
    if service != "9pfsd":  # that one confines the process of each share
        confine([place])
    try:
        match service:
            case "xenstored":
                from ring3.dom0.xenstored import server as xenstored

                listener = socket.socket(fileno=options.xenstore_fd)
                kept = [int(fd) for fd in options.kept_fds.split(",") if fd]
                state = place / "xenstored.state"
                xenstored.serve(place / "control", listener, options.lifetime_fd, state, keeper, kept)
            case "consoled":
                from ring3.dom0.console import server as consoled

                consoled.serve(place / "control", place / "xenstore", place / "console", options.lifetime_fd, keeper)
            case "block":
                from ring3.dom0.block import server as block

                block.serve(place / "control", place / "xenstore", place / "block", options.lifetime_fd, keeper)
            case "9pfsd":
                from ring3.dom0.p9 import server as p9

                p9.serve(place, options.lifetime_fd)
            case "net":
                from ring3.dom0.net import server as net

                net.serve(place / "control", place / "xenstore", place / "net", options.lifetime_fd, keeper)
            case "displayd":
                from ring3.dom0.display import server as display

                display.serve(place, options.lifetime_fd, keeper)
            case _:
                raise ValueError(f"no service {service}")
    except ConnectionLostError as error:
        _log.info("%s", error)
    except Exception:
        _log.exception("%s failed", service)
        return 1
    return 0


def _begin(name: str, options: argparse.Namespace) -> None:
    """Gives the process its name (`ps` shows it), its log, and the file that tells its process id."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text("ring3-dom0" if name == SUPERVISOR else name)
    logging.basicConfig(
        filename=options.log_dir / ("dom0.log" if name == SUPERVISOR else f"{name}.log") if options.log_dir else None,
        level=logging.INFO if options.log_dir else logging.ERROR,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    (options.run_dir / f"{'dom0' if name == SUPERVISOR else name}.pid").write_text(f"{os.getpid()}\n")


def _execute(service: str, program: str, start: Start, options: argparse.Namespace) -> NoReturn:
    """Goes on as a program of that interpreter."""
    for fd in (options.xenstore_fd, options.lifetime_fd, start.keeper_fd, *start.fds):
        os.set_inheritable(fd, True)
    words = ["-m", "ring3.dom0", service, "--run-dir", str(options.run_dir), "--keeper-fd", str(start.keeper_fd)]
    words += ["--xenstore-fd", str(options.xenstore_fd), "--lifetime-fd", str(options.lifetime_fd)]
    words += ["--log-dir", str(options.log_dir)] if options.log_dir else []
    os.execv(program, [program, *words, "--kept-fds", ",".join(map(str, start.fds))])  # noqa: S606


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen()
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

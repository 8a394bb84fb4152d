"""The services of domain 0 as a program: `python -m ring3.dom0 xenstored consoled --run-dir R ...`.

Each service is a thread with a connection to the hypervisor of its own. `ring3 up` starts one process for each service,
`ring3 run` one for both: that starts sooner.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from ring3.dom0.confine import confine
from ring3.errors import ConnectionLostError

_log = logging.getLogger("ring3.dom0")
SERVICES = ("xenstored", "consoled")


def main(arguments: list[str]) -> int:
    """Runs the services until the lifetime pipe ends or the hypervisor is gone; returns the exit code."""
    parser = argparse.ArgumentParser(prog="ring3-dom0", description="Services of domain 0.")
    parser.add_argument("services", nargs="+", choices=SERVICES)
    parser.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="state directory")
    parser.add_argument("--xenstore-fd", type=int, metavar="N", help="listening Unix socket of xenstored")
    parser.add_argument("--lifetime-fd", type=int, metavar="N", help="pipe whose end of file stops them")
    parser.add_argument("--log", type=Path, metavar="FILE", help="log file (standard error without it)")
    options = parser.parse_args(arguments)
    logging.basicConfig(
        filename=options.log,
        level=logging.INFO if options.log else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    # Without a keeper's pipe, one of our own that nobody closes: a service can so be started again by hand.
    stop_fd: int = options.lifetime_fd if options.lifetime_fd is not None else os.pipe()[0]
    bodies: list[Callable[[], None]] = []
    if "xenstored" in options.services:
        from ring3.dom0.xenstored import server as xenstored

        if options.xenstore_fd is not None:
            listener = socket.socket(fileno=options.xenstore_fd)
        else:
            listener = _listen(options.run_dir / "xenstore")
        bodies.append(partial(xenstored.serve, options.run_dir / "control", listener, stop_fd))
    if "consoled" in options.services:
        from ring3.dom0.console import server as consoled

        place: Path = options.run_dir
        bodies.append(partial(consoled.serve, place / "control", place / "xenstore", place / "console", stop_fd))
    # Before the first thread: it holds for this one and those that it starts.
    confine([options.run_dir])
    threads = [threading.Thread(target=_guarded, args=(body,)) for body in bodies[1:]]
    for thread in threads:
        thread.start()
    _guarded(bodies[0])
    for thread in threads:
        thread.join()
    return 0


def _guarded(body: Callable[[], None]) -> None:
    """Runs one service. One that fails takes its process along: a half-dead domain 0 helps nobody."""
    try:
        body()
    except ConnectionLostError as error:
        _log.info("%s", error)
    except Exception:
        _log.exception("a service of domain 0 failed")
        logging.shutdown()
        os._exit(1)


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    listener.bind(str(path))
    path.chmod(0o600)
    listener.listen()
    return listener


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

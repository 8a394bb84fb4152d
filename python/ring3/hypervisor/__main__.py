"""The program ring3d: `python -m ring3.hypervisor --listen-fd N --memory MiB --pcpus N`. The toolstack starts it."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from pathlib import Path

from ring3.hypervisor.boot import BootOptions, run


def main(arguments: list[str]) -> int:
    """Runs until told to stop; returns the exit code. Descriptors in the arguments become this process's own."""
    parser = argparse.ArgumentParser(prog="ring3d", description="The Ring3 hypervisor.")
    parser.add_argument("--memory", type=int, required=True, metavar="MiB", help="machine memory")
    parser.add_argument("--pcpus", type=int, required=True, metavar="N", help="worker threads that run vCPUs")
    parser.add_argument("--engine", default="bt", help="CPU engine")
    parser.add_argument("--log", type=Path, metavar="FILE", help="log file (two of 1 MiB at most)")
    parser.add_argument("--listen-fd", type=int, required=True, metavar="N", help="listening SOCK_SEQPACKET socket")
    parser.add_argument("--ready-fd", type=int, metavar="N", help='pipe that gets "ok" or the reason of a failure')
    parser.add_argument("--lifetime-fd", type=int, metavar="N", help="pipe whose end of file stops the machine")
    options = parser.parse_args(arguments)
    ready_fd = options.ready_fd if options.ready_fd is not None else os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    return run(
        BootOptions(options.memory, options.pcpus, options.engine, options.log),
        socket.socket(fileno=options.listen_fd),
        ready_fd,
        options.lifetime_fd,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""`python bench/xenstore.py`: operations a second on one connection to xenstored, and what the host gives at best.

Each operation is a request and its answer, waited for. The bare exchange is two processes that pass as many bytes to
and fro and do nothing else: what sockets and scheduling cost here. CPU time per read is xenstored's own.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ring3.libs.xenstore import XenstoreClient

_REQUEST_BYTES, _ANSWER_BYTES = 25, 32
_SECONDS = 1.0
_BATCH = 200


def rate(step: Callable[[], object]) -> float:
    """Returns how often a second a step can be done."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _SECONDS:
        for _ in range(_BATCH):
            step()
        count += _BATCH
    return count / elapsed


def bare_rate() -> float:
    """Returns the exchanges a second between two processes that do nothing but that."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        while theirs.recv(_REQUEST_BYTES):
            theirs.send(bytes(_ANSWER_BYTES))
        os._exit(0)
    theirs.close()

    def exchange() -> None:
        ours.send(bytes(_REQUEST_BYTES))
        ours.recv(_ANSWER_BYTES)

    found = rate(exchange)
    ours.close()
    os.wait()
    return found


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Prints the rows."""
    ring3 = str(Path(sys.executable).parent / "ring3")
    with tempfile.TemporaryDirectory() as directory:
        environment = {**os.environ, "RING3_RUN_DIR": directory}
        subprocess.run([ring3, "up", "--memory", "64"], env=environment, check=True, stdout=subprocess.DEVNULL)
        try:
            pid = int((Path(directory) / "xenstored.pid").read_text())
            with XenstoreClient.connect(Path(directory) / "xenstore") as xenstore:
                xenstore.write("/bench/a", "x" * 16)
                print(f"bare exchange    {bare_rate():>8.0f} /s")
                before, start = cpu_seconds(pid), time.perf_counter()
                reads = rate(lambda: xenstore.read("/bench/a"))
                cpu_us = (cpu_seconds(pid) - before) / (reads * (time.perf_counter() - start)) * 1e6
                print(f"read             {reads:>8.0f} /s   {cpu_us:.1f} us of xenstored's CPU time each")
                print(f"write            {rate(lambda: xenstore.write('/bench/a', 'y' * 16)):>8.0f} /s")
                tx = rate(lambda: xenstore.transaction(lambda tx_id: xenstore.write("/bench/a", "z", tx_id=tx_id)))
                print(f"transaction      {tx:>8.0f} /s   of one write each")
        finally:
            subprocess.run([ring3, "down"], env=environment, check=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python bench/xenstore_rates.py`: operations a second on one connection to xenstored, and from a guest by its ring.

The client is raw: bytes made beforehand, and no library. The bare exchange is two processes that pass as many bytes to
and fro and do nothing else: what sockets and scheduling cost here and now. It takes turns with the rest, the best of
many short stretches counts, and CPU time is xenstored's own, so other load on the machine shows least.
"""

import argparse
import contextlib
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from contest import ContestError
from shell import SCRIPT, SCRIPT_PATH, create, machine

from ring3.abi.xs_wire import XSD_SOCKMSG, XsType
from ring3.dev import initramfs, kernel

REPOSITORY = Path(__file__).parent.parent
GOAL_READS = 20_000
_STRETCH_S = 0.1
_NR_STRETCHES = 20
_NR_UNDER_WAY = 16
_PATH = b"/bench/a"
_GUEST_MIB = 256
_NR_GUEST_RUNS = 4


@dataclass(frozen=True)
class Rate:
    """Of one kind of operation."""

    text: str
    per_second: float
    cpu_us: float | None = None
    """Of xenstored, each."""


class RawClient:
    """A connection, and requests as bytes."""

    def __init__(self, path: Path) -> None:
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.connect(str(path))
        self.read = self.request(XsType.READ, _PATH + b"\0")
        self.write = self.request(XsType.WRITE, _PATH + b"\0" + b"y" * 16)

    @staticmethod
    def request(kind: int, payload: bytes, tx_id: int = 0) -> bytes:
        """Returns a request."""
        return XSD_SOCKMSG.pack(kind, 1, tx_id, len(payload)) + payload

    def ask(self, request: bytes) -> bytes:
        """Sends a request and returns the payload of its answer. Raises ContestError."""
        self._sock.sendall(request)
        answer = self._sock.recv(8192)
        if answer[0] == XsType.ERROR:
            raise ContestError(f"xenstored refuses: {answer[16:]!r}")
        return answer[16:]

    def ask_many(self, request: bytes, nr_answer_bytes: int) -> None:
        """Has a few requests under way at once."""
        self._sock.sendall(request * _NR_UNDER_WAY)
        left = nr_answer_bytes * _NR_UNDER_WAY
        while left:
            left -= len(self._sock.recv(left))

    def transaction(self) -> None:
        """One write in a transaction."""
        tx_id = int(self.ask(self.request(XsType.TRANSACTION_START, b"\0")).rstrip(b"\0"))
        self.ask(self.request(XsType.WRITE, _PATH + b"\0" + b"z" * 16, tx_id))
        self.ask(self.request(XsType.TRANSACTION_END, b"T\0", tx_id))


def cpu_seconds(pid: int) -> float:
    """Returns the CPU time that a process of one thread has had."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


@contextlib.contextmanager
def bare_exchange(nr_request_bytes: int, nr_answer_bytes: int) -> Iterator[Callable[[], object]]:
    """Yields what makes one exchange with a process that does nothing else."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        while theirs.recv(nr_request_bytes):
            theirs.send(bytes(nr_answer_bytes))
        os._exit(0)
    theirs.close()

    def exchange() -> None:
        ours.send(bytes(nr_request_bytes))
        ours.recv(nr_answer_bytes)

    with ours:
        yield exchange
    os.waitpid(child, 0)


def stretch(step: Callable[[], object]) -> tuple[int, float]:
    """Returns how often a step was done, and in how many seconds."""
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < _STRETCH_S:
        step()
        count += 1
    return count, elapsed


def measure_socket(run_dir: Path) -> list[Rate]:
    """Measures the operations of a client on the socket."""
    pid = int((run_dir / "xenstored.pid").read_text())
    client = RawClient(run_dir / "xenstore")
    client.ask(client.request(XsType.WRITE, _PATH + b"\0" + b"x" * 16))
    nr_answer_bytes = XSD_SOCKMSG.size + 16
    with bare_exchange(len(client.read), nr_answer_bytes) as exchange:
        steps: list[tuple[str, Callable[[], object], int]] = [
            ("bare exchange", exchange, 1),
            ("read, one after another", lambda: client.ask(client.read), 1),
            (
                f"read, {_NR_UNDER_WAY} under way",
                lambda: client.ask_many(client.read, nr_answer_bytes),
                _NR_UNDER_WAY,
            ),
            ("write", lambda: client.ask(client.write), 1),
            ("transaction of one write", client.transaction, 1),
        ]
        best = dict.fromkeys((text for text, _step, _nr in steps), 0.0)
        cpu = dict.fromkeys(best, 1.0)
        for _number in range(_NR_STRETCHES):
            for text, step, nr_operations in steps:
                before = cpu_seconds(pid)
                count, elapsed = stretch(step)
                count *= nr_operations
                best[text] = max(best[text], count / elapsed)
                cpu[text] = min(cpu[text], (cpu_seconds(pid) - before) / count)
    return [
        Rate(text, value, None if number == 0 else cpu[text] * 1e6) for number, (text, value) in enumerate(best.items())
    ]


def measure_guest(run_dir: Path, cache: Path, directory: Path) -> Rate:
    """Measures reads of a guest's process, by the kernel's device and the domain's ring. Raises ContestError."""
    program = directory / "xenstore"
    source = Path(__file__).parent / "xenstore" / "xenstore.c"
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    ramdisk = initramfs.build(directory, "xenstore", {"xenstore": program.read_bytes(), SCRIPT_PATH: SCRIPT})
    guest = create("guest", kernel.default(cache), ramdisk, _GUEST_MIB)
    pid = int((run_dir / "xenstored.pid").read_text())
    best, least_cpu = 0.0, 1.0
    for _number in range(_NR_GUEST_RUNS):
        before = cpu_seconds(pid)
        text = guest("/xenstore 1")
        found = re.search(r"row xenstore-read (\d+) ([0-9.]+)", text)
        if found is None:
            raise ContestError(f"no row: {text[-300:]!r}")
        count = int(found[1])
        best = max(best, count / float(found[2]))
        least_cpu = min(least_cpu, (cpu_seconds(pid) - before) / count)
    return Rate("read by a guest, one after another", best, least_cpu * 1e6)


def measure(cache: Path) -> list[Rate]:
    """Starts a machine of its own and measures all. Raises ContestError."""
    with machine(_GUEST_MIB + 64) as run_dir, tempfile.TemporaryDirectory() as directory:
        return [*measure_socket(run_dir), measure_guest(run_dir, cache, Path(directory))]


def table(rates: list[Rate]) -> str:
    """Returns the rows in Markdown."""
    lines = ["| xenstore, one connection | a second | CPU time of xenstored |", "|---|---:|---:|"]
    for rate in rates:
        cpu = "" if rate.cpu_us is None else f"{rate.cpu_us:.1f} us"
        lines.append(f"| {rate.text} | {rate.per_second:.0f} | {cpu} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the table."""
    argparse.ArgumentParser(description="Measures xenstored.").parse_args()
    print(table(measure(Path(os.environ.get("RING3_GUEST_CACHE", REPOSITORY / ".cache" / "guest")))))
    return 0


if __name__ == "__main__":
    sys.exit(main())

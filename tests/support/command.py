"""Runs the `ring3` command as a script would: by its exit code, its standard output and its standard error."""

import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finished:
    """A command that has ended."""

    exit_code: int
    stdout: str
    stderr: str

    def describe(self) -> str:
        """Returns all of it, for the message of an assertion."""
        return f"exit {self.exit_code}\n--- stdout\n{self.stdout[-6000:]}\n--- stderr\n{self.stderr[-6000:]}"


def ring3_path() -> str | None:
    """Returns the command of this Python's environment, else the one in PATH."""
    beside = Path(sys.executable).parent / "ring3"
    return str(beside) if beside.exists() else shutil.which("ring3")


class Ring3:
    """The command, with a state directory of its own."""

    def __init__(self, run_dir: Path) -> None:
        path = ring3_path()
        if path is None:
            raise FileNotFoundError("ring3")
        self.path = path
        self.environment = {**os.environ, "RING3_RUN_DIR": str(run_dir)}

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts the command with pipes for its console."""
        return subprocess.Popen(
            [self.path, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )

    def __call__(self, *arguments: str | Path, stdin: bytes | None = None, timeout_s: float = 60) -> Finished:
        """Runs the command to its end. Raises TimeoutError with what was printed; the command is then stopped."""
        process = subprocess.Popen(
            [self.path, *map(str, arguments)],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            try:
                stdout, stderr = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
                stdout, stderr = process.communicate()
            late = Finished(-1, stdout.decode(errors="replace"), stderr.decode(errors="replace"))
            raise TimeoutError(
                f"ring3 {' '.join(map(str, arguments))}: {timeout_s} s are over; {late.describe()}"
            ) from None
        return Finished(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


@contextmanager
def at_shell(ring3: Ring3, kernel: Path, ramdisk: Path) -> Iterator[Ring3]:
    """Runs a kernel until it is at its shell; gives the command for the machine that was made for it."""
    sizes = ("--memory", "256", "--cmdline", "console=hvc0 quiet")
    with ring3.start("run", "--kernel", str(kernel), "--ramdisk", str(ramdisk), *sizes) as process:
        assert process.stdout is not None
        assert b"SHELL-READY" in read_until(process.stdout.fileno(), b"SHELL-READY", 1, 60)
        yield Ring3(Path(ring3.environment["RING3_RUN_DIR"]) / f"run-{process.pid}")
        process.terminate()


@contextmanager
def dom0_process(ring3: Ring3, *lines: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of domain 0 that has done what `lines` of Python say, with its connection `conn`, and stays."""
    before = "import sys, time\nfrom ring3.libs.connection import Connection\nconn = Connection.connect(sys.argv[1])"
    program = "\n".join([before, *lines, "print('done', flush=True)", "time.sleep(60)"])
    control = Path(ring3.environment["RING3_RUN_DIR"]) / "control"
    with subprocess.Popen([sys.executable, "-c", program, control], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        yield process


def read_until(descriptor: int, text: bytes, nr_times: int, limit_s: float) -> bytes:
    """Reads until `text` came `nr_times`, the stream ends or the time is over; returns all that was read."""
    seen = b""
    end = time.monotonic() + limit_s
    while seen.count(text) < nr_times and (left := end - time.monotonic()) > 0:
        if not select.select([descriptor], [], [], left)[0]:
            break
        data = os.read(descriptor, 65536)
        if not data:
            break
        seen += data
    return seen

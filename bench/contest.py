"""Runs one contestant of the benchmark: boots it, times the marker, reads the program's rows, samples its memory."""

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from memory import used_bytes
from rows import BOOT_ROW, MEMORY_ROW

from ring3.dev.initramfs import MARKER

_LIMIT_S = 900.0
IDLE_S = 3.0
"""How long a guest is left at its shell before its memory is looked at."""


class ContestError(Exception):
    """The contestant did not come to the end; the message holds the last it printed."""


@dataclass(frozen=True)
class Contestant:
    """A way to boot the guest: its command, in which {memory} (MiB), {ramdisk} and {words} stand for what differs."""

    name: str
    command: list[str]

    def arguments(self, memory_mib: int, ramdisk: Path, words: str) -> list[str]:
        """Returns the whole command."""
        return [one.format(memory=memory_mib, ramdisk=ramdisk, words=words) for one in self.command]


@dataclass
class Sample:
    """What one run gave."""

    values: dict[str, float] = field(default_factory=dict)
    """Row to nanoseconds; to bytes for the memory row."""
    checksums: dict[str, str] = field(default_factory=dict)
    """Row to what it computed."""
    failure: str = ""
    """Why the run did not come to its end."""


class Run:
    """A running contestant and its output so far."""

    def __init__(self, command: list[str]) -> None:
        self.started_at = time.monotonic()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.text = b""

    def wait_for(self, text: str) -> float:
        """Reads until `text` was printed; returns the seconds since the start. Raises ContestError."""
        stream = self.process.stdout
        if stream is None:
            raise ContestError("no output")
        while text.encode() not in self.text:
            left = self.started_at + _LIMIT_S - time.monotonic()
            if left <= 0 or not select.select([stream], [], [], left)[0]:
                raise ContestError(f"no {text} after {_LIMIT_S:.0f} s: {self.text[-500:].decode(errors='replace')}")
            data = os.read(stream.fileno(), 65536)
            if not data:
                raise ContestError(f"ended without {text}: {self.text[-500:].decode(errors='replace')}")
            self.text += data
        return time.monotonic() - self.started_at

    def end(self) -> None:
        """Stops it and all that it started."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        # User-Mode Linux leaves the processes that stand for its guest's. The group is of our making.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


def boot(contestant: Contestant, memory_mib: int, ramdisk: Path, words: str) -> Sample:
    """Returns the time from the start of the process to the shell marker, and the memory a while later."""
    run = Run(contestant.arguments(memory_mib, ramdisk, words))
    try:
        start_ns = run.wait_for(MARKER) * 1e9
        time.sleep(IDLE_S)
        return Sample({BOOT_ROW: start_ns, MEMORY_ROW: float(used_bytes(run.process.pid))})
    finally:
        run.end()


def run_program(contestant: Contestant, memory_mib: int, ramdisk: Path, words: str) -> Sample:
    """Boots a guest whose script runs the program, and returns its rows, as far as it came."""
    run = Run(contestant.arguments(memory_mib, ramdisk, words))
    failure = ""
    try:
        run.wait_for("BENCH-END")
    except ContestError as error:
        failure = str(error)
    finally:
        run.end()
    sample = _rows(run.text.decode(errors="replace"))
    sample.failure = failure or sample.failure
    return sample


def native(command: list[str]) -> Sample:
    """Runs the program on the host. Raises ContestError."""
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if "BENCH-END" not in done.stdout:
        raise ContestError(f"ended with {done.returncode}: {done.stderr[-500:]}")
    return _rows(done.stdout)


def _rows(text: str) -> Sample:
    sample = Sample()
    for name, value, checksum in re.findall(r"^row (\S+) ([0-9.]+) ([0-9a-f]{16})\r?$", text, re.MULTILINE):
        sample.values[name] = float(value)
        sample.checksums[name] = checksum
    sample.failure = "; ".join(re.findall(r"^failed [^\r\n]+", text, re.MULTILINE))
    return sample

"""Runs one contestant of the benchmark: boots it, times the marker, reads the program's rows, samples its memory."""

import os
import re
import select
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from ring3.dev.initramfs import MARKER

_LIMIT_S = 900.0
_MEMORY_ROW = "peak memory"


class ContestError(Exception):
    """The contestant did not come to the end; the message holds the last it printed."""


@dataclass(frozen=True)
class Contestant:
    """A way to boot the guest: the command, and how it takes initramfs and command line."""

    name: str
    command: list[str]
    ramdisk_option: str
    cmdline_option: str
    console: str

    def arguments(self, ramdisk: Path, words: str) -> list[str]:
        """Returns the whole command."""
        return [*self.command, self.ramdisk_option, str(ramdisk), self.cmdline_option, f"{self.console} {words}"]


@dataclass
class Sample:
    """Row to nanoseconds (bytes for the memory row), from one run."""

    values: dict[str, float] = field(default_factory=dict)


def _descendants(pid: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [pid], [pid]
    while todo:
        new = children.get(todo.pop(), [])
        found += new
        todo += new
    return found


def _memory_bytes(pid: int) -> int:
    """Returns the proportional set size of a process and all that it started."""
    total = 0
    for one in _descendants(pid):
        try:
            found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{one}/smaps_rollup").read_text(), re.MULTILINE)
        except OSError:
            continue
        total += int(found.group(1)) * 1024 if found else 0
    return total


class _Run:
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


def boot(contestant: Contestant, ramdisk: Path, words: str) -> float:
    """Returns nanoseconds from the start of the process to the shell marker. Raises ContestError."""
    run = _Run(contestant.arguments(ramdisk, words))
    try:
        return run.wait_for(MARKER) * 1e9
    finally:
        run.end()


def run_program(contestant: Contestant, ramdisk: Path, words: str) -> Sample:
    """Boots a guest whose script runs the program, and returns its rows and the peak memory. Raises ContestError."""
    run = _Run(contestant.arguments(ramdisk, words))
    peak_bytes = 0
    is_over = threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        while not is_over.wait(1.0):
            peak_bytes = max(peak_bytes, _memory_bytes(run.process.pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run.wait_for("BENCH-END")
    finally:
        is_over.set()
        watcher.join()
        run.end()
    return Sample({**_rows(run.text.decode(errors="replace")), _MEMORY_ROW: float(peak_bytes)})


def native(program: Path, rows: list[str]) -> Sample:
    """Runs the program on the host."""
    done = subprocess.run([program, *rows], check=True, capture_output=True, text=True)
    return Sample(_rows(done.stdout))


def _rows(text: str) -> dict[str, float]:
    return {name: float(value) for name, value in re.findall(r"^row (\S+) ([0-9.]+)", text, re.MULTILINE)}

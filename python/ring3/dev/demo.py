"""`make demo`: boots two domains at once through the `ring3` command and shows both.

On a terminal it ends in a shell of the first domain; without one it lets each guest run a command, and ends.
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ring3.dev.initramfs import MARKER

_NAMES = ("alpha", "beta")
_GUEST_MIB = 256
_BOOT_LIMIT_S = 120.0
_COMMAND_LIMIT_S = 30.0
_COLOURS = ("\x1b[36m", "\x1b[35m")


class DemoError(Exception):
    """The demonstration cannot go on; the message says why."""


@dataclass
class _Domain:
    """One domain of the demonstration, and what its console has said."""

    name: str
    prefix: str
    created_at: float = 0.0
    booted_after_s: float | None = None
    console: subprocess.Popen[bytes] | None = None
    text: bytearray = field(default_factory=bytearray)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def wait_for(self, pattern: str, limit_s: float) -> re.Match[bytes] | None:
        """Returns the first match of `pattern` on the console so far, waiting for it if need be."""
        compiled = re.compile(pattern.encode(), re.MULTILINE)
        end = time.monotonic() + limit_s
        with self.changed:
            while (found := compiled.search(self.text)) is None:
                left = end - time.monotonic()
                if left <= 0 or (self.console is not None and self.console.poll() is not None):
                    return compiled.search(self.text)
                self.changed.wait(min(left, 0.5))
            return found

    def type(self, line: str) -> None:
        """Types a line on the console."""
        if self.console is None or self.console.stdin is None:
            raise DemoError(f"{self.name} has no console")
        self.console.stdin.write(line.encode() + b"\n")
        self.console.stdin.flush()


class _Ring3:
    """The `ring3` command with a state directory of the demonstration's own."""

    def __init__(self, run_dir: str) -> None:
        beside = Path(sys.executable).parent / "ring3"
        self._path = str(beside) if beside.exists() else "ring3"
        self._environment = {**os.environ, "RING3_RUN_DIR": run_dir}

    def __call__(self, *arguments: str) -> str:
        """Runs the command and returns its standard output. Raises DemoError."""
        done = subprocess.run([self._path, *arguments], env=self._environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise DemoError(f"ring3 {arguments[0]} failed with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def attach(self, name: str) -> subprocess.Popen[bytes]:
        """Starts `ring3 console` with pipes."""
        return subprocess.Popen(
            [self._path, "console", name], env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def interact(self, name: str) -> None:
        """Runs `ring3 console` on this terminal until it is left."""
        subprocess.run([self._path, "console", name], env=self._environment)


_OUTPUT = threading.Lock()


def _say(text: str) -> None:
    """Prints whole lines: both consoles and the demonstration itself write at the same time."""
    with _OUTPUT:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


@contextmanager
def _hypervisor(ring3: _Ring3) -> Iterator[None]:
    started = time.monotonic()
    ring3("up", "--memory", str(3 * _GUEST_MIB), "--pcpus", str(min(2, os.cpu_count() or 1)))
    _say(f"ring3: hypervisor and domain 0 are up after {time.monotonic() - started:.2f} s")
    try:
        yield
    finally:
        ring3("down")
        _say("ring3: down")


def _follow(domain: _Domain, stream: IO[bytes], shown: Callable[[], bool]) -> None:
    """Collects the console and prints it line by line, each with the domain's name."""
    line = bytearray()
    while data := os.read(stream.fileno(), 4096):
        with domain.changed:
            domain.text += data
            if domain.booted_after_s is None and MARKER.encode() in domain.text:
                domain.booted_after_s = time.monotonic() - domain.created_at
            domain.changed.notify_all()
        line += data
        *complete, rest = bytes(line).split(b"\n")
        line = bytearray(rest)
        if shown():
            for text in complete:
                # Control sequences (the shell asks for the cursor's place) would disturb the other domain's lines.
                plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode(errors="replace")).rstrip("\r")
                _say(f"{domain.prefix}{plain}")


def _create(ring3: _Ring3, domain: _Domain, kernel: Path, ramdisk: Path) -> None:
    domain.created_at = time.monotonic()
    ring3(
        "create",
        *("--name", domain.name, "--kernel", str(kernel), "--ramdisk", str(ramdisk), "--memory", str(_GUEST_MIB)),
        *("--cmdline", f"console=hvc0 ring3.name={domain.name}"),
    )


def _boot_both(ring3: _Ring3, domains: list[_Domain], kernel: Path, ramdisk: Path, shown: Callable[[], bool]) -> None:
    failures: list[Exception] = []

    def boot(domain: _Domain) -> None:
        try:
            _create(ring3, domain, kernel, ramdisk)
            domain.console = ring3.attach(domain.name)
            if domain.console.stdout is not None:
                threading.Thread(target=_follow, args=(domain, domain.console.stdout, shown), daemon=True).start()
        except (DemoError, OSError) as error:
            failures.append(error)

    threads = [threading.Thread(target=boot, args=(domain,)) for domain in domains]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    for domain in domains:
        if domain.wait_for(f"^{MARKER}", _BOOT_LIMIT_S) is None:
            raise DemoError(f"{domain.name} did not reach its shell within {_BOOT_LIMIT_S:.0f} s")


def _show_commands(domains: list[_Domain]) -> None:
    """Lets each guest run a command whose answer cannot be the echo of what was typed."""
    for domain in domains:
        if domain.wait_for(r"[$#] (\x1b\[6n)?$", _COMMAND_LIMIT_S) is None:
            raise DemoError(f"{domain.name} shows no prompt")
        domain.type("echo $(hostname) runs $(uname -sr) and says $((6 * 7))")
        if domain.wait_for(rf"^{domain.name} runs Linux \S+ and says 42", _COMMAND_LIMIT_S) is None:
            raise DemoError(f"{domain.name} did not run its command")


def run(kernel: Path, ramdisk: Path) -> None:
    """Runs the demonstration. Raises DemoError."""
    is_terminal = sys.stdin.isatty() and sys.stdout.isatty()
    width = max(map(len, _NAMES))
    domains = [
        _Domain(name, f"{colour}{name:<{width}} |\x1b[0m " if is_terminal else f"{name:<{width}} | ")
        for name, colour in zip(_NAMES, _COLOURS, strict=True)
    ]
    is_shown = True
    with tempfile.TemporaryDirectory(prefix="ring3-demo-") as run_dir:
        ring3 = _Ring3(run_dir)
        with _hypervisor(ring3):
            _say(f"ring3: booting {' and '.join(_NAMES)} ({kernel.name}, {_GUEST_MIB} MiB each)")
            try:
                _boot_both(ring3, domains, kernel, ramdisk, lambda: is_shown)
                _show_commands(domains)
                time.sleep(0.2)  # lets the last console lines out before ours
                _say("")
                for domain in domains:
                    _say(f"ring3: {domain.name} was at its shell {domain.booted_after_s or 0:.2f} s after its creation")
                _say("ring3: the domains, as `ring3 list` shows them:")
                _say(ring3("list").rstrip())
                if is_terminal:
                    is_shown = False
                    first = domains[0]
                    if first.console is not None:
                        first.console.terminate()
                    _say(f"\nring3: a shell in {first.name}; Ctrl-] leaves it and ends the demonstration.\n")
                    ring3.interact(first.name)
                    _say("")
            finally:
                for domain in domains:
                    if domain.console is not None:
                        domain.console.terminate()
                        domain.console.wait()

"""A guest whose console carries out lines, and a machine of Ring3 for such guests."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from contest import ContestError, Run

from ring3.dev import initramfs

SCRIPT = b'while read -r line; do eval "$line"; echo "status=$?="; done\n'
"""What such a guest runs (`ring3.run=/test/script`)."""
SCRIPT_PATH = "test/script"
RING3 = str(Path(sys.executable).parent / "ring3")


class Guest:
    """A guest whose console carries out lines."""

    def __init__(self, command: list[str]) -> None:
        self._run = Run(command)
        self._run.wait_for(initramfs.MARKER)
        self("stty -echo; echo 1 > /proc/sys/kernel/printk; ip link set lo up")

    def __call__(self, line: str) -> str:
        """Carries out a line; returns what it printed."""
        self._run.text = b""
        if self._run.process.stdin is None:
            raise ContestError("no console")
        self._run.process.stdin.write(line.encode() + b"\n")
        self._run.process.stdin.flush()
        self._run.wait_for("status=")
        return self._run.text.decode(errors="replace")

    def end(self) -> None:
        """Stops it."""
        self._run.end()


@contextmanager
def machine(memory_mib: int) -> Iterator[Path]:
    """Starts a machine; yields its state directory, which RING3_RUN_DIR names meanwhile."""
    with tempfile.TemporaryDirectory(prefix="ring3-bench-") as place:
        run_dir = Path(place) / "run"
        os.environ["RING3_RUN_DIR"] = str(run_dir)
        subprocess.run([RING3, "up", "--memory", str(memory_mib)], check=True, capture_output=True)
        try:
            yield run_dir
        finally:
            subprocess.run([RING3, "down"], capture_output=True)


def create(name: str, image: Path, ramdisk: Path, memory_mib: int, *words: str) -> Guest:
    """Makes a domain of the machine."""
    options = ["--memory", str(memory_mib), "--name", name, *words]
    options += ["--cmdline", f"console=hvc0 quiet ring3.run=/{SCRIPT_PATH}"]
    command = [RING3, "create", "--kernel", str(image), "--ramdisk", str(ramdisk), *options]
    subprocess.run(command, check=True, capture_output=True)
    return Guest([RING3, "console", name])

"""`python bench/disk.py`: a guest's disk, natively, under QEMU TCG with virtio-blk, and under Ring3, in one run.

Direct transfers, one at a time, of the same image. Beside the throughput stands the CPU time that each transfer costs
on the host, guest and back end together: on a machine with other work it is the steadier of the two. The host's page
cache serves all of them: QEMU's `cache=writeback` and Ring3 write into it, and flush where the guest asks for it.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from contest import ContestError, Run
from memory import descendants

from ring3.dev import initramfs, kernel, modules

REPOSITORY = Path(__file__).parent.parent
IMAGE_MIB = 256
ROWS = ("write-sequential", "read-sequential", "write-random-4k", "read-random-4k")
_GUEST = "disk=/dev/xvda; [ -e $disk ] || disk=/dev/vda; /bench/disk $disk {seconds}\n"


@dataclass(frozen=True)
class Figure:
    """A row of one run: transfers, seconds, and CPU seconds of all its processes."""

    count: int
    seconds: float
    cpu_seconds: float


def cpu_seconds(pids: list[int]) -> float:
    """Returns the CPU time that processes have had."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def run(command: list[str]) -> dict[str, Figure]:
    """Runs a contestant and returns its rows."""
    contestant = Run(command)
    found = {}
    try:
        for row in ROWS:
            contestant.wait_for(f"begin {row}")
            before = cpu_seconds(descendants(contestant.process.pid))
            contestant.wait_for(f"row {row}")
            after = cpu_seconds(descendants(contestant.process.pid))
            contestant.wait_for("BENCH-END" if row == ROWS[-1] else f"begin {ROWS[ROWS.index(row) + 1]}")
            values = re.search(rf"row {row} (\d+) ([0-9.]+)", contestant.text.decode(errors="replace"))
            if values is not None:
                found[row] = Figure(int(values[1]), float(values[2]), after - before)
    finally:
        contestant.end()
    return found


def contestants(directory: Path, seconds: float, image: Path) -> dict[str, list[str]]:
    """Returns the commands."""
    cache = Path(os.environ.get("RING3_GUEST_CACHE", str(REPOSITORY / ".cache" / "guest")))
    program = directory / "disk"
    source = Path(__file__).parent / "disk" / "disk.c"
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, source], check=True)
    vmlinuz = kernel.default(cache)
    files = modules.files(cache, vmlinuz, ["xen-blkfront", "virtio_pci", "virtio_blk"])
    files |= {"bench/disk": program.read_bytes(), "bench/script": _GUEST.format(seconds=seconds).encode()}
    ramdisk = initramfs.build(directory, "disk", files)
    words = "quiet ring3.run=/bench/script"
    return {
        "native": [str(program), str(image), str(seconds)],
        "QEMU": [
            *(
                "qemu-system-x86_64",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
            ),
            *("-serial", "stdio", "-no-reboot", "-smp", "1", "-m", "256", "-kernel", str(vmlinuz)),
            *("-initrd", str(ramdisk), "-append", f"console=ttyS0 {words}"),
            *("-drive", f"file={image},format=raw,if=virtio,cache=writeback"),
        ],
        "Ring3": [
            *(str(Path(sys.executable).parent / "ring3"), "run", "--memory", "256", "--kernel", str(vmlinuz)),
            *("--ramdisk", str(ramdisk), "--cmdline", f"console=hvc0 {words}", "--disk", f"{image},raw,xvda,rw"),
        ],
    }


Figures = dict[str, dict[str, list[Figure]]]
"""Row to contestant to what each round gave."""


def measure(rounds: int, seconds: float, place: Path | None = None) -> Figures:
    """Runs the contestants in turns. Raises ContestError."""
    figures: Figures = {row: defaultdict(list) for row in ROWS}
    with tempfile.TemporaryDirectory(dir=place) as name:
        directory = Path(name)
        image = directory / "image"
        image.write_bytes(os.urandom(1 << 20) * IMAGE_MIB)
        commands = contestants(directory, seconds, image)
        for turn in range(1, rounds + 1):
            for who, command in commands.items():
                print(f"round {turn} of {rounds}, disk: {who} ...", file=sys.stderr, flush=True)
                for row, figure in run(command).items():
                    figures[row][who].append(figure)
    return figures


def table(figures: Figures) -> str:
    """Returns the rows in Markdown: the best of the rounds."""
    names = ("native", "QEMU", "Ring3")
    lines = [f"| disk, direct | {' | '.join(names)} | Ring3 / QEMU |", "|---" + "|---:" * 4 + "|"]
    for row, columns in figures.items():
        size = 4096 if row.endswith("4k") else 1 << 20
        cells, rates = [], {}
        for who in names:
            if not columns[who]:
                raise ContestError(f"{who} has no {row}")
            best = max(columns[who], key=lambda figure: figure.count / figure.seconds)
            cpu_us = best.cpu_seconds / best.count * 1e6
            rates[who] = best.count / best.seconds
            cells.append(f"{rates[who] * size / 1e6:.1f} MB/s, {cpu_us:.0f} us")
        lines.append(f"| {row} | {' | '.join(cells)} | {rates['Ring3'] / rates['QEMU']:.2f} |")
    return "\n".join(lines)


def main() -> int:
    """Prints the rows."""
    parser = argparse.ArgumentParser(description="Measures disks.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--directory", type=Path, help="where the image is made; default: a temporary one")
    arguments = parser.parse_args()
    print(table(measure(arguments.rounds, arguments.seconds, arguments.directory)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`make bench`: native, QEMU TCG and Ring3 in turns, medians and ratios, written to docs/performance.md.

Speed is judged A against B on the same machine in the same minutes: each round runs every contestant once, and the
median over the rounds counts. QEMU runs with two CPU models; for each row the better one stands for it.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

from contest import Contestant, ContestError, Sample, boot, native, run_program

from ring3.dev import initramfs, kernel

REPOSITORY = Path(__file__).parent.parent
BOOT_ROW = "start to shell marker"
MEMORY_ROW = "peak memory"
GUEST_MIB = 256
_QUIET = "quiet"

ROW_TEXT = {
    "null-syscall": "null system call",
    "fork-exit": "fork + exit",
    "fork-exec": "fork + exec",
    "page-fault": "page fault",
    "pipe-ping-pong": "pipe ping-pong",
    "integer-loop": "integer loop (sieve)",
    "call-heavy": "calls (fibonacci 20)",
    "indirect-call-heavy": "indirect call",
    "matrix-product": "double matrix product, 96 x 96",
    "memcpy-1MiB": "memcpy of 1 MiB",
    "sha256-64KiB": "sha256 of 64 KiB",
    "sh-loop": "sh loop, one turn",
}
"""Name in bench.c and text in the table, in order."""


def contestants(image: Path) -> list[Contestant]:
    """Returns QEMU with both CPU models, and Ring3; each boots the same kernel with one vCPU."""
    memory = str(GUEST_MIB)
    qemu = [
        *("qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-serial", "stdio", "-no-reboot", "-smp", "1", "-m", memory, "-kernel", str(image)),
    ]
    ring3 = [str(Path(sys.executable).parent / "ring3"), "run", "--memory", memory, "--kernel", str(image)]
    return [
        Contestant("QEMU max", [*qemu, "-cpu", "max"], "-initrd", "-append", "console=ttyS0"),
        Contestant("QEMU qemu64", [*qemu, "-cpu", "qemu64"], "-initrd", "-append", "console=ttyS0"),
        Contestant("Ring3", ring3, "--ramdisk", "--cmdline", "console=hvc0"),
    ]


def compile_program(directory: Path) -> Path:
    """Returns the static benchmark program."""
    program = directory / "bench"
    source = Path(__file__).parent / "guest" / "bench.c"
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-o", program, source], check=True)
    return program


def measure(rounds: int, names: list[str] | None, rows: list[str]) -> dict[str, list[Sample]]:
    """Returns the samples of each contestant."""
    cache = Path(os.environ.get("RING3_GUEST_CACHE", str(REPOSITORY / ".cache" / "guest")))
    image = kernel.default(cache)
    plain = initramfs.build(cache)
    samples: dict[str, list[Sample]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        program = compile_program(Path(directory))
        script = f"/bench/bench {' '.join(rows)}\n".encode()
        loaded = initramfs.build(cache, "bench", {"bench/bench": program.read_bytes(), "bench/script": script})
        chosen = [one for one in contestants(image) if names is None or one.name in names]
        for turn in range(1, rounds + 1):
            print(f"round {turn} of {rounds}: native ...", flush=True)
            samples["native"].append(native(program, rows))
            for one in chosen:
                print(f"round {turn} of {rounds}: {one.name} ...", flush=True)
                try:
                    sample = run_program(one, loaded, f"{_QUIET} ring3.run=/bench/script")
                    sample.values[BOOT_ROW] = boot(one, plain, _QUIET)
                    samples[one.name].append(sample)
                except ContestError as failure:
                    print(f"{one.name}: {failure}", file=sys.stderr)
    return samples


def median(samples: list[Sample], row: str) -> float | None:
    """Returns the median of a row over the rounds that have it."""
    values = [sample.values[row] for sample in samples if row in sample.values]
    return statistics.median(values) if values else None


def show(value: float | None, row: str) -> str:
    """Returns a value with a unit that suits it."""
    if value is None:
        return "-"
    if row == MEMORY_ROW:
        return f"{value / 2**20:.0f} MiB"
    for unit, scale in (("s", 1e9), ("ms", 1e6), ("us", 1e3)):
        if value >= scale:
            return f"{value / scale:.2f} {unit}"
    return f"{value:.2f} ns"


def ratio(a: float | None, b: float | None) -> str:
    """Returns a / b."""
    return "-" if a is None or not b else f"{a / b:.2f}"


def table(samples: dict[str, list[Sample]]) -> str:
    """Returns the result as a Markdown table."""
    lines = [
        "| row | native | QEMU TCG | Ring3 | Ring3 / native | QEMU / native | Ring3 / QEMU |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in (BOOT_ROW, *ROW_TEXT, MEMORY_ROW):
        base = median(samples["native"], row)
        qemu = [value for name in ("QEMU max", "QEMU qemu64") if (value := median(samples[name], row)) is not None]
        best = min(qemu) if qemu else None
        ours = median(samples["Ring3"], row)
        if base is None and best is None and ours is None:
            continue
        cells = [
            show(base, row),
            show(best, row),
            show(ours, row),
            ratio(ours, base),
            ratio(best, base),
            ratio(ours, best),
        ]
        lines.append(f"| {ROW_TEXT.get(row, row)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def host_facts() -> str:
    """Returns the machine and the versions that the numbers belong to."""
    cpu = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True).stdout.splitlines()
    return f"{cpu}, {os.cpu_count()} CPUs, Linux {platform.release()}; {qemu[0] if qemu else 'no QEMU'}"


_PAGE = """\
# Performance

Written by `make bench` (`bench/run.py`); `bench/guest/bench.c` is the program. Each number is the median of {rounds}
rounds, in which native, QEMU and Ring3 take turns. QEMU TCG is the better of `-cpu max` and `-cpu qemu64` in each row
(`-nodefaults`); every guest has one vCPU, {memory} MiB, Debian's cloud kernel booted with `quiet`, and the same
initramfs. Peak memory is the sum of the proportional set sizes of all processes while the program runs.

Host: {host}.

{table}

{notes}"""


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", help="a contestant: 'QEMU max', 'QEMU qemu64' or 'Ring3'")
    parser.add_argument("--rows", nargs="*", default=[], choices=[*ROW_TEXT], help="rows of bench.c (default: all)")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "performance.md")
    arguments = parser.parse_args()
    samples = measure(arguments.rounds, arguments.only, arguments.rows)
    result = table(samples)
    print(result)
    if arguments.only is None and not arguments.rows:
        notes = Path(__file__).with_name("notes.md").read_text()
        page = _PAGE.format(rounds=arguments.rounds, memory=GUEST_MIB, host=host_facts(), table=result, notes=notes)
        arguments.output.write_text(page)
        print(f"written to {arguments.output}")
    return 0 if len(samples["Ring3"]) == arguments.rounds or arguments.only else 1


if __name__ == "__main__":
    sys.exit(main())

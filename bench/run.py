"""`make bench`: native, QEMU TCG, User-Mode Linux and Ring3 in turns; tables and docs/performance.md.

Speed is judged A against B on the same machine in the same minutes: each round runs every contestant once, and the
best of the rounds counts. QEMU runs with two CPU models; for each row the better one stands for it.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import report
from contest import IDLE_S, Contestant, ContestError, Sample, boot, native, run_program
from rows import BOOT_ROW, MEMORY_ROW, ROWS

from ring3.dev import initramfs, kernel, uml

REPOSITORY = Path(__file__).parent.parent
PROGRAM_MIB = 256
IDLE_MIB = 512
ROW_MS = 400
QUICK_MS = 50
_QUIET = "quiet"


def contestants(cache: Path) -> list[Contestant]:
    """Returns QEMU with both CPU models, UML and Ring3; each boots with one vCPU."""
    image = str(kernel.default(cache))
    qemu = [
        *("qemu-system-x86_64", "-accel", "tcg", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-serial", "stdio", "-no-reboot", "-smp", "1", "-m", "{memory}", "-kernel", image),
        *("-initrd", "{ramdisk}", "-append", "console=ttyS0 {words}"),
    ]
    ring3 = [
        *(str(Path(sys.executable).parent / "ring3"), "run", "--memory", "{memory}", "--kernel", image),
        *("--ramdisk", "{ramdisk}", "--cmdline", "console=hvc0 {words}"),
    ]
    found = [
        Contestant("QEMU max", [*qemu, "-cpu", "max"]),
        Contestant("QEMU qemu64", [*qemu, "-cpu", "qemu64"]),
    ]
    try:
        own = [str(uml.fetch(cache)), "mem={memory}M", "initrd={ramdisk}", "con0=fd:0,fd:1", "con=null", "{words}"]
        found.append(Contestant("UML", own))
    except initramfs.ArtefactError as error:
        print(f"no User-Mode Linux: {error}", file=sys.stderr)
    return [*found, Contestant("Ring3", ring3)]


def compile_program(directory: Path) -> Path:
    """Returns the static benchmark program."""
    program = directory / "bench"
    sources = sorted((Path(__file__).parent / "guest").glob("*.c"))
    subprocess.run(["gcc", "-O2", "-static", "-Wall", "-Wextra", "-Werror", "-o", program, *sources, "-lm"], check=True)
    return program


def measure(
    rounds: int, names: list[str] | None, row_ms: int, chosen_rows: list[str], with_boot: bool
) -> dict[str, list[Sample]]:
    """Returns the samples of each contestant."""
    cache = Path(os.environ.get("RING3_GUEST_CACHE", str(REPOSITORY / ".cache" / "guest")))
    arguments = ["--ms", str(row_ms), *chosen_rows]
    plain = initramfs.build(cache)
    samples: dict[str, list[Sample]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        program = compile_program(Path(directory))
        script = f"mount -t tmpfs tmpfs /dev/shm\n/bench/bench {' '.join(arguments)}\n".encode()
        files = {"bench/bench": program.read_bytes(), "bench/script": script}
        loaded = initramfs.build(Path(directory), "bench", files)
        chosen = [one for one in contestants(cache) if names is None or one.name in names]
        for turn in range(1, rounds + 1):
            print(f"round {turn} of {rounds}: native ...", flush=True)
            samples["native"].append(native(program, arguments))
            for one in chosen:
                print(f"round {turn} of {rounds}: {one.name} ...", flush=True)
                sample = run_program(one, PROGRAM_MIB, loaded, f"{_QUIET} ring3.run=/bench/script")
                samples[one.name].append(sample)
                if sample.failure:
                    print(f"{one.name}: {sample.failure}", file=sys.stderr)
                try:
                    if with_boot:
                        samples[one.name].append(boot(one, IDLE_MIB, plain, _QUIET))
                except ContestError as failure:
                    print(f"{one.name}: {failure}", file=sys.stderr)
    return samples


def failures(samples: dict[str, list[Sample]], wanted: list[str]) -> list[str]:
    """Returns a line for each thing that makes the run worthless: a wrong result, or a row that Ring3 did not bring."""
    ours = {row for sample in samples["Ring3"] for row in sample.values}
    missing = [row for row in wanted if row not in ours] if "Ring3" in samples else []
    return [*report.wrong_results(samples), *([f"Ring3 has no {', '.join(missing)}"] if missing else [])]


def main() -> int:
    """Returns the exit code."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", action="append", help="a contestant: 'QEMU max', 'QEMU qemu64', 'UML' or 'Ring3'")
    parser.add_argument("--rows", nargs="*", default=[], choices=names, help="rows of the program (default: all)")
    parser.add_argument("--quick", action="store_true", help=f"rows of {QUICK_MS} ms, one round, no page")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "performance.md")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    row_ms = QUICK_MS if arguments.quick else ROW_MS
    samples = measure(rounds, arguments.only, row_ms, arguments.rows, with_boot=not arguments.rows)
    values = report.columns(samples)
    print(f"{report.mean_table(values)}\n\n{report.row_table(values)}")
    bad = failures(samples, arguments.rows or [*names, BOOT_ROW, MEMORY_ROW])
    for line in bad:
        print(line, file=sys.stderr)
    if arguments.only is None and not arguments.rows and not arguments.quick and not bad:
        arguments.output.write_text(report.page(values, rounds, row_ms, IDLE_MIB, IDLE_S))
        print(f"written to {arguments.output}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

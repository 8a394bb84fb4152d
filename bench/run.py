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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import devices
import report
import workloads
from contest import IDLE_S, Contestant, ContestError, Sample, boot, native, run_program
from rows import BOOT_ROW, DEBIAN, MEMORY_ROW, ROWS

from ring3.dev import debian_root, initramfs, kernel, uml

REPOSITORY = Path(__file__).parent.parent
PROGRAM_MIB = 256
DEBIAN_MIB = 1536
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


@dataclass(frozen=True)
class Work:
    """A set of rows: how they run natively, and the guest that runs them."""

    native_command: list[str]
    ramdisk: Path
    memory_mib: int


_SCRIPT = "mount -t tmpfs tmpfs /dev/shm; /bench/bench {arguments}\n"

_IN_ROOT = """\
mount --rbind /dev "$1/dev" && mount --rbind /proc "$1/proc" && mount -t tmpfs tmpfs "$1/tmp" &&
mount --bind "$2" "$1/bench" && root=$1 && shift 2 && exec chroot "$root" /bench/bench "$@"
"""
"""Runs the program in a root file system, in a mount namespace of its own. Arguments: root, what is /bench there."""


def small_work(program: Path, arguments: list[str]) -> Work:
    """Returns the rows that need nothing but the program and busybox."""
    files = {
        "bench/bench": program.read_bytes(),
        "bench/script": _SCRIPT.format(arguments=" ".join(arguments)).encode(),
    }
    image = initramfs.build(program.parent, "bench", files)
    return Work([str(program), *arguments], image, PROGRAM_MIB)


def debian_work(cache: Path, program: Path, arguments: list[str]) -> Work:
    """Returns the rows of programs in a Debian root file system. Raises ArtefactError."""
    files = {"bench/bench": program.read_bytes(), **workloads.files()}
    for path, data in workloads.files().items():
        (program.parent / Path(path).name).write_bytes(data)
    files["bench/script"] = _SCRIPT.format(arguments=" ".join(arguments)).encode()
    tree = debian_root.unpack(cache, workloads.PACKAGES)
    image = debian_root.image(cache, program.parent / "debian.cpio", workloads.PACKAGES, files)
    apart = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
    command = [*apart, "sh", "-c", _IN_ROOT, "sh", str(tree), str(program.parent), *arguments]
    return Work(command, image, DEBIAN_MIB)


NR_STARTS = 3
"""How often each contestant starts in a round, in turns: the first start of a build of Ring3 finds no translations."""


def works(cache: Path, program: Path, row_ms: int, rows: list[str]) -> list[Work]:
    """Returns the sets that `rows` belong to."""
    debian_rows = [row.name for row in ROWS if row.name in rows and row.kind == DEBIAN]
    small_rows = [name for name in rows if name not in debian_rows]
    found = []
    if small_rows:
        found.append(small_work(program, ["--ms", str(row_ms), *small_rows]))
    if debian_rows:
        try:
            found.append(debian_work(cache, program, ["--ms", str(row_ms), *debian_rows]))
        except initramfs.ArtefactError as error:
            print(f"no Debian root file system: {error}", file=sys.stderr)
    return found


def measure(
    rounds: int, names: list[str] | None, row_ms: int, rows: list[str], with_boot: bool
) -> dict[str, list[Sample]]:
    """Returns the samples of each contestant."""
    cache = Path(os.environ.get("RING3_GUEST_CACHE", str(REPOSITORY / ".cache" / "guest")))
    plain = initramfs.build(cache)
    chosen = [one for one in contestants(cache) if names is None or one.name in names]
    samples: dict[str, list[Sample]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as directory:
        sets = works(cache, compile_program(Path(directory)), row_ms, rows)
        for turn in range(1, rounds + 1):
            print(f"round {turn} of {rounds}: native ...", flush=True)
            for work in sets:
                with reported("native"):
                    samples["native"].append(native(work.native_command))
            for one in chosen:
                print(f"round {turn} of {rounds}: {one.name} ...", flush=True)
                for work in sets:
                    sample = run_program(one, work.memory_mib, work.ramdisk, f"{_QUIET} ring3.run=/bench/script")
                    samples[one.name].append(sample)
                    if sample.failure:
                        print(f"{one.name}: {sample.failure}", file=sys.stderr)
            for one in chosen * NR_STARTS if with_boot else []:
                with reported(one.name):
                    samples[one.name].append(boot(one, IDLE_MIB, plain, _QUIET))
    return samples


@contextmanager
def reported(name: str) -> Iterator[None]:
    """Goes on after a contestant failed, and says so."""
    try:
        yield
    except ContestError as failure:
        print(f"{name}: {failure}", file=sys.stderr)


def failures(samples: dict[str, list[Sample]], wanted: list[str]) -> list[str]:
    """Returns a line for each thing that must not be: a wrong result, or a row that failed in Ring3 or is not there."""
    ours = samples.get("Ring3", [])
    lines = [*report.wrong_results(samples), *(f"Ring3: {one.failure}" for one in ours if one.failure)]
    missing = [row for row in wanted if not any(row in one.values for one in ours)]
    return [*lines, *([f"Ring3 has no {', '.join(missing)}"] if ours and missing else [])]


def main() -> int:
    """Returns the exit code."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--only", action="append", help="a contestant: 'QEMU max', 'QEMU qemu64', 'UML' or 'Ring3'")
    parser.add_argument("--rows", nargs="*", default=[], choices=names, help="rows of the program (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help=f"one round, rows of {QUICK_MS} ms, none of Debian unless named; no page"
    )
    parser.add_argument("--output", type=Path, default=REPOSITORY / "docs" / "performance.md")
    arguments = parser.parse_args()
    rounds = arguments.rounds or (1 if arguments.quick else 3)
    row_ms = QUICK_MS if arguments.quick else ROW_MS
    rows = arguments.rows or [row.name for row in ROWS if row.kind != DEBIAN or not arguments.quick]
    with_boot = not arguments.rows
    samples = measure(rounds, arguments.only, row_ms, rows, with_boot)
    values = report.columns(samples)
    print(f"{report.mean_table(values)}\n\n{report.row_table(values)}")
    bad = failures(samples, [*rows, *([BOOT_ROW, MEMORY_ROW] if with_boot else [])])
    cache = Path(os.environ.get("RING3_GUEST_CACHE", str(REPOSITORY / ".cache" / "guest")))
    is_whole = arguments.only is None and not arguments.rows
    tables = devices.measure(cache, rounds) if is_whole else []
    print("\n\n".join(table.text for table in tables))
    bad += [table.failure for table in tables if table.failure]
    for line in bad:
        print(line, file=sys.stderr)
    if is_whole and not arguments.quick:
        texts = [table.text for table in tables if table.text]
        arguments.output.write_text(report.page(values, rounds, row_ms, IDLE_MIB, IDLE_S, bad, texts))
        print(f"written to {arguments.output}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())

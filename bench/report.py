"""The tables of the benchmark, in Markdown."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from contest import Sample
from rows import BOOT_GOAL, BOOT_ROW, MEANS, MEMORY_GOAL_MIB, MEMORY_ROW, ROWS, WHOLE_GOAL, Mean, geometric_mean

Values = Mapping[str, float]
"""The best of each row, of one contestant."""

TCG_MODELS = ("QEMU max", "QEMU qemu64")
GUESTS = ("QEMU TCG", "UML", "Ring3")


def best_of(samples: Sequence[Sample]) -> dict[str, float]:
    """Returns the least value of each row."""
    best: dict[str, float] = {}
    for sample in samples:
        for row, value in sample.values.items():
            best[row] = min(value, best.get(row, value))
    return best


def columns(samples: Mapping[str, Sequence[Sample]]) -> dict[str, Values]:
    """Returns what each column shows; QEMU's models share one."""
    tcg = [sample for name in TCG_MODELS for sample in samples.get(name, [])]
    return {
        "native": best_of(samples.get("native", [])),
        "QEMU TCG": best_of(tcg),
        "UML": best_of(samples.get("UML", [])),
        "Ring3": best_of(samples.get("Ring3", [])),
    }


def wrong_results(samples: Mapping[str, Sequence[Sample]]) -> list[str]:
    """Returns a line for each row of a guest that computed something else than the CPU does."""
    right = {row: text for sample in samples.get("native", []) for row, text in sample.checksums.items()}
    return sorted(
        {
            f"{name}: {row} computed {text}, native {right[row]}"
            for name, runs in samples.items()
            for sample in runs
            for row, text in sample.checksums.items()
            if row in right and right[row] != text
        }
    )


def show(value: float | None, row: str = "") -> str:
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


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def row_table(values: Mapping[str, Values]) -> str:
    """Returns the table of all rows."""
    heads = ["row", "native", *GUESTS, *(f"{name} / native" for name in GUESTS), "Ring3 / TCG"]
    lines = [_line(heads), "|---|" + "---:|" * (len(heads) - 1)]
    for row, text in [*((row.name, row.text) for row in ROWS), (BOOT_ROW, BOOT_ROW), (MEMORY_ROW, MEMORY_ROW)]:
        base = values["native"].get(row)
        guests = [values[name].get(row) for name in GUESTS]
        if base is None and not any(guests):
            continue
        shown = [show(value, row) for value in (base, *guests)]
        lines.append(_line([text, *shown, *(ratio(value, base) for value in guests), ratio(guests[2], guests[0])]))
    return "\n".join(lines)


def mean_of(values: Mapping[str, Values], name: str, mean: Mean) -> float | None:
    """Returns the mean slowdown of a guest against native, over the rows of `mean` that both have."""
    base, guest = values["native"], values[name]
    return geometric_mean(guest[row] / base[row] for row in mean.rows if row in base and row in guest)


def mean_table(values: Mapping[str, Values]) -> str:
    """Returns the means by class beside the goals of the issue."""
    lines = [
        _line(["slowdown against native, geometric mean", *GUESTS, "Ring3 is to reach"]),
        "|---|---:|---:|---:|---:|",
    ]
    for mean in MEANS:
        found = [mean_of(values, name, mean) for name in GUESTS]
        goal = "" if mean.goal is None else f"at most {mean.goal:g}"
        lines.append(_line([mean.text, *(ratio(value, 1) for value in found), goal]))
    whole = {name: mean_of(values, name, MEANS[-1]) for name in GUESTS}
    lines += [
        _line(["whole of TCG / whole of Ring3", "", "", ratio(whole["QEMU TCG"], whole["Ring3"]), f"{WHOLE_GOAL:g}"]),
        _line(["whole of UML / whole of Ring3", "", "", ratio(whole["UML"], whole["Ring3"]), "over 1"]),
    ]
    boot = {name: values[name].get(BOOT_ROW) for name in GUESTS}
    memory = {name: values[name].get(MEMORY_ROW) for name in GUESTS}
    if any(boot.values()):
        lines.append(_line([BOOT_ROW, *map(show, boot.values()), f"{BOOT_GOAL:g} of TCG's"]))
        lines.append(_line(["Ring3's start / TCG's", "", "", ratio(boot["Ring3"], boot["QEMU TCG"]), f"{BOOT_GOAL:g}"]))
    if any(memory.values()):
        shown = [show(value, MEMORY_ROW) for value in memory.values()]
        lines.append(_line([MEMORY_ROW, *shown, f"at most {MEMORY_GOAL_MIB} MiB"]))
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

Written by `make bench` (`bench/run.py`); the program is in `bench/guest/`. Native, QEMU, User-Mode Linux and Ring3 take
turns, {rounds} times; each number is the best of its rounds. A row runs until {row_ms} ms are over, after a warm-up, on
one CPU, and must compute what the CPU computes. QEMU TCG is the better of `-cpu max` and `-cpu qemu64` in each row
(`-nodefaults`); UML is Debian's `user-mode-linux`. Every guest has one vCPU and the same initramfs; QEMU and Ring3 boot
Debian's cloud kernel, with `quiet`. Start and memory are those of a {idle} MiB guest, which is {idle_s:.0f} s at its
shell when its memory is looked at: the sum of the proportional set sizes of its processes.

Host: {host}.
{failures}
{means}

{table}

## Devices and xenstore

Disks: direct transfers, one at a time, of the same image; beside the throughput the CPU time of all processes for each.
Networks: guests reach the host by passt, and each other by Ring3's switch or QEMU's stream socket. xenstore: a raw
client; the bare exchange is two processes that pass as many bytes and do nothing else; QEMU has nothing like it.

{devices}

{notes}"""


def page(
    values: Mapping[str, Values],
    rounds: int,
    row_ms: int,
    idle_mib: int,
    idle_s: float,
    failures: Sequence[str],
    devices: Sequence[str],
) -> str:
    """Returns docs/performance.md. `failures`: what went wrong in this run, which the page does not hide."""
    notes = Path(__file__).with_name("notes.md").read_text()
    means, table = mean_table(values), row_table(values)
    return _PAGE.format(
        rounds=rounds,
        row_ms=row_ms,
        idle=idle_mib,
        idle_s=idle_s,
        host=host_facts(),
        failures="".join(f"\n**Failed in this run:** {line}.\n" for line in failures),
        means=means,
        table=table,
        devices="\n\n".join(devices),
        notes=notes,
    )

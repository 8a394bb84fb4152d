"""`make stress`: stress-ng in guests with several vCPUs; what it and the guest's kernel say is kept in a log.

Each class of work runs alone for an equal part of the time, with one worker for each vCPU. A run is good if every class
ended in time, with no failed check, and the kernel has reported nothing: no stall, no hung task, no warning.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from ring3.dev import debian, initramfs, kernel

CLASSES = ("cpu", "fork", "futex", "mmap", "switch", "pthread")
"""Classes of stress-ng that together use what several vCPUs have between them: IPIs, wake-ups, flushes, spinlocks."""

_MEMORY_MIB = 768
_GRACE_S = 120.0
_TROUBLE = re.compile(
    r"WARNING:|BUG:|Oops|Call Trace|general protection|rcu.*stall|soft lockup|blocked for more than|"
    r"stress-ng: (?:fail|error)|unsuccessful",
    re.IGNORECASE,
)
_SCRIPT = f"""\
seconds=60
for word in $(cat /proc/cmdline); do
    case $word in ring3.seconds=*) seconds=${{word#*=}} ;; esac
done
cd /tmp
workers=$(grep -c ^processor /proc/cpuinfo)
echo "stress: $workers vCPUs, $seconds s for each class"
for class in {" ".join(CLASSES)}; do
    stress-ng --$class "$workers" --mmap-bytes 64m --timeout "$seconds" --metrics-brief --verify 2>&1
    echo "stress: $class ended with $?"
done
grep -E '^(LOC|RES|CAL|TLB)|spinlock|resched|callfunc|timer' /proc/interrupts
"""


@dataclass(frozen=True)
class Result:
    """What came of one run."""

    nr_vcpus: int
    exit_code: int
    seconds: float
    log: str

    @property
    def trouble(self) -> list[str]:
        """Everything that should not have been; empty for a good run."""
        lines = [line.strip() for line in self.log.splitlines() if _TROUBLE.search(line)]
        if self.exit_code != 0:
            lines.append(f"ring3 run ended with exit code {self.exit_code}")
        missing = [name for name in CLASSES if f"stress: {name} ended with 0" not in self.log]
        return lines + [f"class {name} did not end with 0" for name in missing]


def image(cache: Path) -> Path:
    """Returns the initramfs with stress-ng and its libraries. Raises ArtefactError."""
    files = debian.program(cache / "packages", "stress-ng", "usr/bin/stress-ng")
    files["bin/stress-ng"] = files.pop("usr/bin/stress-ng")
    return initramfs.build(cache, "stress", {**files, "stress": _SCRIPT.encode()})


def run(ring3: Path, cache: Path, *, nr_vcpus: int, seconds: int) -> Result:
    """Runs every class in a guest of the cloud kernel, `seconds` in all. Raises ArtefactError."""
    share = max(1, seconds // len(CLASSES))
    command = [
        *(str(ring3), "run", "--kernel", str(kernel.default(cache)), "--ramdisk", str(image(cache))),
        *("--memory", str(_MEMORY_MIB), "--vcpus", str(nr_vcpus), "--name", f"stress{nr_vcpus}"),
        *("--cmdline", f"console=hvc0 ring3.run=/stress ring3.seconds={share}"),
    ]
    started = time.monotonic()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output, _ = process.communicate(timeout=share * len(CLASSES) * 1.5 + _GRACE_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        output, _ = process.communicate()
        output += b"\nstress: BUG: the guest hangs: its time is over\n"
    text = output.decode(errors="replace").replace("\r\n", "\n")
    return Result(nr_vcpus, process.returncode, time.monotonic() - started, text)


def main(arguments: list[str]) -> int:
    """Returns 0 if all runs were good."""
    parser = argparse.ArgumentParser(prog="python -m ring3.dev stress", description="Runs stress-ng in guests.")
    parser.add_argument("--vcpus", type=int, nargs="+", default=[2, 4], metavar="N", help="default: 2 4")
    parser.add_argument("--seconds", type=int, default=600, metavar="S", help="for each number of vCPUs; default: 600")
    parser.add_argument("--logs", type=Path, default=Path("build"), metavar="DIR", help="default: build")
    options = parser.parse_args(arguments)
    cache = Path(os.environ.get("RING3_GUEST_CACHE", ".cache/guest"))
    cache.mkdir(parents=True, exist_ok=True)
    options.logs.mkdir(parents=True, exist_ok=True)
    bad = False
    for nr_vcpus in options.vcpus:
        result = run(Path(sys.executable).parent / "ring3", cache, nr_vcpus=nr_vcpus, seconds=options.seconds)
        log = options.logs / f"stress-{nr_vcpus}.log"
        log.write_text(result.log)
        verdict = "; ".join(result.trouble) or "good"
        print(f"{nr_vcpus} vCPUs, {result.seconds:.0f} s, log {log}: {verdict}", flush=True)
        bad = bad or bool(result.trouble)
    return 1 if bad else 0

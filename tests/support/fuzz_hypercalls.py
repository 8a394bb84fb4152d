"""Two domains with two vCPUs each make random hypercalls (tests/guests/fuzz_hypercalls).

Meanwhile domain 0 stops them again and again and has the hypervisor check itself (debug key k). `make fuzz-hypercalls`,
or `python tests/support/fuzz_hypercalls.py [--seconds N] [--seed N]`. Exit code 1 and the story if anything was found.
"""

from __future__ import annotations

import argparse
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from ring3.libs import sysctl
from ring3.libs.connection import Connection
from ring3.tools import perf_counters
from support import guests
from support.command import Ring3
from support.thread_times import Threads

LIFE_S = 8.0
"""Of a pair of domains, unless one ends before: after that most of their pages are used up."""
PAUSE_S = 0.05
_HANG_S = 60
"""Of time in which an answer could have come: what its threads wait for a CPU, on a crowded machine, does not count."""
_CALLS_OF_A_LIFE = 1000
"""Fewer on average: the guests end by their own doing before they have tried much."""
_CALLS_MAX = 20_000_000
"""Of one kind that a domain can make in its life."""
_WHOLE = 31
"""Stands for no sub-op in what a guest prints."""
_BAD_WORDS = re.compile(r"panick|hypervisor failed|Traceback|audit: (?!all references)", re.IGNORECASE)


class FoundError(Exception):
    """The hypervisor did what it may not."""


@dataclass
class Totals:
    """What was done so far."""

    lives: int = 0
    calls: int = 0
    audits: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    answers: dict[tuple[int, int, int], tuple[int, int]] = field(default_factory=dict)
    """What each domain said last of each call and sub-op: how often made, how often not refused."""
    longest_s: float = 0
    """The slowest audit, and what the hypervisor's threads did meanwhile."""
    longest: str = "none"

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common(12))
        slowest = f"slowest audit {self.longest_s:.2f} s: {self.longest}"
        return f"{self.calls} calls, {self.lives} pairs of domains, {self.audits} audits; {slowest}; ends: {ends}"

    def note_answers(self, domid: int, op: int, sub: int, made: int, granted: int) -> None:
        """Takes a line of a guest's table, unless its memory has been overwritten, which happens."""
        before, _granted = self.answers.get((domid, op, sub), (0, 0))
        if before <= made <= _CALLS_MAX and granted <= made:
            self.answers[domid, op, sub] = (made, granted)

    def table(self, names: dict[str, str]) -> str:
        """Each call with how often it was made, and with what share of success, as the guests saw it."""
        sums: dict[tuple[int, int], tuple[int, int]] = {}
        for (_domid, op, sub), (made, granted) in self.answers.items():
            known = sums.get((op, sub), (0, 0))
            sums[op, sub] = (known[0] + made, known[1] + granted)
        lines = []
        for (op, sub), (made, granted) in sorted(sums.items()):
            number = f"{op}" if sub == _WHOLE else f"{op}.{sub}"
            lines.append(
                f"{number:>6} {names.get(number, '?'):40} {made:>9} made, {100 * granted / made:6.2f} % granted"
            )
        return "\n".join(lines)


class Fuzz:
    """One machine under attack."""

    def __init__(self, ring3: Ring3, image: Path) -> None:
        self._ring3 = ring3
        self._image = image
        self._run_dir = Path(ring3.environment["RING3_RUN_DIR"])
        self.totals = Totals()
        self._next_domid = 1

    def up(self) -> None:
        """Starts the machine."""
        done = self._ring3("up", "--memory", "96", "--pcpus", "2")
        if done.exit_code != 0:
            raise FoundError(done.describe())
        self._conn = Connection.connect(self._run_dir / "control")
        self._pid = int((self._run_dir / "ring3d.pid").read_text())
        self._free_pages = sysctl.physinfo(self._conn).free_pages

    def down(self) -> None:
        """Ends it."""
        self._conn.close()
        self._ring3("down")

    def _audit(self) -> None:
        with self._watch():
            sysctl.debug_keys(self._conn, "k")
            text = sysctl.readconsole(self._conn, clear=True)
        self.totals.audits += 1
        self._read(text)

    def _read(self, text: str) -> None:
        """Takes what guests and hypervisor said. Raises FoundError."""
        for line in text.splitlines():
            if match := re.search(r"domain \d+ (?:vCPU \d+ )?crashed: (.*)", line):
                self.totals.ends[re.sub(r"0x[0-9a-f]+", "N", match[1])[:60]] += 1
            if match := re.search(r"own trap \d+", line):
                self.totals.ends[match[0]] += 1
            if match := re.search(r"^\(d(\d+)\) ANSWERS (\d+) (\d+) (\d+) (\d+)", line):
                self.totals.note_answers(*map(int, match.groups()))
            # What a guest prints may be anything, by a random call.
            if match := re.match(r"\(d(\d+)\) ", line):
                is_bad = "FAILED line" in line or _is_leak(line, int(match[1]))
            else:
                is_bad = _BAD_WORDS.search(line) is not None
            if is_bad:
                raise FoundError("\n".join(other for other in text.splitlines() if "ANSWERS" not in other))

    @contextmanager
    def _watch(self) -> Iterator[None]:
        """Raises FoundError if what it is around takes too long, and if that is not for want of a CPU."""
        start, before = time.monotonic(), Threads.of(self._pid)

        def is_late(_number: int, _frame: object) -> None:
            meanwhile = Threads.of(self._pid).since(before)
            if time.monotonic() - start - meanwhile.waited_s < _HANG_S:
                return  # The timer goes off again.
            raise FoundError(f"no answer for {time.monotonic() - start:.0f} s: {meanwhile}\n{_stacks(self._pid)}")

        signal.signal(signal.SIGALRM, is_late)
        signal.setitimer(signal.ITIMER_REAL, _HANG_S, 5)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        took_s = time.monotonic() - start
        if took_s > self.totals.longest_s:
            self.totals.longest_s, self.totals.longest = took_s, str(Threads.of(self._pid).since(before))

    def names(self) -> dict[str, str]:
        """Returns the name of each call by the number of its row."""
        return {row.number: row.name for row in perf_counters.hypercalls(self._conn)}

    def _is_over(self, domids: list[int]) -> bool:
        """Whether one of the two has ended, or waits for what does not come."""
        infos = [info for info in sysctl.getdomaininfolist(self._conn, 1) if info.domid in domids]
        return len(infos) < len(domids) or any(info.is_shutdown or info.is_blocked for info in infos)

    def live(self, seed: int, until: float) -> None:
        """Runs one pair of domains. Raises FoundError."""
        domids = [self._next_domid, self._next_domid + 1]
        for domid, peer in zip(domids, reversed(domids), strict=True):
            options = ("--kernel", self._image, "--memory", "16", "--vcpus", "3", "--on-reboot", "destroy")
            words = f"seed={seed} self={domid} peer={peer}"
            done = self._ring3("create", *options, "--name", f"fuzz-{domid}", "--cmdline", words)
            if done.exit_code != 0 or f"domain {domid}" not in done.stdout + done.stderr:
                raise FoundError(done.describe())
        self._next_domid += 2
        end = min(until, time.monotonic() + LIFE_S)
        while time.monotonic() < end and not self._is_over(domids):
            time.sleep(PAUSE_S)
            self._audit()
        self._audit()
        for domid in domids:
            done = self._ring3("destroy", f"fuzz-{domid}")
            # One that crashed was destroyed by its monitor.
            if done.exit_code != 0 and "does not exist" not in done.stderr:
                raise FoundError(done.describe())
            self._audit()
        self.totals.lives += 1
        # The hypervisor's own count: a guest's would be in memory that it overwrites at random.
        self.totals.calls = sum(row.nr_calls for row in perf_counters.hypercalls(self._conn) if "." not in row.number)
        free = sysctl.physinfo(self._conn).free_pages
        if free != self._free_pages:
            raise FoundError(f"{self._free_pages} free frames before, {free} after")
        for path in self._run_dir.glob("*.log"):
            if _BAD_WORDS.search(path.read_text(errors="replace")):
                raise FoundError(path.read_text(errors="replace")[-4000:])


def _is_leak(line: str, domid: int) -> bool:
    """Whether a guest has seen what is not its own. It may have overwritten what it knows of itself and its peer."""
    match = re.search(r"FUZZ: LEAK: (.*) at 0x[0-9a-f]+: 0x([0-9a-f]+)", line)
    return match is not None and (match[1] != "the peer's secret" or int(match[2], 16) & 0xFFFFFFFF != domid << 1)


def _stacks(pid: int) -> str:
    """Where each thread is, if there is a debugger."""
    command = ["gdb", "-p", str(pid), "-batch", "-ex", "thread apply all bt 25"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=600).stdout
    except (OSError, subprocess.SubprocessError) as error:
        return f"no stacks: {error}"


def _stop(_number: int, _frame: object) -> None:
    sys.exit(2)


def main() -> int:
    """Returns 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Random hypercalls against a running machine.")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _stop)
    start = told = time.monotonic()
    until = start + options.seconds
    seed = options.seed
    with tempfile.TemporaryDirectory(prefix="ring3-fuzz-") as directory:
        place = Path(directory)
        (place / "run").mkdir(mode=0o700)
        fuzz = Fuzz(Ring3(place / "run"), guests.build("fuzz_hypercalls", place))
        fuzz.up()
        names: dict[str, str] = {}
        try:
            while time.monotonic() < until:
                fuzz.live(seed, until)
                seed += 1
                if time.monotonic() - told > 60:
                    told = time.monotonic()
                    print(f"{told - start:.0f} s: {fuzz.totals}", flush=True)
            names = fuzz.names()
        except Exception as error:
            print(f"FOUND, seed {seed}: {type(error).__name__}: {error}\n{fuzz.totals}", flush=True)
            for log in sorted((place / "run").glob("**/*.log")):
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}")
            return 1
        finally:
            fuzz.down()
    if fuzz.totals.calls < _CALLS_OF_A_LIFE * fuzz.totals.lives:
        print(f"the guests end too soon to find anything: {fuzz.totals}")
        return 1
    print(fuzz.totals.table(names))
    print(f"clean after {time.monotonic() - start:.0f} s: {fuzz.totals}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

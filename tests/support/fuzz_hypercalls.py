"""Two domains with two vCPUs each make random hypercalls (tests/guests/fuzz_hypercalls).

Meanwhile domain 0 stops them again and again and has the hypervisor check itself (debug key k). `make fuzz-hypercalls`,
or `python tests/support/fuzz_hypercalls.py [--seconds N] [--seed N]`. Exit code 1 and the story if anything was found.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from ring3.libs import sysctl
from ring3.libs.connection import Connection
from ring3.tools import perf_counters
from support import guests
from support.command import Ring3

LIFE_S = 20.0
"""Of a pair of domains, unless both end before."""
PAUSE_S = 0.05
_HANG_S = 60
_CALLS_OF_A_LIFE = 1000
"""Fewer on average: the guests end by their own doing before they have tried much."""
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

    def __str__(self) -> str:
        ends = ", ".join(f"{count} {end}" for end, count in self.ends.most_common(12))
        return f"{self.calls} calls, {self.lives} pairs of domains, {self.audits} audits; ends: {ends}"


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
        self._free_pages = sysctl.physinfo(self._conn).free_pages

    def down(self) -> None:
        """Ends it."""
        self._conn.close()
        self._ring3("down")

    def _audit(self) -> None:
        signal.alarm(_HANG_S)
        sysctl.debug_keys(self._conn, "k")
        self.totals.audits += 1
        text = sysctl.readconsole(self._conn, clear=True)
        for line in text.splitlines():
            if match := re.search(r"domain \d+ (?:vCPU \d+ )?crashed: (.*)", line):
                self.totals.ends[re.sub(r"0x[0-9a-f]+", "N", match[1])[:60]] += 1
        signal.alarm(0)
        if _BAD_WORDS.search(text):
            raise FoundError(text)

    def _log(self, domid: int) -> str:
        path = self._run_dir / "console" / f"{domid}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _is_over(self, domids: list[int]) -> bool:
        infos = [info for info in sysctl.getdomaininfolist(self._conn, 1) if info.domid in domids]
        return all(info.is_shutdown for info in infos)

    def live(self, seed: int, until: float) -> None:
        """Runs one pair of domains. Raises FoundError."""
        domids = [self._next_domid, self._next_domid + 1]
        for domid, peer in zip(domids, reversed(domids), strict=True):
            options = ("--kernel", self._image, "--memory", "16", "--vcpus", "2", "--on-reboot", "destroy")
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
            log = self._log(domid)
            if "LEAK" in log or "FAILED" in log:
                raise FoundError(log[-2000:])
            self.totals.ends.update(re.findall(r"FUZZ: own trap \d+", log))
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


def _hang(_number: int, _frame: object) -> None:
    raise FoundError(f"no answer for {_HANG_S} s")


def _stop(_number: int, _frame: object) -> None:
    sys.exit(2)


def main() -> int:
    """Returns 1 if anything was found."""
    parser = argparse.ArgumentParser(description="Random hypercalls against a running machine.")
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, _hang)
    signal.signal(signal.SIGTERM, _stop)
    start = told = time.monotonic()
    until = start + options.seconds
    seed = options.seed
    with tempfile.TemporaryDirectory(prefix="ring3-fuzz-") as directory:
        place = Path(directory)
        (place / "run").mkdir(mode=0o700)
        fuzz = Fuzz(Ring3(place / "run"), guests.build("fuzz_hypercalls", place))
        fuzz.up()
        try:
            while time.monotonic() < until:
                fuzz.live(seed, until)
                seed += 1
                if time.monotonic() - told > 60:
                    told = time.monotonic()
                    print(f"{told - start:.0f} s: {fuzz.totals}", flush=True)
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
    print(f"clean after {time.monotonic() - start:.0f} s: {fuzz.totals}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

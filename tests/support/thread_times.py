"""What the threads of a process do with their time, by Linux's accounting: run, wait for a CPU, or sleep.

Source: Documentation/scheduler/sched-stats.rst of Linux, /proc/<pid>/schedstat: ns on CPUs and on run queues, turns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Threads:
    """Times of each thread since it began: (on CPUs, on run queues), in ns."""

    times: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, pid: int) -> Threads:
        """Reads those of a process; none if it is gone."""
        found = cls()
        for task in Path(f"/proc/{pid}/task").glob("*"):
            try:
                ran, waited, _turns = (task / "schedstat").read_text().split()
                name = (task / "comm").read_text().strip()
            except OSError:
                continue
            found.times[f"{name} ({task.name})"] = (int(ran), int(waited))
        return found

    def since(self, earlier: Threads) -> Threads:
        """Returns what was added."""
        zero = (0, 0)
        return Threads(
            {
                name: (ran - earlier.times.get(name, zero)[0], waited - earlier.times.get(name, zero)[1])
                for name, (ran, waited) in self.times.items()
            }
        )

    @property
    def ran_s(self) -> float:
        """Time on CPUs, of all threads."""
        return sum(ran for ran, _waited in self.times.values()) / 1e9

    @property
    def waited_s(self) -> float:
        """Time of the thread that waited for a CPU the longest."""
        return max((waited for _ran, waited in self.times.values()), default=0) / 1e9

    def __str__(self) -> str:
        busy = {name: times for name, times in self.times.items() if max(times) > 10**7}
        each = (f"{name}: ran {ran / 1e9:.2f}, waited {waited / 1e9:.2f}" for name, (ran, waited) in busy.items())
        return f"on CPUs {self.ran_s:.2f} s, one thread on a run queue for {self.waited_s:.2f} s [{'; '.join(each)}]"

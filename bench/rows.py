"""The rows of the benchmark: what each measures, the class that it counts for, and what issue 3 wants of the class."""

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """A row of the benchmark program. `name`: as bench/guest/ has it."""

    name: str
    kind: str
    text: str


@dataclass(frozen=True)
class Mean:
    """A geometric mean over rows, and the slowdown against native that Ring3 is to reach (None: nothing was said)."""

    text: str
    rows: tuple[str, ...]
    goal: float | None


BOOT_ROW = "start to shell marker"
MEMORY_ROW = "memory, idle at its shell"
DEBIAN = "Debian"
"""The class of the rows that need a Debian root file system."""

ROWS = [
    Row("sieve-hash", "compute", "sieve of 64 Ki and hash"),
    Row("fib", "compute", "fibonacci 24, recursive"),
    Row("interpreter", "compute", "bytecode interpreter"),
    Row("virtual-calls", "compute", "virtual call"),
    Row("matmul", "compute", "double matrix product, 128 x 128"),
    Row("nbody", "compute", "5 bodies, one step"),
    Row("sha256", "compute", "sha256 of 64 KiB"),
    Row("lz", "compute", "LZ compression of 64 KiB"),
    Row("memcpy-1M", "memory", "memcpy of 1 MiB"),
    Row("memset-1M", "memory", "memset of 1 MiB"),
    Row("memcpy-64M", "memory", "memcpy of 64 MiB"),
    Row("memset-64M", "memory", "memset of 64 MiB"),
    Row("pointer-chase", "memory", "pointer chase over 32 MiB, one load"),
    Row("null-call", "kernel", "null system call"),
    Row("clock-vdso", "kernel", "clock by vDSO"),
    Row("stat", "kernel", "stat"),
    Row("open-close", "kernel", "open + close"),
    Row("create-delete", "kernel", "file create + delete (tmpfs)"),
    Row("signal-install", "kernel", "signal install"),
    Row("signal-deliver", "kernel", "signal deliver"),
    Row("pipe-ping-pong", "kernel", "pipe ping-pong"),
    Row("unix-ping-pong", "kernel", "AF_UNIX ping-pong"),
    Row("fork-exit", "kernel", "fork + exit"),
    Row("fork-exec", "kernel", "fork + exec"),
    Row("sh-c", "kernel", "sh -c"),
    Row("mmap-touch", "kernel", "mmap + touch 16 pages + munmap"),
    Row("page-fault", "kernel", "page fault"),
    Row("protection-fault", "kernel", "protection fault, to the signal handler and back"),
    Row("jit-rwx", "JIT", "code written and run at once"),
    Row("jit-mprotect", "JIT", "the same, mprotect W to X between"),
    Row("python-start", DEBIAN, "Python start-up"),
    Row("node-start", DEBIAN, "Node start-up"),
    Row("gcc-1000", DEBIAN, "gcc -O2 -c of 1,000 lines"),
    Row("node-loop", DEBIAN, "Node, a computing program"),
    Row("luajit-loop", DEBIAN, "LuaJIT, a computing program"),
]


def _of(kind: str) -> tuple[str, ...]:
    return tuple(row.name for row in ROWS if row.kind == kind)


MEANS = [
    Mean("compute", _of("compute"), 2.0),
    Mean("of these matmul and nbody", ("matmul", "nbody"), 1.3),
    Mean("memory", _of("memory"), 1.5),
    Mean("kernel", _of("kernel"), 4.0),
    Mean("JIT", _of("JIT"), 15.0),
    Mean("programs in a Debian root", _of(DEBIAN), None),
    Mean("whole", tuple(row.name for row in ROWS), None),
]

BOOT_GOAL = 0.5
"""Ring3's start at most this share of TCG's."""
MEMORY_GOAL_MIB = 100
WHOLE_GOAL = 3.0
"""TCG's whole mean at least this many times Ring3's; UML's above it (ratio over 1)."""


def geometric_mean(values: Iterable[float]) -> float | None:
    """Returns the geometric mean, None of nothing."""
    logarithms = [math.log(value) for value in values]
    return math.exp(sum(logarithms) / len(logarithms)) if logarithms else None

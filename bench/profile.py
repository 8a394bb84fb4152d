"""Profiles one row of the benchmark in a Ring3 guest: where the host's time goes, by function of guest and hypervisor.

Boots a guest that repeats the row, samples ring3d and its children with `perf record`, and finds each sample's place
itself: translated code is a memfd mapping, which perf gives no name; `RING3_PERF_MAP` makes ring3d write which guest
address each block was made of, the guest's kallsyms and the program's symbols say which function that is.

    python bench/profile.py fork-exec --seconds 5 --blocks
"""

import argparse
import base64
import bisect
import gzip
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from contest import Run
from memory import descendants
from rows import ROWS
from run import REPOSITORY, compile_program, contestants, works

from ring3.dev import initramfs, kernel

_WARM_UP_S = 3.0
_FOREVER_MS = 10_000_000
_SYMBOLS_SCRIPT = "grep -i ' t ' /proc/kallsyms | gzip -9 | base64; echo SYMBOLS-END\n"


@dataclass(frozen=True)
class Symbols:
    """Functions by address; a function reaches to the next one's start."""

    starts: list[int]
    names: list[str]

    @classmethod
    def parse(cls, lines: Iterable[str]) -> "Symbols":
        """Reads `address type name`, as nm and kallsyms have it."""
        found = sorted((int(at, 16), name) for at, _, name in (line.split()[:3] for line in lines))
        return cls([at for at, _ in found], [name for _, name in found])

    def name(self, address: int) -> str | None:
        """Returns the function that an address is in; None before the first and a megabyte behind any."""
        place = bisect.bisect_right(self.starts, address) - 1
        if place < 0 or address - self.starts[place] > 1 << 20:
            return None
        return self.names[place]


class BlockMap:
    """Translated blocks by host address, from the lines of a perf map: what was written last is what is there."""

    def __init__(self, lines: Sequence[str]) -> None:
        self._starts: list[int] = []
        self._blocks: list[tuple[int, str]] = []  # end, symbol
        for line in reversed(lines):
            fields = line.split()
            if len(fields) == 3:
                start, symbol = int(fields[0], 16), fields[2]
                end = start + int(fields[1], 16)
                place = bisect.bisect_left(self._starts, start)
                is_free = place == 0 or self._blocks[place - 1][0] <= start
                if is_free and (place == len(self._starts) or end <= self._starts[place]):
                    self._starts.insert(place, start)
                    self._blocks.insert(place, (end, symbol))

    def find(self, address: int) -> str | None:
        """Returns the symbol (`k_` or `u_` and the guest address) of the block that holds a host address."""
        place = bisect.bisect_right(self._starts, address) - 1
        return self._blocks[place][1] if place >= 0 and address < self._blocks[place][0] else None


@dataclass(frozen=True)
class Sample:
    """One sample, as `perf script` prints it."""

    command: str
    address: int
    symbol: str
    file: str


_SCRIPT_LINE = re.compile(r"^\s*(.+?)\s+([0-9a-f]+)\s+(.*)\s+\(([^\s()]+(?: \(deleted\))?)\)\s*$")


def parse_samples(text: str) -> list[Sample]:
    """Reads what `perf script -F comm,ip,sym,dso` prints."""
    found = []
    for line in text.splitlines():
        if match := _SCRIPT_LINE.match(line):
            command, address, symbol, file = match.groups()
            found.append(Sample(command, int(address, 16), symbol, file))
    return found


@dataclass(frozen=True)
class Resolver:
    """Finds what a sample belongs to."""

    blocks: BlockMap
    kernel: Symbols
    program: Symbols
    shows_blocks: bool

    def place(self, sample: Sample) -> tuple[str, str]:
        """Returns the kind of place (whose time it is) and its name."""
        if sample.file == "[kernel.kallsyms]" or sample.address >> 63:
            return "host kernel", sample.symbol
        if (symbol := self.blocks.find(sample.address)) is not None:
            return self._guest(symbol)
        if "ring3-code" in sample.file:
            return "code cache, no block", f"{sample.address:#x}" if self.shows_blocks else "entries, exits, helpers"
        if "ring3-machine" in sample.file:
            # The guest's frames are mapped at the guest's addresses.
            return "guest user, run directly", self._name(self.program, sample.address)
        return f"{Path(sample.file).name}", sample.symbol

    def _guest(self, symbol: str) -> tuple[str, str]:
        mode, address = symbol.split("_", 1)
        rip = int(address, 16)
        kind, table = ("guest kernel", self.kernel) if mode == "k" else ("guest user", self.program)
        name = self._name(table, rip)
        return f"{kind}, translated", f"{name} {rip:#x}" if self.shows_blocks else name

    def _name(self, table: Symbols, address: int) -> str:
        return table.name(address) or f"page {address & ~0xFFF:#x}"


def kernel_symbols(cache: Path, image: Path) -> Symbols:
    """Returns the functions of a guest kernel, which a guest is asked for once."""
    target = cache / f"kallsyms-{hashlib.sha256(image.read_bytes()).hexdigest()[:16]}.gz"
    if not target.exists():
        ramdisk = initramfs.build(cache, "kallsyms", {"bench/script": _SYMBOLS_SCRIPT.encode()})
        ring3 = contestants(cache)[-1]
        guest = Run(ring3.arguments(256, ramdisk, "quiet ring3.run=/bench/script"))
        try:
            guest.wait_for("SYMBOLS-END")
        finally:
            guest.end()
        packed = guest.text.split(b"RING3-SHELL-READY", 1)[1].split(b"SYMBOLS-END", 1)[0]
        target.write_bytes(base64.b64decode(b"".join(packed.split())))
    return Symbols.parse(gzip.decompress(target.read_bytes()).decode().splitlines())


def program_symbols(program: Path) -> Symbols:
    """Returns the functions of the benchmark program."""
    listed = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    return Symbols.parse(line for line in listed.splitlines() if re.match(r"\S+ [tTwWi] ", line))


def record(pids: Sequence[int], seconds: float, output: str) -> str:
    """Samples processes, and returns what `perf script` says."""
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "997", "-p", ",".join(map(str, pids)), "-o", output]
    subprocess.run([*command, "--", "sleep", str(seconds)], check=True)
    script = ["perf", "script", "-i", output, "-F", "comm,ip,sym,dso"]
    return subprocess.run(script, check=True, capture_output=True, text=True).stdout


def profile(row: str, seconds: float, shows_blocks: bool) -> list[tuple[str, str]]:
    """Returns the place of each sample."""
    cache = Path(os.environ.get("RING3_GUEST_CACHE", str(REPOSITORY / ".cache" / "guest")))
    symbols = kernel_symbols(cache, kernel.default(cache))
    ring3 = contestants(cache)[-1]
    os.environ["RING3_PERF_MAP"] = "1"
    with tempfile.TemporaryDirectory() as directory:
        program = compile_program(Path(directory))
        work = works(cache, program, _FOREVER_MS, [row])[0]
        guest = Run(ring3.arguments(work.memory_mib, work.ramdisk, "quiet ring3.run=/bench/script"))
        try:
            guest.wait_for("RING3-SHELL-READY")
            time.sleep(_WARM_UP_S)
            pids = descendants(guest.process.pid)
            text = record(pids, seconds, f"{directory}/perf.data")
            maps = [path for pid in pids if (path := Path(f"/tmp/perf-{pid}.map")).exists()]
            lines = [line for path in maps for line in path.read_text().splitlines()]
        finally:
            guest.end()
        for path in maps:
            path.unlink()
        resolver = Resolver(BlockMap(lines), symbols, program_symbols(program), shows_blocks)
        return [resolver.place(sample) for sample in parse_samples(text)]


def show(places: Sequence[tuple[str, str]], nr_lines: int) -> str:
    """Returns the shares by kind, and of the places with most samples."""
    total = len(places)
    kinds = Counter(kind for kind, _ in places)
    lines = [f"{total} samples", ""]
    lines += [f"{100 * count / total:6.2f} %  {kind}" for kind, count in kinds.most_common()]
    lines.append("")
    for (kind, name), count in Counter(places).most_common(nr_lines):
        lines.append(f"{100 * count / total:6.2f} %  {kind:28} {name}")
    return "\n".join(lines)


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("row", choices=[row.name for row in ROWS])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--lines", type=int, default=40)
    parser.add_argument("--blocks", action="store_true", help="one line for each translated block, not each function")
    arguments = parser.parse_args()
    places = profile(arguments.row, arguments.seconds, arguments.blocks)
    if not places:
        print("perf took no sample", file=sys.stderr)
        return 1
    print(show(places, arguments.lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Builds the small PV guests of tests/guests, and reads what their opening comment expects."""

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

GUESTS = Path(__file__).parent.parent / "guests"
_COMMON = GUESTS / "common"
_FLAGS = (  # noqa: SIM905
    "-O2 -g -Wall -Wextra -Werror -std=gnu11 -ffreestanding -nostdlib -static -mcmodel=kernel -mno-red-zone "
    "-mgeneral-regs-only -fno-pic -no-pie -fno-stack-protector -fcf-protection=none "
    "-Wl,--build-id=none -Wl,--no-warn-rwx-segments"
).split()


@dataclass(frozen=True)
class Guest:
    """One guest and what is expected of it."""

    name: str
    expect_exit: int
    expect_stderr: str | None
    memory_mib: int
    nr_vcpus: int
    timeout_s: int


def names() -> list[str]:
    """Returns every guest but those that another test starts (`run-by:` in their comment)."""
    return sorted(
        str(path.parent.relative_to(GUESTS))
        for path in GUESTS.glob("**/main.c")
        if " * run-by: " not in path.read_text()
    )


def load(name: str) -> Guest:
    """Returns what the opening comment of the guest says."""
    source = (GUESTS / name / "main.c").read_text()
    comment = source[: source.index("*/")]
    keys = dict(re.findall(r"^ \* ([a-z-]+): (.+)$", comment, re.MULTILINE))
    return Guest(
        name=name,
        expect_exit=int(keys.get("expect-exit", "0")),
        expect_stderr=keys.get("expect-stderr"),
        memory_mib=int(keys.get("memory", "16")),
        nr_vcpus=int(keys.get("vcpus", "1")),
        timeout_s=int(keys.get("timeout", "30")),
    )


def build(name: str, directory: Path, *flags: str) -> Path:
    """Compiles the guest, with more flags for gcc if need be, and returns its ELF file."""
    image = directory / f"{name.replace('/', '-')}.elf"
    common = [_COMMON / part for part in ("head.S", "guest.c", "memory.c", "smp.c", "user.c")]
    sources = [*common, *sorted((GUESTS / name).glob("*.c"))]
    command = ["gcc", *_FLAGS, *flags, f"-I{_COMMON}", "-T", str(_COMMON / "guest.lds"), "-o", str(image)]
    command += map(str, sources)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"guest {name} does not compile:\n{done.stderr}")
    return image

"""What the host does with a disk itself. Where it has one mounted no guest gets it, as Xen's block scripts have it.

Who writes a file system under somebody who has it mounted destroys it; who reads it finds it half written.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_SYS: Final = Path("/sys")


def is_there(path: Path) -> bool:
    """Returns whether there is something, as far as one may see: opening it says what one may not."""
    try:
        return path.exists()
    except OSError:
        return False


def is_block_device(path: Path) -> bool:
    """As is_there(), of a block device."""
    try:
        return path.is_block_device()
    except OSError:
        return False


def mounted_at(status: os.stat_result, *, is_read_only: bool) -> str | None:
    """Returns where the host has a disk (a block device, or a file that a loop device shows) or a partition of it
    mounted, in a way that excludes the use; None if nowhere. What is mounted read-only may be read."""
    if stat.S_ISBLK(status.st_mode):
        devices = set(_with_partitions(os.major(status.st_rdev), os.minor(status.st_rdev)))
    else:
        devices = set(_loop_devices(status))
    if not devices:
        return None
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _dash, more = line.partition(" - ")
        _id, _parent, numbers, _root, place, *_rest = fields.split()
        _type, source, options = more.split(" ", 2)
        if is_read_only and options.split(",")[0] == "ro":
            continue
        if devices & {numbers, _numbers_of(_unescape(source))}:
            return _unescape(place)
    return None


def _unescape(text: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), text)


def _numbers_of(source: str) -> str:
    """Returns the numbers of a device that is mounted: file systems such as btrfs have others of their own."""
    if source.startswith("/"):
        try:
            status = Path(source).stat()
        except OSError:
            return ""
        if stat.S_ISBLK(status.st_mode):
            return f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    return ""


def _with_partitions(major: int, minor: int) -> Iterator[str]:
    yield f"{major}:{minor}"
    for node in (_SYS / "dev" / "block" / f"{major}:{minor}").glob("*/dev"):
        yield node.read_text().strip()


def _loop_devices(status: os.stat_result) -> Iterator[str]:
    for node in (_SYS / "block").glob("loop*/loop/backing_file"):
        try:
            backing = Path(node.read_text(errors="surrogateescape").rstrip("\n")).stat()
            major, minor = map(int, (node.parent.parent / "dev").read_text().split(":"))
        except OSError:
            continue
        if (backing.st_dev, backing.st_ino) == (status.st_dev, status.st_ino):
            yield from _with_partitions(major, minor)

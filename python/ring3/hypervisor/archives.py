"""Files in which ring3d keeps translations of kernels between runs, so that a kernel starts sooner the next time.

They lie in a directory that only this user can write to, and are named by what a translation depends on beside the
guest's code: this build of the core and the host's CPU. RING3_TRANSLATIONS=0 turns them off, =DIRECTORY moves them.
What cannot be used is no error: the code is translated again. Format: shelf.rs and cache/archive.rs of the engine.
"""

from __future__ import annotations

import itertools
import logging
import os
import zlib
from pathlib import Path
from typing import Final

import ring3._core
from ring3 import caches

NR_FILES: Final = 4
"""Kernels that are remembered."""
MOST_FILES: Final = 12
"""Files of other builds go beyond that, the oldest first."""
_log = logging.getLogger(__name__)


def open_files() -> list[int]:
    """Opens the files for reading and writing. The caller owns the descriptors; there are none where that fails."""
    opened: list[int] = []
    try:
        folder = caches.directory("translations", "RING3_TRANSLATIONS")
        if folder is None:
            return opened
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not caches.is_private(folder.lstat()):
            _log.warning("translations in %s are not ours alone; not using them", folder)
            return opened
        key = _key()
        _evict(folder, key)
        for number in range(NR_FILES):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(folder / f"{key}-{number}", flags, 0o600)
            opened.append(fd)
            if not caches.is_private(os.fstat(fd)):
                raise PermissionError(f"{key}-{number} is not ours alone")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        _log.info("translations are not kept: %s", error)
        for fd in opened:
            os.close(fd)
        return []
    return opened


def _evict(folder: Path, key: str) -> None:
    """Makes room for this build's files."""
    others = [entry for entry in folder.iterdir() if not entry.name.startswith(key)]
    others.sort(key=lambda entry: entry.lstat().st_mtime)
    for entry in others[: max(0, len(others) - (MOST_FILES - NR_FILES))]:
        entry.unlink(missing_ok=True)


def _key() -> str:
    """Returns a name for this build of the core on this CPU."""
    core = Path(ring3._core.__file__).stat()
    with Path("/proc/cpuinfo").open() as cpus:
        first = list(itertools.takewhile(str.strip, cpus))
    cpu = zlib.crc32("".join(line for line in first if "MHz" not in line).encode())
    return f"{core.st_ino:x}-{core.st_size:x}-{core.st_mtime_ns:x}-{cpu:08x}"

"""Files in which ring3d keeps translations of kernels between runs, so that a kernel starts sooner the next time.

They lie in a directory that only this user can write to, and are named by what a translation depends on beside the
guest's code: this build of the core and the host's CPU. RING3_TRANSLATIONS=0 turns them off, =DIRECTORY moves them.
What cannot be used is no error: the code is translated again. Format: shelf.rs and cache/archive.rs of the engine.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from pathlib import Path
from typing import Final

import ring3._core

NR_FILES: Final = 4
"""Kernels that are remembered."""
MOST_FILES: Final = 12
"""Files of other builds go beyond that, the oldest first."""
_log = logging.getLogger(__name__)


def directory() -> Path | None:
    """Returns where the files are, None if they are turned off."""
    setting = os.environ.get("RING3_TRANSLATIONS", "")
    if setting == "0":
        return None
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "ring3" / "translations"


def open_files() -> list[int]:
    """Opens the files for reading and writing. The caller owns the descriptors; there are none where that fails."""
    folder = directory()
    opened: list[int] = []
    if folder is None:
        return opened
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not _is_private(folder.lstat()):
            _log.warning("translations in %s are not ours alone; not using them", folder)
            return opened
        key = _key()
        _evict(folder, key)
        for number in range(NR_FILES):
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(folder / f"{key}-{number}", flags, 0o600)
            opened.append(fd)
            if not _is_private(os.fstat(fd)):
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
    cpu = [line for line in Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines() if "MHz" not in line]
    return hashlib.sha256(f"{core.st_ino} {core.st_size} {core.st_mtime_ns} {cpu}".encode()).hexdigest()[:16]


def _is_private(status: os.stat_result) -> bool:
    """Whether it belongs to this user and nobody else can write to it; a symbolic link never does."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022 and not stat.S_ISLNK(status.st_mode)

"""Where this user's caches are, and whether what lies there may be trusted."""

from __future__ import annotations

import os
import stat
from pathlib import Path


def directory(name: str, variable: str) -> Path | None:
    """Returns the directory of a cache.

    The environment variable says "0" for none, in which case there is None, or names another directory. Raises
    RuntimeError if there is no home directory to have it in.
    """
    setting = os.environ.get(variable, "")
    if setting == "0":
        return None
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "ring3" / name


def is_private(status: os.stat_result) -> bool:
    """Whether a file belongs to this user and nobody else can write to it; a symbolic link never does."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022 and not stat.S_ISLNK(status.st_mode)

"""Whether what lies in a cache may be trusted."""

from __future__ import annotations

import os
import stat


def is_private(status: os.stat_result) -> bool:
    """Whether a file belongs to this user and nobody else can write to it; a symbolic link never does."""
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022 and not stat.S_ISLNK(status.st_mode)

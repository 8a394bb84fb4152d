"""Helper programs of domain 0, such as passt: how one begins, and what it has said."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from ring3.libs.process import die_with_parent

_log = logging.getLogger(__name__)
_LINE_LENGTH_MAX: Final = 300


def last_line(log: Path) -> str:
    """Returns what a helper has said last."""
    try:
        return log.read_text(errors="replace").strip().rpartition("\n")[2][-_LINE_LENGTH_MAX:]
    except OSError:
        return ""


def execute(command: Sequence[str], fds: Sequence[int], log: Path) -> NoReturn:
    """Goes on as a program that has these descriptors as its 3, 4 and so on, and its standard error in a file."""
    die_with_parent(signal.SIGTERM)
    with contextlib.suppress(OSError):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), 2)
    first = 3
    # Out of the way first: one may be where another shall be.
    copies = [fcntl.fcntl(fd, fcntl.F_DUPFD, first + len(fds)) for fd in fds]
    for number, fd in enumerate(copies, first):
        os.dup2(fd, number, inheritable=True)
    os.closerange(first + len(fds), os.sysconf("SC_OPEN_MAX"))
    try:
        os.execvp(command[0], list(command))  # noqa: S606
    except OSError as error:
        _log.error("%s: %s", command[0], error.strerror)
        os._exit(127)

"""What ring3d gives up: docs/security.md.

Files go before the first thread or helper of the core starts, because Landlock holds for what the caller starts later;
system calls go at the end of boot. Nothing is imported, opened or looked up by name after that: what later work needs
lazily is imported here.
"""

from __future__ import annotations

import array
import encodings.idna
import linecache
import logging
import re
import resource
import time
import traceback
from pathlib import Path
from typing import Final

from ring3._core import CoreError, forbid_files, forbid_syscalls
from ring3.errors import Error

_log = logging.getLogger(__name__)
_ = (array, encodings.idna, linecache, traceback)  # `socket` and `logging` import some of these at their first use

_MIB: Final = 1 << 20
OPEN_FILES_MAX: Final = 4096
"""Three descriptors for each dom0 connection, and a few for each domain."""
PRIVATE_BYTES_MORE: Final = 4 << 30
"""Private memory beyond what boot took: a leak ends this machine, not the host."""


def _limit(kind: int, value: int) -> None:
    """Lowers a limit for good; one that is lower already stays."""
    _soft, hard = resource.getrlimit(kind)
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def _private_bytes() -> int:
    """Returns the private memory of this process, as RLIMIT_DATA counts it."""
    match = re.search(r"^VmData:\s*([0-9]+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(match[1]) << 10 if match else 0


def limit_resources(nr_frames: int) -> None:
    """Limits descriptors and private memory, and forbids core files, which would hold the memory of guests."""
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
    # The frame table and its like: the host counts them whole, touched or not.
    _limit(resource.RLIMIT_DATA, _private_bytes() + PRIVATE_BYTES_MORE + 64 * nr_frames)


def give_up_files() -> None:
    """Called by boot before the core is made. Raises Error."""
    time.tzset()
    try:
        walls = forbid_files()
    except CoreError as error:
        raise Error(f"the hypervisor cannot be locked down: {error.args[-1]}") from error
    if walls != "whole":
        _log.warning(
            "the host's kernel has %s Landlock: only the system call filter holds", walls.replace("none", "no")
        )


def give_up_system_calls() -> None:
    """Called at the end of boot. Raises Error."""
    try:
        forbid_syscalls()
    except CoreError as error:
        raise Error(f"the hypervisor cannot be locked down: {error.args[-1]}") from error

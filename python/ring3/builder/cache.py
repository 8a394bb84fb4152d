"""A cache of decompressed kernels: xz costs most of a second at every start.

Files are named by the SHA-256 of the compressed image, in a directory that only this user can write to. Beside them are
notes of which file had which contents, so that a file that has not changed since need not be read: hashing takes 10 ms,
and the library for it 3 MiB.
RING3_KERNEL_CACHE=0 turns it off, =DIRECTORY moves it. A cache that cannot be used is no error: the kernel is
decompressed again.
"""

import contextlib
import logging
import mmap
import os
import re
import time
from pathlib import Path
from typing import Final

from ring3 import caches

MAX_FILES: Final = 4
_NOTE_SUFFIX: Final = ".key"
_SETTLED_NS: Final = 2_000_000_000
"""A file that changed more recently may change again with the same time stamp: these are coarse."""
_log = logging.getLogger(__name__)


def directory() -> Path | None:
    """Returns where the cache is, None if it is turned off."""
    return caches.directory("kernels", "RING3_KERNEL_CACHE")


def key_of(image: memoryview, status: os.stat_result) -> str:
    """Returns the name under which a compressed image is kept. `status` is its file's, from before it was read."""
    # Nobody sets the time of a change back: the same file with the same one has the same contents.
    times = (status.st_mtime_ns, status.st_ctime_ns)
    note = "-".join(f"{part:x}" for part in (status.st_dev, status.st_ino, status.st_size, *times)) + _NOTE_SUFFIX
    is_settled = time.time_ns() - max(times) > _SETTLED_NS
    known = _read(note) if is_settled else None
    if known is not None and re.fullmatch(rb"[0-9a-f]{64}", known):
        return known.decode()
    import hashlib

    key = hashlib.sha256(image).hexdigest()
    if is_settled:
        store(note, key.encode())
    return key


def _read(name: str) -> bytes | None:
    """Returns the contents of a small file of the cache, or None."""
    found = load(name, 64)
    if found is None:
        return None
    with found:
        return found[:]


def load(key: str, nr_bytes: int) -> mmap.mmap | None:
    """Maps a cached kernel of exactly `nr_bytes`, or returns None."""
    folder = directory()
    if folder is None:
        return None
    try:
        if not caches.is_private(folder.lstat()):
            _log.warning("kernel cache %s is not ours alone; not using it", folder)
            return None
        fd = os.open(folder / key, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            status = os.fstat(fd)
            if not caches.is_private(status) or status.st_size != nr_bytes:
                return None
            with contextlib.suppress(OSError):
                os.utime(fd)  # the oldest is evicted first
            return mmap.mmap(fd, nr_bytes, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(fd)
    except OSError:
        return None


def store(key: str, contents: bytes) -> None:
    """Keeps a kernel or a note, and forgets the least recently used ones."""
    import tempfile  # rarely needed, and what it imports itself takes a while

    folder = directory()
    if folder is None:
        return
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not caches.is_private(folder.lstat()):
            return
        fd, temporary = tempfile.mkstemp(dir=folder, prefix=".new-")  # mode 0600
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(contents)
            Path(temporary).rename(folder / key)  # whole or not at all
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        _evict(folder)
    except OSError as error:
        _log.info("kernel cache %s: %s", folder, error)


def _evict(folder: Path) -> None:
    entries = sorted((entry for entry in folder.iterdir() if entry.is_file()), key=lambda entry: entry.stat().st_mtime)
    for is_note in (False, True):
        of_kind = [entry for entry in entries if (entry.suffix == _NOTE_SUFFIX) == is_note]
        for entry in of_kind[:-MAX_FILES]:
            entry.unlink(missing_ok=True)

"""The shared directory: every access to the host's files, none of which leaves it.

No symbolic link is followed, wherever it leads: resolving them is the client's part. The kernel is asked to refuse them
and everything that leaves the directory (openat2), so nobody who renames things meanwhile gets out. What is neither a
regular file nor a directory is never opened: a device node here is a name to the client, not the host's device.
Landlock (`device`) says the same once more.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EEXIST, EINVAL, EIO, ELOOP, EROFS, EXDEV
from pathlib import Path
from typing import Final

from ring3.dom0.p9.fids import Names

_SYS_OPENAT2: Final = 437
_RESOLVE: Final = 0x08 | 0x04 | 0x02
"""RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS. Source: linux/openat2.h."""
_OPEN_HOW: Final = struct.Struct("<QQQ")
_OPENABLE: Final = os.O_ACCMODE | os.O_APPEND | os.O_TRUNC | os.O_NOATIME | os.O_DSYNC | os.O_SYNC | os.O_NONBLOCK
"""The flags of a client that mean something here; the numbers of 9P2000.L are Linux's. O_DIRECT is not: the data's
alignment is ours."""
WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_TRUNC
MODE_BITS: Final = 0o7777


class Tree:
    """A directory and all below it. Methods raise OSError with the code that the client gets."""

    def __init__(self, path: Path, *, is_read_only: bool) -> None:
        self.root_fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.is_read_only = is_read_only
        self._libc = ctypes.CDLL(None, use_errno=True)

    @contextmanager
    def at(self, names: Names) -> Iterator[int]:
        """Yields an O_PATH descriptor of a file, whatever it is (a symbolic link too)."""
        fd = self._resolve(names, os.O_PATH | os.O_NOFOLLOW)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextmanager
    def parent(self, names: Names) -> Iterator[tuple[int, bytes]]:
        """Yields a descriptor of the directory that a path is in, and the name there. The root is in none."""
        if not names:
            raise OSError(EACCES, "the shared directory itself stays")
        fd = self._resolve(names[:-1], os.O_PATH | os.O_DIRECTORY)
        try:
            yield fd, names[-1]
        finally:
            os.close(fd)

    def stat(self, names: Names) -> os.stat_result:
        """Returns what a file is."""
        with self.at(names) as fd:
            return os.fstat(fd)

    def open(self, names: Names, flags: int) -> int:
        """Opens a regular file or a directory; returns a descriptor."""
        self.check_writable(flags)
        with self.at(names) as fd:
            kind = os.fstat(fd).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise OSError(ELOOP if stat.S_ISLNK(kind) else EACCES, "neither a file nor a directory")
            # The very file that was looked at: the link of an open descriptor leads nowhere else.
            return os.open(self_path(fd), flags & _OPENABLE | os.O_CLOEXEC | os.O_NOCTTY)

    def create(self, names: Names, flags: int, mode: int) -> tuple[int, bool]:
        """Opens a file, made if it is missing; returns a descriptor, and whether it was made."""
        self.check_writable(os.O_WRONLY)
        with self.parent(names) as (parent, name):
            made = flags & _OPENABLE | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                return os.open(name, made, mode & MODE_BITS, dir_fd=parent), True
            except FileExistsError:
                if flags & os.O_EXCL:
                    raise
        return self.open(names, flags), False

    def check_writable(self, flags: int = os.O_WRONLY) -> None:
        """Raises OSError if that would change a read-only tree."""
        if self.is_read_only and flags & WRITING:
            raise OSError(EROFS, "shared for reading")

    def chmod(self, names: Names, mode: int) -> None:
        """Sets permission bits; a symbolic link has none."""
        with self.at(names) as fd:
            if not stat.S_ISLNK(os.fstat(fd).st_mode):
                os.chmod(self_path(fd), mode & MODE_BITS)  # noqa: PTH101

    def truncate(self, names: Names, size: int) -> None:
        """Sets a file's size."""
        fd = self.open(names, os.O_WRONLY)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def rename(self, old: Names, new: Names) -> None:
        """Moves a file or directory."""
        self.check_writable()
        with self.parent(old) as (old_fd, old_name), self.parent(new) as (new_fd, new_name):
            os.rename(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)

    def link(self, target: Names, new: Names) -> None:
        """Gives a file another name."""
        self.check_writable()
        with self.parent(target) as (old_fd, old_name), self.parent(new) as (new_fd, new_name):
            os.link(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd, follow_symlinks=False)

    def remove(self, names: Names, *, is_dir: bool) -> None:
        """Removes a name."""
        self.check_writable()
        with self.parent(names) as (parent, name):
            if is_dir:
                os.rmdir(name, dir_fd=parent)
            else:
                os.unlink(name, dir_fd=parent)

    def close(self) -> None:
        """Lets go of the directory."""
        os.close(self.root_fd)

    def _resolve(self, names: Names, flags: int) -> int:
        path = b"/".join(names) or b"."
        how = _OPEN_HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE)
        fd = int(self._libc.syscall(_SYS_OPENAT2, self.root_fd, path, how, len(how)))
        if fd < 0:
            number = ctypes.get_errno() or EIO
            # What leaves the tree is not there.
            raise OSError(EACCES if number == EXDEV else number, os.strerror(number), os.fsdecode(path))
        return fd


def self_path(fd: int) -> str:
    """Returns a path that leads to an open descriptor's file, for calls that take paths alone."""
    return f"/proc/self/fd/{fd}"


def check_name(name: bytes) -> bytes:
    """Returns a name that can be made in a directory. Raises OSError for one that is a path, or none."""
    if name in (b".", b".."):
        raise OSError(EEXIST, "that is there already")
    if not name or b"/" in name or b"\0" in name:
        raise OSError(EINVAL, f"no name: {name!r}")
    return name


def step(names: Names, name: bytes) -> Names:
    """Returns where a walk of one name leads; above the shared directory there is nothing but itself."""
    if name == b".":
        return names
    if name == b"..":
        return names[:-1]
    return (*names, check_name(name))

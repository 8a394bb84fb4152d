"""Whose the files are, and of what kind: as the host has it, or as the client said (xl.cfg(5), p9= security_model=).

- `none`: the host's own owners and modes. Where this process may not give files away, being no root, it keeps them.
- `mapped`: owner, mode, device numbers are kept in extended attributes `user.virtfs.*`, symbolic links and special
  files as regular files, so the client can have all of them without any right on the host. The format is QEMU's
  mapped-xattr.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from errno import EINVAL, ENODATA, EOPNOTSUPP, EPERM
from typing import Final, Protocol

from ring3.dom0.p9.fids import Names
from ring3.dom0.p9.tree import Tree, self_path

UNCHANGED: Final = 0xFFFFFFFF
"""An owner that stays."""
PREFIX: Final = b"user.virtfs."
_LINK_BYTES_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Look:
    """A file as the client sees it: `mode` has the kind; the rest is the host's."""

    host: os.stat_result
    mode: int
    uid: int
    gid: int
    rdev: int


@dataclass(frozen=True, slots=True)
class Owner:
    """Who makes a file."""

    uid: int
    gid: int


class Credentials(Protocol):
    """A security model. Methods raise OSError."""

    def look(self, fd: int) -> Look:
        """Returns what an O_PATH descriptor's file is."""

    def chmod(self, tree: Tree, names: Names, mode: int) -> None:
        """Sets permission bits."""

    def chown(self, tree: Tree, names: Names, owner: Owner) -> None:
        """Sets owner and group, either or both UNCHANGED."""

    def create(self, tree: Tree, names: Names, flags: int, mode: int, owner: Owner) -> int:
        """Opens a regular file, made if it is missing; returns a descriptor."""

    def mkdir(self, tree: Tree, names: Names, mode: int, owner: Owner) -> None:
        """Makes a directory."""

    def mknod(self, tree: Tree, names: Names, mode: int, rdev: int, owner: Owner) -> None:
        """Makes a file of any kind but directory and link."""

    def symlink(self, tree: Tree, names: Names, target: bytes, owner: Owner) -> None:
        """Makes a symbolic link."""

    def readlink(self, tree: Tree, names: Names) -> bytes:
        """Returns what a symbolic link holds."""


class HostCredentials:
    """`none`."""

    def look(self, fd: int) -> Look:
        found = os.fstat(fd)
        return Look(found, found.st_mode, found.st_uid, found.st_gid, found.st_rdev)

    def chmod(self, tree: Tree, names: Names, mode: int) -> None:
        tree.chmod(names, mode)

    def chown(self, tree: Tree, names: Names, owner: Owner) -> None:
        uid, gid = (-1 if who == UNCHANGED else who for who in (owner.uid, owner.gid))
        if not names:
            with tree.at(names) as fd:
                os.chown(self_path(fd), uid, gid)
            return
        with tree.parent(names) as (parent, name):
            os.chown(name, uid, gid, dir_fd=parent, follow_symlinks=False)

    def create(self, tree: Tree, names: Names, flags: int, mode: int, owner: Owner) -> int:
        fd, is_new = tree.create(names, flags, mode)
        if is_new:
            self._give(tree, names, owner)
            tree.chmod(names, mode)  # what the file mode creation mask and the change of owner took
        return fd

    def mkdir(self, tree: Tree, names: Names, mode: int, owner: Owner) -> None:
        with tree.parent(names) as (parent, name):
            os.mkdir(name, mode & 0o7777, dir_fd=parent)
        self._give(tree, names, owner)
        tree.chmod(names, mode)

    def mknod(self, tree: Tree, names: Names, mode: int, rdev: int, owner: Owner) -> None:
        # Device nodes would be the host's devices to everybody who opens them here.
        if stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, 0) or rdev:
            raise OSError(EPERM, "no device nodes")
        with tree.parent(names) as (parent, name):
            os.mknod(name, mode, dir_fd=parent)
        self._give(tree, names, owner)
        tree.chmod(names, mode)

    def symlink(self, tree: Tree, names: Names, target: bytes, owner: Owner) -> None:
        with tree.parent(names) as (parent, name):
            os.symlink(target, name, dir_fd=parent)
        self._give(tree, names, owner)

    def readlink(self, tree: Tree, names: Names) -> bytes:
        with tree.parent(names) as (parent, name):
            return os.readlink(name, dir_fd=parent)

    def _give(self, tree: Tree, names: Names, owner: Owner) -> None:
        with suppress(PermissionError):
            self.chown(tree, names, owner)


class MappedCredentials:
    """`mapped`."""

    def look(self, fd: int) -> Look:
        found = os.fstat(fd)
        if stat.S_ISLNK(found.st_mode):  # one that the host made: such have no attributes
            return Look(found, found.st_mode, found.st_uid, found.st_gid, 0)
        uid, gid, mode, rdev = (_number(fd, name) for name in ("uid", "gid", "mode", "rdev"))
        return Look(
            found,
            found.st_mode if mode is None else mode,
            found.st_uid if uid is None else uid,
            found.st_gid if gid is None else gid,
            rdev or 0,
        )

    def chmod(self, tree: Tree, names: Names, mode: int) -> None:
        with tree.at(names) as fd:
            _set(fd, "mode", stat.S_IFMT(self.look(fd).mode) | mode & 0o7777)

    def chown(self, tree: Tree, names: Names, owner: Owner) -> None:
        with tree.at(names) as fd:
            for name, value in (("uid", owner.uid), ("gid", owner.gid)):
                if value != UNCHANGED:
                    _set(fd, name, value)

    def create(self, tree: Tree, names: Names, flags: int, mode: int, owner: Owner) -> int:
        fd, is_new = tree.create(names, flags, 0o600)
        if is_new:
            try:
                _set_all(fd, stat.S_IFREG | mode & 0o7777, owner)
            except OSError:
                os.close(fd)
                tree.remove(names, is_dir=False)
                raise
        return fd

    def mkdir(self, tree: Tree, names: Names, mode: int, owner: Owner) -> None:
        with tree.parent(names) as (parent, name):
            os.mkdir(name, 0o700, dir_fd=parent)
        try:
            with tree.at(names) as fd:
                _set_all(fd, stat.S_IFDIR | mode & 0o7777, owner)
        except OSError:
            tree.remove(names, is_dir=True)
            raise

    def mknod(self, tree: Tree, names: Names, mode: int, rdev: int, owner: Owner) -> None:
        if stat.S_ISDIR(mode) or stat.S_ISLNK(mode):
            raise OSError(EINVAL, "no special file")
        self._make(tree, names, b"", mode if stat.S_IFMT(mode) else mode | stat.S_IFREG, rdev, owner)

    def symlink(self, tree: Tree, names: Names, target: bytes, owner: Owner) -> None:
        if len(target) > _LINK_BYTES_MAX:
            raise OSError(EINVAL, "the target is too long")
        self._make(tree, names, target, stat.S_IFLNK | 0o777, 0, owner)

    def readlink(self, tree: Tree, names: Names) -> bytes:
        with tree.at(names) as fd:
            look = self.look(fd)
        if stat.S_ISLNK(look.host.st_mode):
            return HostCredentials().readlink(tree, names)
        if not stat.S_ISLNK(look.mode):
            raise OSError(EINVAL, "no symbolic link")
        fd = tree.open(names, os.O_RDONLY)
        try:
            return os.read(fd, _LINK_BYTES_MAX)
        finally:
            os.close(fd)

    def _make(self, tree: Tree, names: Names, data: bytes, mode: int, rdev: int, owner: Owner) -> None:
        fd, _is_new = tree.create(names, os.O_WRONLY | os.O_EXCL, 0o600)
        try:
            _set_all(fd, mode, owner)
            if rdev:
                _set(fd, "rdev", rdev)
            os.write(fd, data)
        except OSError:
            tree.remove(names, is_dir=False)
            raise
        finally:
            os.close(fd)


MODELS: Final[dict[str, type[Credentials]]] = {"none": HostCredentials, "mapped": MappedCredentials}


def _number(fd: int, name: str) -> int | None:
    try:
        value = os.getxattr(self_path(fd), PREFIX + name.encode())
    except OSError as error:
        if error.errno in (ENODATA, EOPNOTSUPP, EPERM):
            return None
        raise
    return int.from_bytes(value[:8], "little")


def _set(fd: int, name: str, value: int) -> None:
    packed = struct.pack("<Q" if name == "rdev" else "<I", value)
    os.setxattr(self_path(fd), PREFIX + name.encode(), packed)


def _set_all(fd: int, mode: int, owner: Owner) -> None:
    _set(fd, "uid", owner.uid)
    _set(fd, "gid", owner.gid)
    _set(fd, "mode", mode)

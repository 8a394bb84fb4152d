"""Writer of the `newc` cpio format, which Linux unpacks as initramfs.

A writer of our own, because device nodes and owners must not depend on who packs: no root, no files on disk, and the
same bytes for the same content. Source: Linux Documentation/driver-api/early-userspace/buffer-format.rst.
"""

import stat
from dataclasses import dataclass

_TRAILER = "TRAILER!!!"


@dataclass(frozen=True)
class Entry:
    """One member of the archive: `path` is relative to the root, without a leading slash."""

    path: str
    mode: int
    """Type and permission bits, as st_mode."""
    data: bytes = b""
    """Content of a file, target of a symbolic link."""
    device: tuple[int, int] = (0, 0)
    """Major and minor of a device node."""


def directory(path: str, permissions: int = 0o755) -> Entry:
    """Returns a directory entry."""
    return Entry(path, stat.S_IFDIR | permissions)


def regular(path: str, data: bytes, permissions: int = 0o644) -> Entry:
    """Returns a regular file."""
    return Entry(path, stat.S_IFREG | permissions, data)


def symlink(path: str, target: str) -> Entry:
    """Returns a symbolic link."""
    return Entry(path, stat.S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int, permissions: int = 0o600) -> Entry:
    """Returns a character device node."""
    return Entry(path, stat.S_IFCHR | permissions, device=(major, minor))


def _pad4(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _member(entry: Entry, inode: int) -> bytes:
    name = entry.path.encode() + b"\0"
    nr_links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    fields = (inode, entry.mode, 0, 0, nr_links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _pad4(header + name) + _pad4(entry.data)


def pack(entries: list[Entry]) -> bytes:
    """Returns the archive; entries keep their order, so a directory must stand before what is in it."""
    members = [_member(entry, inode) for inode, entry in enumerate(entries, start=1)]
    members.append(_member(Entry(_TRAILER, 0), 0))
    archive = b"".join(members)
    return archive + bytes(-len(archive) % 512)

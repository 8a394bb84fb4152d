"""Extended attributes that clients see: those of users (`user.*`), on files and directories."""

from __future__ import annotations

import os
import stat
from errno import E2BIG, EINVAL, ENOSPC, EOPNOTSUPP
from typing import Final

from ring3.dom0.p9.credentials import PREFIX
from ring3.dom0.p9.fids import Names, XattrValue
from ring3.dom0.p9.tree import Tree, self_path

_VALUE_BYTES_MAX: Final = 64 << 10


def read(tree: Tree, names: Names, name: bytes) -> bytes:
    """Returns an attribute's value; without a name the names of all, each with a NUL. Raises OSError."""
    with tree.at(names) as fd:
        _check_has_xattrs(fd)
        if name:
            _check_name(name)
            return os.getxattr(self_path(fd), name)
        listed = (os.fsencode(found) for found in os.listxattr(self_path(fd)))
        return b"".join(found + b"\0" for found in listed if _is_shown(found))


def begin(name: bytes, size: int, flags: int) -> XattrValue:
    """Returns a value that is going to be written. Raises OSError."""
    _check_name(name)
    if size > _VALUE_BYTES_MAX:
        raise OSError(E2BIG, f"an attribute of {size} bytes")
    return XattrValue(name, bytearray(), flags & (os.XATTR_CREATE | os.XATTR_REPLACE), size)


def write(value: XattrValue, offset: int, data: bytes) -> int:
    """Writes a part of a value; returns how much. Raises OSError."""
    if value.flags is None or offset > len(value.data) or offset + len(data) > value.size:
        raise OSError(ENOSPC, "beyond the attribute's size")
    value.data[offset : offset + len(data)] = data
    return len(data)


def store(tree: Tree, names: Names, value: XattrValue) -> None:
    """Sets an attribute to what was written. Raises OSError."""
    if len(value.data) != value.size:
        raise OSError(EINVAL, "an attribute half written")
    with tree.at(names) as fd:
        _check_has_xattrs(fd)
        if value.size == 0 and value.flags == 0:
            os.removexattr(self_path(fd), value.name)  # how Linux's client says that
        else:
            os.setxattr(self_path(fd), value.name, bytes(value.data), value.flags or 0)


def _is_shown(name: bytes) -> bool:
    return name.startswith(b"user.") and not name.startswith(PREFIX) and b"\0" not in name


def _check_name(name: bytes) -> None:
    if not _is_shown(name):
        raise OSError(EOPNOTSUPP, f"attribute {name!r}")


def _check_has_xattrs(fd: int) -> None:
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(EOPNOTSUPP, "neither a file nor a directory")

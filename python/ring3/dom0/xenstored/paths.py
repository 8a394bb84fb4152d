"""Path names: which are valid, and what a relative one means. Source: docs/misc/xenstore.txt of Xen."""

import re
from typing import Final

from ring3.abi.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX
from ring3.dom0.xenstored.wire import RefusedError

INTRODUCE_DOMAIN: Final = b"@introduceDomain"
RELEASE_DOMAIN: Final = b"@releaseDomain"
SPECIAL_NODES: Final = (INTRODUCE_DOMAIN, RELEASE_DOMAIN)
"""Nodes outside the tree; they have permissions, which say who is told of the event."""
_VALID: Final = re.compile(rb"/|(?:/[A-Za-z0-9_@-]+)+")
_VALID_SPECIAL: Final = re.compile(rb"@[A-Za-z0-9_@/-]+")
_HOME: Final = re.compile(rb"/local/domain/[0-9]{1,5}/")


def home(domid: int) -> bytes:
    """Returns /local/domain/<domid>."""
    return b"/local/domain/%d" % domid


def parent_of(path: bytes) -> bytes:
    """Returns the parent's path; the root's is the root."""
    head = path.rpartition(b"/")[0]
    return head or b"/"


def name_of(path: bytes) -> bytes:
    """Returns the last component."""
    return path.rpartition(b"/")[2]


def join(parent: bytes, name: bytes) -> bytes:
    """Returns the child's path."""
    return parent + name if parent == b"/" else parent + b"/" + name


def resolve(untrusted_path: bytes, base: bytes) -> bytes:
    """Returns the absolute path that a client means; relative ones start at `base`. Raises RefusedError(EINVAL)."""
    if untrusted_path.startswith(b"/"):
        path, limit = untrusted_path, XENSTORE_ABS_PATH_MAX
    else:
        path, limit = base + b"/" + untrusted_path, XENSTORE_REL_PATH_MAX + len(base) + 1
    if len(path) > limit or untrusted_path.startswith(b"@") or not _VALID.fullmatch(path):
        raise RefusedError("EINVAL")
    return path


def resolve_node(untrusted_path: bytes, base: bytes) -> bytes:
    """As resolve(); the special nodes are valid too, because they have permissions."""
    return untrusted_path if untrusted_path in SPECIAL_NODES else resolve(untrusted_path, base)


def resolve_watch(untrusted_path: bytes, base: bytes) -> bytes:
    """As resolve(); any @name is valid too, as in Xen, though few ever fire."""
    if not untrusted_path.startswith(b"@"):
        return resolve(untrusted_path, base)
    if len(untrusted_path) > XENSTORE_REL_PATH_MAX or not _VALID_SPECIAL.fullmatch(untrusted_path):
        raise RefusedError("EINVAL")
    return untrusted_path


def own_length(path: bytes) -> int:
    """Returns the length that counts for the quota: without the home in front."""
    found = _HOME.match(path)
    return len(path) - (found.end() if found else 0)

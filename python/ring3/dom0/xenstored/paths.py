"""Path names: which are valid, and what a relative one means."""

import re
from typing import Final

from ring3.abi.xs_wire import XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX
from ring3.dom0.xenstored.store import SPECIAL_NODES
from ring3.dom0.xenstored.wire import RefusedError

_VALID: Final = re.compile(rb"/|(?:/[A-Za-z0-9_@:+.-]+)+")


def home(domid: int) -> bytes:
    """Returns /local/domain/<domid>."""
    return b"/local/domain/%d" % domid


def resolve(untrusted_path: bytes, domid: int, *, allow_special: bool = False) -> bytes:
    """Returns the absolute path that a client means. Raises RefusedError(EINVAL).

    Differs from Xen 4.17: "." ":" and "+" are valid in names as well, because some back ends use them.
    """
    if untrusted_path.startswith(b"@"):
        if allow_special and untrusted_path in SPECIAL_NODES:
            return untrusted_path
        raise RefusedError("EINVAL")
    if untrusted_path.startswith(b"/"):
        path, limit = untrusted_path, XENSTORE_ABS_PATH_MAX
    else:
        path, limit = home(domid) + b"/" + untrusted_path, XENSTORE_REL_PATH_MAX + len(home(domid)) + 1
    if len(path) >= limit or not _VALID.fullmatch(path):
        raise RefusedError("EINVAL")
    return path

"""What the hypervisor says of itself: the xen_version hypercall."""

import ctypes

from ring3.abi.version import (
    XEN_CAPABILITIES_INFO_LEN,
    XEN_EXTRAVERSION_LEN,
    XENVER_capabilities,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_version,
)
from ring3.abi.xen import __HYPERVISOR_xen_version as XEN_VERSION
from ring3.libs.connection import Connection


class _FeatureInfo(ctypes.LittleEndianStructure):
    _fields_ = [("submap_idx", ctypes.c_uint32), ("submap", ctypes.c_uint32)]


def version(conn: Connection) -> tuple[int, int]:
    """Returns (major, minor) of the Xen that is spoken."""
    packed = conn.hypercall(XEN_VERSION, XENVER_version, 0, subop=XENVER_version)
    return packed >> 16, packed & 0xFFFF


def extraversion(conn: Connection) -> str:
    """Returns the suffix of the version."""
    return _string(conn, XENVER_extraversion, XEN_EXTRAVERSION_LEN)


def capabilities(conn: Connection) -> list[str]:
    """Returns the guest types that can be built, as "xen-3.0-x86_64"."""
    return _string(conn, XENVER_capabilities, XEN_CAPABILITIES_INFO_LEN).split()


def features(conn: Connection, submap: int = 0) -> int:
    """Returns 32 XENFEAT bits that the caller itself is given."""
    info = _FeatureInfo(submap_idx=submap)
    conn.call(XEN_VERSION, XENVER_get_features, info)
    return int(info.submap)


def _string(conn: Connection, cmd: int, nr_bytes: int) -> str:
    with conn.arena() as arena:
        slot = arena.put(bytes(nr_bytes))
        conn.hypercall(XEN_VERSION, cmd, slot.handle, subop=cmd)
        return slot.bytes().split(b"\0", 1)[0].decode("ascii", "replace")

"""The machine as a whole: the sysctl hypercall of Xen 4.17."""

import ctypes
from typing import NamedTuple

from ring3.abi.domctl import xen_domctl_getdomaininfo
from ring3.abi.sysctl import (
    XEN_SYSCTL_INTERFACE_VERSION,
    XEN_SYSCTL_debug_keys,
    XEN_SYSCTL_getdomaininfolist,
    XEN_SYSCTL_physinfo,
    XEN_SYSCTL_readconsole,
    xen_sysctl,
)
from ring3.abi.xen import DOMID_FIRST_RESERVED
from ring3.abi.xen import __HYPERVISOR_sysctl as SYSCTL
from ring3.libs.connection import Connection
from ring3.libs.domctl import DomainInfo

_INFO_SIZE = ctypes.sizeof(xen_domctl_getdomaininfo)
_DOMAINS_PER_CALL = 1024
_CONSOLE_CHUNK = 16384


class PhysInfo(NamedTuple):
    """The machine. Pages are 4 KiB frames."""

    nr_cpus: int
    threads_per_core: int
    cores_per_socket: int
    nr_nodes: int
    cpu_khz: int
    total_pages: int
    free_pages: int
    max_mfn: int
    capabilities: int
    hw_cap: tuple[int, ...]


def physinfo(conn: Connection) -> PhysInfo:
    """Returns processors and memory of the machine."""
    op = _new(XEN_SYSCTL_physinfo)
    conn.call(SYSCTL, None, op, subop=op.cmd)
    raw = op.u.physinfo
    return PhysInfo(
        nr_cpus=raw.nr_cpus,
        threads_per_core=raw.threads_per_core,
        cores_per_socket=raw.cores_per_socket,
        nr_nodes=raw.nr_nodes,
        cpu_khz=raw.cpu_khz,
        total_pages=raw.total_pages,
        free_pages=raw.free_pages,
        max_mfn=raw.max_mfn,
        capabilities=raw.capabilities,
        hw_cap=tuple(raw.hw_cap),
    )


def getdomaininfolist(conn: Connection, first_domid: int = 0) -> list[DomainInfo]:
    """Returns every domain from `first_domid` on, in order of domid."""
    domains: list[DomainInfo] = []
    while first_domid < DOMID_FIRST_RESERVED:
        op = _new(XEN_SYSCTL_getdomaininfolist)
        with conn.arena() as arena:
            slot = arena.alloc(_DOMAINS_PER_CALL * _INFO_SIZE)
            listing = op.u.getdomaininfolist
            listing.first_domain = first_domid
            listing.max_domains = _DOMAINS_PER_CALL
            listing.buffer = slot.handle
            conn.call(SYSCTL, None, op, subop=op.cmd)
            count = min(op.u.getdomaininfolist.num_domains, _DOMAINS_PER_CALL)
            raw = slot.view[: count * _INFO_SIZE].tobytes()
        domains += [
            DomainInfo.from_abi(xen_domctl_getdomaininfo.from_buffer_copy(raw, i * _INFO_SIZE)) for i in range(count)
        ]
        if count < _DOMAINS_PER_CALL:
            break
        first_domid = domains[-1].domid + 1
    return domains


def readconsole(conn: Connection, *, clear: bool = False) -> str:
    """Returns the hypervisor's message ring ("dmesg"), and empties it if asked."""
    text = bytearray()
    index = 0
    while True:
        op = _new(XEN_SYSCTL_readconsole)
        with conn.arena() as arena:
            slot = arena.alloc(_CONSOLE_CHUNK)
            read = op.u.readconsole
            read.incremental = 1
            read.clear = int(clear)  # drops what this call has read
            read.index = index
            read.buffer = slot.handle
            read.count = _CONSOLE_CHUNK
            conn.call(SYSCTL, None, op, subop=op.cmd)
            count = min(op.u.readconsole.count, _CONSOLE_CHUNK)
            text += slot.view[:count]
        if count == 0:
            break
        index = op.u.readconsole.index
    return text.decode("utf-8", "replace")


def debug_keys(conn: Connection, keys: str) -> None:
    """Sends debug keys; what they say is in the message ring."""
    op = _new(XEN_SYSCTL_debug_keys)
    with conn.arena() as arena:
        slot = arena.put(keys.encode("latin-1", "replace"))
        op.u.debug_keys.keys = slot.handle
        op.u.debug_keys.nr_keys = len(keys)
        conn.call(SYSCTL, None, op, subop=op.cmd)


def _new(cmd: int) -> xen_sysctl:
    return xen_sysctl(cmd=cmd, interface_version=XEN_SYSCTL_INTERFACE_VERSION)

"""Creating and steering domains: the domctl hypercall of Xen 4.17."""

import os
from array import array
from collections.abc import Sequence
from typing import NamedTuple, Self

from ring3.abi.arch_x86 import VCPU_GUEST_CONTEXT_SIZE, XEN_X86_EMU_PIT
from ring3.abi.domctl import (
    XEN_DOMCTL_INTERFACE_VERSION,
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_destroydomain,
    XEN_DOMCTL_getdomaininfo,
    XEN_DOMCTL_getpageframeinfo3,
    XEN_DOMCTL_gettscinfo,
    XEN_DOMCTL_getvcpucontext,
    XEN_DOMCTL_getvcpuinfo,
    XEN_DOMCTL_hypercall_init,
    XEN_DOMCTL_max_mem,
    XEN_DOMCTL_max_vcpus,
    XEN_DOMCTL_pausedomain,
    XEN_DOMCTL_settscinfo,
    XEN_DOMCTL_setvcpucontext,
    XEN_DOMCTL_unpausedomain,
    XEN_DOMINF_blocked,
    XEN_DOMINF_dying,
    XEN_DOMINF_paused,
    XEN_DOMINF_running,
    XEN_DOMINF_shutdown,
    XEN_DOMINF_shutdownmask,
    XEN_DOMINF_shutdownshift,
    xen_domctl,
    xen_domctl_getdomaininfo,
)
from ring3.abi.errno import EAGAIN, EEXIST, ENOMEM, ESRCH
from ring3.abi.xen import __HYPERVISOR_domctl as DOMCTL
from ring3.errors import DomainExists, DomainNotFound, HypercallError, NoMemory
from ring3.libs.connection import Connection

_NR_PAGE_FRAMES_MAX = 1024
"""In one getpageframeinfo3."""


class DomainInfo(NamedTuple):
    """A domain as XEN_DOMCTL_getdomaininfo shows it. Pages are 4 KiB frames."""

    domid: int
    flags: int
    nr_pages: int
    max_pages: int
    shared_info_mfn: int
    cpu_time_ns: int
    nr_online_vcpus: int
    max_vcpu_id: int
    handle: bytes

    @classmethod
    def from_abi(cls, raw: xen_domctl_getdomaininfo) -> Self:
        """Converts the structure of the ABI."""
        return cls(
            domid=raw.domain,
            flags=raw.flags,
            nr_pages=raw.tot_pages,
            max_pages=raw.max_pages,
            shared_info_mfn=raw.shared_info_frame,
            cpu_time_ns=raw.cpu_time,
            nr_online_vcpus=raw.nr_online_vcpus,
            max_vcpu_id=raw.max_vcpu_id,
            handle=bytes(raw.handle),
        )

    @property
    def is_dying(self) -> bool:
        """Being destroyed."""
        return bool(self.flags & XEN_DOMINF_dying)

    @property
    def is_shutdown(self) -> bool:
        """Ended by itself or crashed; `shutdown_reason` says how."""
        return bool(self.flags & XEN_DOMINF_shutdown)

    @property
    def is_paused(self) -> bool:
        """Paused by the toolstack."""
        return bool(self.flags & XEN_DOMINF_paused)

    @property
    def is_blocked(self) -> bool:
        """Every vCPU waits for an event."""
        return bool(self.flags & XEN_DOMINF_blocked)

    @property
    def is_running(self) -> bool:
        """A vCPU is on a pCPU or waits for one."""
        return bool(self.flags & XEN_DOMINF_running)

    @property
    def shutdown_reason(self) -> int | None:
        """SHUTDOWN_* of a domain that is shut down."""
        return self.flags >> XEN_DOMINF_shutdownshift & XEN_DOMINF_shutdownmask if self.is_shutdown else None


class VcpuInfo(NamedTuple):
    """A vCPU as XEN_DOMCTL_getvcpuinfo shows it."""

    vcpu: int
    online: bool
    blocked: bool
    running: bool
    cpu_time_ns: int
    cpu: int


def createdomain(
    conn: Connection,
    *,
    max_vcpus: int,
    domid: int = 0,
    flags: int = 0,
    handle: bytes | None = None,
    max_evtchn_port: int = 1023,
    max_grant_frames: int = 64,
    max_maptrack_frames: int = 1024,
    has_pit: bool = False,
) -> int:
    """Creates an empty, paused PV domain and returns its domid; domid 0 asks for the next free one."""
    op = _new(XEN_DOMCTL_createdomain, domid)
    create = op.u.createdomain
    create.handle[:] = list(handle if handle is not None else os.urandom(16))
    create.flags = flags
    create.max_vcpus = max_vcpus
    create.max_evtchn_port = max_evtchn_port
    create.max_grant_frames = max_grant_frames
    create.max_maptrack_frames = max_maptrack_frames
    create.arch.emulation_flags = XEN_X86_EMU_PIT if has_pit else 0
    create.grant_opts = 2  # grant tables of version 1 or 2, as the guest likes
    _call(conn, op)
    return op.domain


def max_vcpus(conn: Connection, domid: int, nr_vcpus: int) -> None:
    """Allocates the vCPUs; must be the number that createdomain was given."""
    op = _new(XEN_DOMCTL_max_vcpus, domid)
    op.u.max_vcpus.max = nr_vcpus
    _call(conn, op)


def max_mem(conn: Connection, domid: int, max_kib: int) -> None:
    """Limits the memory that the domain may have."""
    op = _new(XEN_DOMCTL_max_mem, domid)
    op.u.max_mem.max_memkb = max_kib
    _call(conn, op)


def settscinfo(
    conn: Connection, domid: int, mode: int, *, gtsc_khz: int = 0, incarnation: int = 0, elapsed_nsec: int = 0
) -> None:
    """Sets what the domain reads as TSC; mode 0 is Xen's default, 1 always emulates, 2 never."""
    op = _new(XEN_DOMCTL_settscinfo, domid)
    info = op.u.tsc_info
    info.tsc_mode, info.gtsc_khz, info.incarnation, info.elapsed_nsec = mode, gtsc_khz, incarnation, elapsed_nsec
    _call(conn, op)


def gettscinfo(conn: Connection, domid: int) -> tuple[int, int, int, int]:
    """Returns mode, kHz, incarnation and elapsed nanoseconds."""
    op = _new(XEN_DOMCTL_gettscinfo, domid)
    _call(conn, op)
    info = op.u.tsc_info
    return info.tsc_mode, info.gtsc_khz, info.incarnation, info.elapsed_nsec


def setvcpucontext(conn: Connection, domid: int, vcpu: int, context: bytes) -> None:
    """Sets a vCPU's registers and tables from a vcpu_guest_context."""
    if len(context) != VCPU_GUEST_CONTEXT_SIZE:
        raise ValueError(f"a vcpu_guest_context has {VCPU_GUEST_CONTEXT_SIZE} bytes, not {len(context)}")
    op = _new(XEN_DOMCTL_setvcpucontext, domid)
    with conn.arena() as arena:
        op.u.vcpucontext.vcpu = vcpu
        op.u.vcpucontext.ctxt = arena.put(context).handle
        _call(conn, op)


def getvcpucontext(conn: Connection, domid: int, vcpu: int) -> bytes:
    """Returns a vCPU's vcpu_guest_context."""
    op = _new(XEN_DOMCTL_getvcpucontext, domid)
    with conn.arena() as arena:
        slot = arena.put(bytes(VCPU_GUEST_CONTEXT_SIZE))
        op.u.vcpucontext.vcpu = vcpu
        op.u.vcpucontext.ctxt = slot.handle
        _call(conn, op)
        return slot.bytes()


def getdomaininfo(conn: Connection, domid: int) -> DomainInfo:
    """Returns one domain's state. Raises DomainNotFound."""
    op = _new(XEN_DOMCTL_getdomaininfo, domid)
    _call(conn, op)
    if op.u.getdomaininfo.domain != domid:  # Xen 4.17 answers with the next domain that exists
        raise DomainNotFound(domid)
    return DomainInfo.from_abi(op.u.getdomaininfo)


def getvcpuinfo(conn: Connection, domid: int, vcpu: int) -> VcpuInfo:
    """Returns one vCPU's state. Raises DomainNotFound, HypercallError (EINVAL: no such vCPU)."""
    op = _new(XEN_DOMCTL_getvcpuinfo, domid)
    op.u.getvcpuinfo.vcpu = vcpu
    _call(conn, op)
    info = op.u.getvcpuinfo
    return VcpuInfo(vcpu, bool(info.online), bool(info.blocked), bool(info.running), info.cpu_time, info.cpu)


def pausedomain(conn: Connection, domid: int) -> None:
    """Stops a domain's vCPUs. Pauses count: as many unpauses let it run again."""
    _call(conn, _new(XEN_DOMCTL_pausedomain, domid))


def unpausedomain(conn: Connection, domid: int) -> None:
    """Undoes one pause; a new domain has one."""
    _call(conn, _new(XEN_DOMCTL_unpausedomain, domid))


def destroydomain(conn: Connection, domid: int) -> None:
    """Ends a domain and gives its memory back."""
    while True:
        try:
            return _call(conn, _new(XEN_DOMCTL_destroydomain, domid))
        except HypercallError as error:
            if error.errno != EAGAIN:  # Xen may want to be asked again while it relinquishes memory
                raise


def hypercall_init(conn: Connection, domid: int, mfn: int) -> None:
    """Fills a frame of the domain with hypercall stubs."""
    op = _new(XEN_DOMCTL_hypercall_init, domid)
    op.u.hypercall_init.gmfn = mfn
    _call(conn, op)


def getpageframeinfo3(conn: Connection, domid: int, mfns: Sequence[int]) -> list[int]:
    """Returns the XEN_DOMCTL_PFINFO_* of frames: XTAB for those that are not the domain's."""
    found: list[int] = []
    for start in range(0, len(mfns), _NR_PAGE_FRAMES_MAX):
        with conn.arena() as arena:
            slot = arena.put(array("Q", mfns[start : start + _NR_PAGE_FRAMES_MAX]))
            op = _new(XEN_DOMCTL_getpageframeinfo3, domid)
            op.u.getpageframeinfo3.num = len(slot.view) // 8
            op.u.getpageframeinfo3.array = slot.handle
            _call(conn, op)
            found += array("Q", slot.bytes())
    return found


def _new(cmd: int, domid: int) -> xen_domctl:
    return xen_domctl(cmd=cmd, interface_version=XEN_DOMCTL_INTERFACE_VERSION, domain=domid)


def _call(conn: Connection, op: xen_domctl) -> None:
    """Makes the call; the errors that mean the same for every sub-op become DomainErrors."""
    domid = op.domain
    try:
        conn.call(DOMCTL, None, op, subop=op.cmd)
    except HypercallError as error:
        match error.errno:
            case code if code == ESRCH:
                raise DomainNotFound(domid) from error
            case code if code == EEXIST and op.cmd == XEN_DOMCTL_createdomain:
                raise DomainExists(domid) from error
            case code if code == ENOMEM:
                raise NoMemory(domid, f"the machine has too little memory for domctl {op.cmd}") from error
            case _:
                raise

"""A double of ring3d: the real wire protocol and a memfd machine, behind which hypercalls are Python methods.

It keeps what a toolstack changes (memory, contexts, pins, ports) so that tests can look; it runs no guest.
"""

import ctypes
import os
import socket
import threading
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from ring3.abi import domctl, errno, event_channel, grant_table, memory, sysctl, version, xen
from ring3.abi.xen import PAGE_SHIFT, PAGE_SIZE
from ring3.libs.connection import GREETING, GREETING_MAGIC, PROTOCOL_VERSION, REPLY, REQUEST

BUFFER_BYTES = 1 << 20
SHARED_INFO_MFN = 1
M2P_START = 0xFFFF800000000000


class RefusedError(Exception):
    """A handler's answer is -errno."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class FakeDomain:
    """What the double knows of a domain."""

    domid: int
    max_vcpus: int = 0
    max_kib: int = 0
    p2m: dict[int, int] = field(default_factory=dict)
    contexts: dict[int, bytes] = field(default_factory=dict)
    pins: list[tuple[int, int]] = field(default_factory=list)
    """(mmuext command, MFN)."""
    hypercall_pages: list[int] = field(default_factory=list)
    pauses: int = 1
    flags: int = 0
    handle: bytes = bytes(16)
    grant_frame: int = 0
    """The first frame of its grant table, once it was asked for."""


class FakeHypervisor:
    """Serves one connection on `path`. `fragment` hands frames out in reverse, so that nothing is consecutive."""

    def __init__(self, path: Path, *, nr_frames: int = 1 << 18, fragment: bool = False) -> None:
        self.path = path
        self.nr_frames = nr_frames
        self.domains: dict[int, FakeDomain] = {}
        self.console = b""
        self.console_start = 0
        self.mmu_updates: list[tuple[int, int, int]] = []
        self.foreign_entries: dict[int, tuple[int, int]] = {}
        """By address: entry and domain."""
        self.sent: list[int] = []
        self.ports: dict[int, tuple[int, bytes]] = {}
        self.nr_refused_binds = 0
        self.lie_about_cookie = False
        self._free = iter(range(nr_frames - 1, 15, -1) if fragment else range(16, nr_frames))
        self._nr_free = nr_frames - 16
        self.memfd = os.memfd_create("fake-machine")
        os.ftruncate(self.memfd, nr_frames << PAGE_SHIFT)
        self._connection_fd = os.memfd_create("fake-connection")
        os.ftruncate(self._connection_fd, PAGE_SIZE + BUFFER_BYTES + PAGE_SIZE)
        self.upcall_fd = os.eventfd(0)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen(1)
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Joins the thread, which ends when its connection does."""
        self._listener.close()
        self.thread.join(10)
        for fd in (self.memfd, self._connection_fd, self.upcall_fd):
            os.close(fd)

    def raise_event(self, port: int) -> None:
        """Does what the core does when an event arrives."""
        self._set_bit(xen.shared_info.evtchn_pending.offset, port)
        if self._word(xen.shared_info.evtchn_mask.offset + 8 * (port // 64)) >> port % 64 & 1:
            return
        self._set_bit(8, port // 64)
        if os.pread(self._connection_fd, 1, 0) == b"\0":
            os.pwrite(self._connection_fd, b"\1", 0)
            os.eventfd_write(self.upcall_fd, 1)

    def _set_bit(self, offset: int, bit: int) -> None:
        at = offset + 8 * (bit // 64)
        os.pwrite(self._connection_fd, (self._word(at) | 1 << bit % 64).to_bytes(8, "little"), at)

    def _word(self, offset: int) -> int:
        return int.from_bytes(os.pread(self._connection_fd, 8, offset), "little")

    # -- transport

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        greeting = GREETING.pack(GREETING_MAGIC, PROTOCOL_VERSION, self.nr_frames, BUFFER_BYTES, 7, 0)
        with sock:
            socket.send_fds(sock, [greeting], [self.memfd, self._connection_fd, self.upcall_fd])
            while packet := sock.recv(REQUEST.size):
                op, *args, cookie, no_reply = REQUEST.unpack(packet)
                try:
                    result = self._dispatch(op, args)
                except RefusedError as refused:
                    result = -refused.code
                if no_reply:
                    continue
                try:
                    sock.send(REPLY.pack(cookie + self.lie_about_cookie, result))
                except OSError:
                    return

    def read(self, handle: int, nr_bytes: int) -> bytes:
        """Copies from the hypercall buffer."""
        if handle < 16 or handle + nr_bytes > BUFFER_BYTES:
            raise RefusedError(errno.EFAULT)
        return os.pread(self._connection_fd, nr_bytes, PAGE_SIZE + handle)

    def write(self, handle: int, data: bytes) -> None:
        """Copies to the hypercall buffer."""
        if handle < 16 or handle + len(data) > BUFFER_BYTES:
            raise RefusedError(errno.EFAULT)
        os.pwrite(self._connection_fd, data, PAGE_SIZE + handle)

    def _dispatch(self, op: int, args: list[int]) -> int:
        handlers = {1: self._mmu_update, 12: self._memory, 17: self._version, 26: self._mmuext, 32: self._evtchn}
        handlers |= {20: self._grant_table, 22: self._map_foreign}
        handlers |= {35: self._sysctl, 36: self._domctl}
        if op not in handlers:
            raise RefusedError(errno.ENOSYS)
        return handlers[op](args)

    # -- hypercalls

    def _memory(self, args: list[int]) -> int:
        cmd, handle = args[:2]
        if cmd == memory.XENMEM_machphys_mapping:
            self.write(handle, bytes(memory.xen_machphys_mapping(M2P_START, M2P_START + (1 << 30), self.nr_frames - 1)))
            return 0
        if cmd == memory.XENMEM_maximum_ram_page:
            return self.nr_frames - 1
        if cmd == memory.XENMEM_current_reservation:
            return len(self._domain(int.from_bytes(self.read(handle, 2), "little")).p2m)
        if cmd not in (memory.XENMEM_populate_physmap, memory.XENMEM_decrease_reservation):
            raise RefusedError(errno.ENOSYS)
        arg = memory.xen_memory_reservation.from_buffer_copy(self.read(handle, 32))
        domain = self._domain(arg.domid)
        extents = array("Q", self.read(arg.extent_start, 8 * arg.nr_extents))
        if cmd == memory.XENMEM_decrease_reservation:
            owned = {mfn: pfn for pfn, mfn in domain.p2m.items()}
            done = next((i for i, mfn in enumerate(extents) if mfn not in owned), len(extents))
            for mfn in extents[:done]:
                del domain.p2m[owned[mfn]]
            return done
        done = min(len(extents), self._nr_free, domain.max_kib // 4 - len(domain.p2m))
        self._nr_free -= done
        mfns = array("Q", [next(self._free) for _ in range(done)])
        domain.p2m |= dict(zip(extents[:done], mfns, strict=True))
        self.write(arg.extent_start, mfns.tobytes())
        return done

    def _version(self, args: list[int]) -> int:
        cmd, handle = args[:2]
        if cmd == version.XENVER_version:
            return 4 << 16 | 17
        if cmd == version.XENVER_extraversion:
            self.write(handle, b".5-fake\0".ljust(16, b"\0"))
        elif cmd == version.XENVER_capabilities:
            self.write(handle, b"xen-3.0-x86_64 \0".ljust(1024, b"\0"))
        elif cmd == version.XENVER_get_features:
            self.write(handle + 4, (1 << 5 | 1 << 7).to_bytes(4, "little"))
        else:
            raise RefusedError(errno.ENOSYS)
        return 0

    def _grant_table(self, args: list[int]) -> int:
        cmd, handle, count = args[:3]
        if cmd != grant_table.GNTTABOP_setup_table or count != 1:
            raise RefusedError(errno.ENOSYS)
        op = grant_table.gnttab_setup_table.from_buffer_copy(self.read(handle, 24))
        domain = self._domain(op.dom)
        domain.grant_frame = domain.grant_frame or next(self._free)
        self.write(op.frame_list, domain.grant_frame.to_bytes(8, "little"))
        return 0

    def _map_foreign(self, args: list[int]) -> int:
        va, entry, _flags, domid = args[:4]
        if not entry & 1:
            self.foreign_entries.pop(va, None)
            return 0
        if entry >> PAGE_SHIFT not in self._domain(domid).p2m.values():
            raise RefusedError(errno.EBUSY)
        self.foreign_entries[va] = (entry, domid)
        return 0

    def _mmuext(self, args: list[int]) -> int:
        handle, count, _done, domid = args[:4]
        for index in range(count):
            op = xen.mmuext_op.from_buffer_copy(self.read(handle + 24 * index, 24))
            domain = self._domain(domid)
            if op.arg1 not in domain.p2m.values():
                raise RefusedError(errno.EINVAL)
            domain.pins.append((op.cmd, op.arg1))
        return 0

    def _mmu_update(self, args: list[int]) -> int:
        handle, count, _done, foreigndom = args[:4]
        for index in range(count):
            update = xen.mmu_update.from_buffer_copy(self.read(handle + 16 * index, 16))
            self.mmu_updates.append((foreigndom, update.ptr, update.val))
        return 0

    def _evtchn(self, args: list[int]) -> int:
        cmd, handle = args[:2]
        kinds = {
            event_channel.EVTCHNOP_alloc_unbound: event_channel.evtchn_alloc_unbound,
            event_channel.EVTCHNOP_bind_interdomain: event_channel.evtchn_bind_interdomain,
            event_channel.EVTCHNOP_bind_virq: event_channel.evtchn_bind_virq,
            event_channel.EVTCHNOP_status: event_channel.evtchn_status,
        }
        kind = kinds.get(cmd, event_channel.evtchn_port_op)
        arg = kind.from_buffer_copy(self.read(handle, ctypes.sizeof(kind)))
        if cmd == event_channel.EVTCHNOP_bind_interdomain and self.nr_refused_binds:
            self.nr_refused_binds -= 1
            raise RefusedError(errno.EINVAL)
        if cmd in kinds and cmd != event_channel.EVTCHNOP_status:
            port = max(self.ports, default=0) + 1
            self.ports[port] = (cmd, bytes(arg))
            setattr(arg, "local_port" if cmd == event_channel.EVTCHNOP_bind_interdomain else "port", port)
            self.write(handle, bytes(arg))
            return 0
        if arg.port not in self.ports:
            raise RefusedError(errno.EINVAL)
        if cmd == event_channel.EVTCHNOP_status:
            arg.status = event_channel.EVTCHNSTAT_unbound
            self.write(handle, bytes(arg))
        elif cmd == event_channel.EVTCHNOP_send:
            self.sent.append(arg.port)
        elif cmd == event_channel.EVTCHNOP_close:
            del self.ports[arg.port]
        elif cmd == event_channel.EVTCHNOP_unmask:
            at = xen.shared_info.evtchn_mask.offset + 8 * (arg.port // 64)
            os.pwrite(self._connection_fd, (self._word(at) & ~(1 << arg.port % 64)).to_bytes(8, "little"), at)
            if self._word(xen.shared_info.evtchn_pending.offset + 8 * (arg.port // 64)) >> arg.port % 64 & 1:
                self.raise_event(arg.port)
        return 0

    def _sysctl(self, args: list[int]) -> int:
        op = sysctl.xen_sysctl.from_buffer_copy(self.read(args[0], ctypes.sizeof(sysctl.xen_sysctl)))
        if op.interface_version != sysctl.XEN_SYSCTL_INTERFACE_VERSION:
            raise RefusedError(errno.EACCES)
        if op.cmd == sysctl.XEN_SYSCTL_physinfo:
            op.u.physinfo.nr_cpus = 2
            op.u.physinfo.total_pages = self.nr_frames
            op.u.physinfo.free_pages = self._nr_free
            op.u.physinfo.max_mfn = self.nr_frames - 1
        elif op.cmd == sysctl.XEN_SYSCTL_getdomaininfolist:
            listing = op.u.getdomaininfolist
            chosen = [d for d in sorted(self.domains) if d >= listing.first_domain][: listing.max_domains]
            self.write(listing.buffer, b"".join(bytes(self._info(self.domains[d])) for d in chosen))
            listing.num_domains = len(chosen)
        elif op.cmd == sysctl.XEN_SYSCTL_readconsole:
            read = op.u.readconsole
            start = max(read.index, self.console_start)
            piece = self.console[start : start + read.count]
            self.write(read.buffer, piece)
            read.count = len(piece)
            read.index = start + len(piece)
            if read.clear:
                self.console_start = read.index
        else:
            raise RefusedError(errno.ENOSYS)
        self.write(args[0], bytes(op))
        return 0

    def _domain(self, domid: int) -> FakeDomain:
        if domid not in self.domains:
            raise RefusedError(errno.ESRCH)
        return self.domains[domid]

    def _info(self, domain: FakeDomain) -> domctl.xen_domctl_getdomaininfo:
        info = domctl.xen_domctl_getdomaininfo(
            domain=domain.domid, flags=domain.flags, tot_pages=len(domain.p2m), shared_info_frame=SHARED_INFO_MFN
        )
        info.max_pages = domain.max_kib // 4
        info.handle[:] = list(domain.handle)
        return info

    def _domctl(self, args: list[int]) -> int:
        op = domctl.xen_domctl.from_buffer_copy(self.read(args[0], ctypes.sizeof(domctl.xen_domctl)))
        if op.interface_version != domctl.XEN_DOMCTL_INTERFACE_VERSION:
            raise RefusedError(errno.EACCES)
        if op.cmd == domctl.XEN_DOMCTL_createdomain:
            domid = op.domain or max(self.domains, default=0) + 1
            if domid in self.domains:
                raise RefusedError(errno.EEXIST)
            self.domains[domid] = FakeDomain(domid, handle=bytes(op.u.createdomain.handle))
            op.domain = domid
        elif op.cmd == domctl.XEN_DOMCTL_getdomaininfo:
            found = next((d for d in sorted(self.domains) if d >= op.domain), None)
            if found is None:
                raise RefusedError(errno.ESRCH)
            op.u.getdomaininfo = self._info(self.domains[found])
        else:
            self._steer(op, self._domain(op.domain))
        self.write(args[0], bytes(op))
        return 0

    def _steer(self, op: domctl.xen_domctl, domain: FakeDomain) -> None:
        if op.cmd == domctl.XEN_DOMCTL_max_vcpus:
            domain.max_vcpus = op.u.max_vcpus.max
        elif op.cmd == domctl.XEN_DOMCTL_max_mem:
            domain.max_kib = op.u.max_mem.max_memkb
        elif op.cmd == domctl.XEN_DOMCTL_setvcpucontext:
            domain.contexts[op.u.vcpucontext.vcpu] = self.read(op.u.vcpucontext.ctxt, 5168)
        elif op.cmd == domctl.XEN_DOMCTL_getvcpucontext:
            if op.u.vcpucontext.vcpu not in domain.contexts:
                raise RefusedError(errno.ENODATA)
            self.write(op.u.vcpucontext.ctxt, domain.contexts[op.u.vcpucontext.vcpu])
        elif op.cmd == domctl.XEN_DOMCTL_getvcpuinfo:
            op.u.getvcpuinfo.online = 1
            op.u.getvcpuinfo.cpu_time = 12345
        elif op.cmd == domctl.XEN_DOMCTL_hypercall_init:
            domain.hypercall_pages.append(op.u.hypercall_init.gmfn)
        elif op.cmd == domctl.XEN_DOMCTL_pausedomain:
            domain.pauses += 1
        elif op.cmd == domctl.XEN_DOMCTL_unpausedomain:
            domain.pauses -= 1
        elif op.cmd == domctl.XEN_DOMCTL_destroydomain:
            del self.domains[op.domain]
        else:
            raise RefusedError(errno.ENOSYS)

"""A double of `ring3._core`: machine memory, domains, event channels and the control socket's threads, but no CPU.

A domain's first vCPU is a Python function, which finds start_info in its memory as a kernel does and obeys its command
line: `print=TEXT`, `echo` (console input back), `poweroff`, `reboot`, `crash`, `xenstore=PATH=VALUE`, `forever`. So all
of domain 0 and the toolstack can be tested where the native core is not built, or must not be the one to blame.
`python -m support.fake_core ARGUMENTS` is the `ring3` command on top of it.
"""

# ruff: noqa: ARG002 (the core's signatures)

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
import sys
import threading
import time
import types
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ring3.abi import event_channel as ev
from ring3.abi import grant_table as gnt
from ring3.abi import memory as mem
from ring3.abi import xen
from ring3.abi.domctl import XEN_DOMINF_dying, XEN_DOMINF_paused, XEN_DOMINF_running, XEN_DOMINF_shutdown
from ring3.abi.errno import EEXIST, EINVAL, ENOMEM, ENOSYS, ERANGE, ESRCH
from ring3.dom0.byte_ring import ByteRing

PAGE = 4096


try:
    from ring3._core import CoreError, EngineUnavailableError, GuestFault
except ImportError:

    class GuestFault(Exception):  # type: ignore[no-redef]  # noqa: N818 (the core's name)
        """As in the core."""

    class CoreError(Exception):  # type: ignore[no-redef]
        """As in the core."""

    class EngineUnavailableError(Exception):  # type: ignore[no-redef]
        """As in the core."""


CPU_POLICY = (
    struct.pack("<12I", 0, 0xFFFFFFFF, 7, 0x756E6547, 0x6C65746E, 0x49656E69, 7, 0, 0, 0x28, 0, 0),
    struct.pack("<IIQ", 0xCE, 0, 1 << 31),
)
"""Leaves 0 and 7, the latter with BMI1 and AVX2; PLATFORM_INFO."""


def _policy_leaves(packed: bytes) -> list[tuple[tuple[int, int], bytes]]:
    return [(struct.unpack_from("<II", packed, at), packed[at : at + 24]) for at in range(0, len(packed), 24)]  # type: ignore[misc]


def forbid_files() -> str:
    """Forbids nothing: the double's guests are threads that do as they like."""
    return "whole"


def forbid_syscalls() -> None:
    """Forbids nothing."""


@dataclass
class Port:
    """An event channel; a connection's or a domain's."""

    owner: object
    remote_domid: int = 0
    peer: Port | None = None
    virq: int | None = None
    number: int = 0
    signal: threading.Event = field(default_factory=threading.Event)


@dataclass
class Domain:
    """A domain of the double."""

    domid: int
    max_vcpus: int
    handle: bytes
    shared_info_mfn: int
    max_pages: int = 0
    mfns: list[int] = field(default_factory=list)
    ports: dict[int, Port] = field(default_factory=dict)
    pauses: int = 1
    flags: int = 0
    thread: threading.Thread | None = None
    context: bytes = b""
    tsc: tuple[int, int, int, int] = (0, 2_000_000, 0, 0)
    grant_mfn: int = 0
    policy: tuple[bytes, bytes] = field(default_factory=lambda: CPU_POLICY)
    ext_state: tuple[int, int, bytes] = (0, 0, b"")
    msrs: dict[int, int] = field(default_factory=dict)


@dataclass
class Connection:
    """A dom0 process."""

    id: int
    memory: mmap.mmap
    upcall_fd: int


class HypercallContext:
    """As in the core, for a dom0 connection or for nothing but privilege."""

    def __init__(self, connection: Connection | None, *, domid: int = 0) -> None:
        self._connection = connection
        self.domid = domid
        self.vcpu = connection.id if connection else 0
        self.is_privileged = domid == 0

    def read(self, handle: int, nr_bytes: int) -> bytes:
        """Copies in."""
        return bytes(self._slice(handle, nr_bytes))

    def write(self, handle: int, data: bytes) -> None:
        """Copies out."""
        self._slice(handle, len(data))[:] = data

    def _slice(self, handle: int, nr_bytes: int) -> memoryview:
        if self._connection is None:
            raise GuestFault
        memory = memoryview(self._connection.memory)[PAGE:]
        if handle == 0 or handle + nr_bytes > len(memory):
            raise GuestFault
        return memory[handle : handle + nr_bytes]


class Hypervisor:
    """The machine."""

    def __init__(self, *, nr_frames: int, nr_pcpus: int, engine: str = "bt", archive_fds: Sequence[int] = ()) -> None:
        if engine == "none":
            raise EngineUnavailableError(engine, "it is not built in")
        self.nr_frames = nr_frames
        self.nr_pcpus = nr_pcpus
        self.memfd = os.memfd_create("machine")
        try:
            os.ftruncate(self.memfd, nr_frames * PAGE)
        except OSError as error:
            raise CoreError(ENOMEM, str(error)) from error
        self._free = deque(range(16, nr_frames))
        self._cold: dict[int, Callable[..., int]] = {}
        self._rows: list[list[Any]] = []
        self._domains: dict[int, Domain] = {}
        self._dom0_ports: dict[int, Port] = {}
        self._lock = threading.RLock()
        self._dmesg = bytearray()
        self._nr_connections = 0
        self._last_domid = 0
        self._started = time.monotonic_ns()

    @staticmethod
    def engines() -> list[tuple[str, str | None]]:
        return [("bt", None)]

    def start(self) -> None:
        """Nothing runs beside guests and connections."""

    def stop(self) -> None:
        for domid in self.domain_list():
            self.domain_destroy(domid)

    @property
    def nr_free_frames(self) -> int:
        return len(self._free)

    @property
    def uptime_ns(self) -> int:
        return time.monotonic_ns() - self._started

    # -- hypercalls

    def register_cold(self, op: int, handler: Callable[..., int]) -> None:
        self._cold[op] = handler

    def add_rows(self, rows: Sequence[tuple[int, int, str, str, str]]) -> None:
        self._rows += [[*row, 0] for row in rows]

    def hypercall_rows(self) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self._rows]

    def engine_counters(self) -> list[tuple[str, int]]:
        return [("blocks translated", 0)]

    def count_call(self, op: int, subop: int) -> None:
        for row in self._rows:
            if row[:2] == [op, subop]:
                row[5] += 1

    def give_back(self) -> tuple[int, int]:
        return 0, 0

    def audit(self) -> list[str]:
        """Finds nothing."""
        return []

    def dmesg(self) -> tuple[int, bytes]:
        return len(self._dmesg), bytes(self._dmesg)

    def dmesg_write(self, text: str) -> None:
        self._dmesg += text.encode()

    def _hypercall(self, connection: Connection, op: int, args: Sequence[int]) -> int:
        ctx = HypercallContext(connection)
        try:
            if op in self._cold:
                return self._cold[op](ctx, *args)
            with self._lock:
                if op == getattr(xen, "__HYPERVISOR_event_channel_op"):
                    return self._event_channel_op(connection, ctx, args[0], args[1])
                if op == getattr(xen, "__HYPERVISOR_memory_op"):
                    return self._memory_op(ctx, args[0], args[1])
                if op == getattr(xen, "__HYPERVISOR_grant_table_op"):
                    return self._setup_grant_table(ctx, args[0], args[1])
                if op in (getattr(xen, "__HYPERVISOR_mmuext_op"), getattr(xen, "__HYPERVISOR_mmu_update")):
                    return 0
                if op == getattr(xen, "__HYPERVISOR_update_va_mapping_otherdomain"):
                    return self._map_foreign(entry=args[1], domid=args[3])
        except GuestFault:
            return -14
        except CoreError as error:
            return -error.args[0]
        return -ENOSYS

    def _map_foreign(self, entry: int, domid: int) -> int:
        """Lets a process map any frame of a domain that there is: nothing here would turn it into something else."""
        if entry & 1:
            self._domain(domid)
        return 0

    # -- domain 0

    def serve_connection(self, sock_fd: int, connection_fd: int, upcall_fd: int) -> int:
        self._nr_connections += 1
        connection = Connection(self._nr_connections, mmap.mmap(connection_fd, 0), upcall_fd)
        os.close(connection_fd)
        threading.Thread(target=self._serve, args=(socket.socket(fileno=sock_fd), connection), daemon=True).start()
        return connection.id

    def _serve(self, sock: socket.socket, connection: Connection) -> None:
        with sock:
            while len(request := sock.recv(65)) == 64:
                op, *args, cookie, no_reply = struct.unpack("<8Q", request)
                result = self._hypercall(connection, op, args)
                if not no_reply:
                    sock.send(struct.pack("<Qq", cookie, result))
        with self._lock:
            for number in [number for number, port in self._dom0_ports.items() if port.owner is connection]:
                self._close(self._dom0_ports, number)
        os.close(connection.upcall_fd)

    def _event_channel_op(self, connection: Connection, ctx: HypercallContext, cmd: int, handle: int) -> int:
        def argument(kind: type) -> Any:
            return kind.from_buffer_copy(ctx.read(handle, ctypes.sizeof(kind)))

        match cmd:
            case ev.EVTCHNOP_alloc_unbound:
                arg = argument(ev.evtchn_alloc_unbound)
                table = self._dom0_ports if arg.dom in (0, xen.DOMID_SELF) else self._domain(arg.dom).ports
                owner = connection if table is self._dom0_ports else self._domain(arg.dom)
                arg.port = self._new_port(table, Port(owner, arg.remote_dom))
            case ev.EVTCHNOP_bind_interdomain:
                arg = argument(ev.evtchn_bind_interdomain)
                remote = self._domain(arg.remote_dom).ports.get(arg.remote_port)
                if remote is None or remote.peer is not None:
                    return -EINVAL
                local = Port(connection, arg.remote_dom, remote)
                remote.peer = local
                arg.local_port = self._new_port(self._dom0_ports, local)
                self._raise(local)
            case ev.EVTCHNOP_bind_virq:
                arg = argument(ev.evtchn_bind_virq)
                if any(port.virq == arg.virq for port in self._dom0_ports.values()):
                    return -EEXIST
                arg.port = self._new_port(self._dom0_ports, Port(connection, virq=arg.virq))
            case ev.EVTCHNOP_close:
                arg = argument(ev.evtchn_port_op)
                if arg.port not in self._dom0_ports:
                    return -EINVAL
                self._close(self._dom0_ports, arg.port)
            case ev.EVTCHNOP_send:
                arg = argument(ev.evtchn_port_op)
                port = self._dom0_ports.get(arg.port)
                if port is None:
                    return -EINVAL
                if port.peer is not None:
                    self._raise(port.peer)
            case ev.EVTCHNOP_status:
                arg = argument(ev.evtchn_status)
                if arg.port not in self._dom0_ports:
                    return -EINVAL
                arg.status = 2
            case _:
                return -ENOSYS
        ctx.write(handle, bytes(arg))
        return 0

    def _new_port(self, table: dict[int, Port], port: Port) -> int:
        port.number = next(number for number in range(1, 4096) if number not in table)
        table[port.number] = port
        return port.number

    def _close(self, table: dict[int, Port], number: int) -> None:
        port = table.pop(number)
        if port.peer is not None:
            port.peer.peer = None

    def _raise(self, port: Port) -> None:
        """Sets a port pending, as the 2-level ABI says."""
        if not isinstance(port.owner, Connection):
            port.signal.set()
            return
        memory = port.owner.memory
        for offset, bit in ((xen.shared_info.evtchn_pending.offset + port.number // 8, port.number % 8), (8, 0)):
            if offset == 8:
                offset, bit = 8 + port.number // 512, port.number // 64 % 8
            memory[offset] |= 1 << bit
        memory[0] = 1
        os.eventfd_write(port.owner.upcall_fd, 1)

    def _virq(self, virq: int) -> None:
        with self._lock:
            for port in self._dom0_ports.values():
                if port.virq == virq:
                    self._raise(port)

    # -- domains

    def _domain(self, domid: int) -> Domain:
        domain = self._domains.get(domid)
        if domain is None:
            raise CoreError(ESRCH, f"no domain {domid}")
        return domain

    def domain_create(
        self,
        domid: int,
        *,
        flags: int,
        max_vcpus: int,
        max_event_channels: int,
        max_grant_frames: int,
        max_maptrack_frames: int,
        max_grant_version: int,
        handle: bytes,
        emulation_flags: int = 0,
        misc_flags: int = 0,
    ) -> int:
        with self._lock:
            if domid == 0:
                self._last_domid += 1
                domid = self._last_domid
            elif domid in self._domains:
                raise CoreError(EEXIST, "exists")
            self._domains[domid] = Domain(domid, max_vcpus, handle, self._free.popleft())
            return domid

    def domain_list(self) -> list[int]:
        return sorted(self._domains)

    def domain_info(self, domid: int) -> Any:
        domain = self._domain(domid)
        paused = XEN_DOMINF_paused if domain.pauses else XEN_DOMINF_running
        return types.SimpleNamespace(
            domid=domid,
            flags=domain.flags or paused,
            nr_pages=len(domain.mfns),
            max_pages=domain.max_pages,
            shared_info_mfn=domain.shared_info_mfn,
            cpu_time_ns=0,
            nr_online_vcpus=1,
            max_vcpu_id=domain.max_vcpus - 1,
            handle=domain.handle,
        )

    def domain_set_max_pages(self, domid: int, nr_pages: int) -> None:
        if domid == 0:  # it has none at first, and may get some
            return
        self._domain(domid).max_pages = nr_pages

    def domain_pause(self, domid: int) -> None:
        self._domain(domid).pauses += 1

    def domain_unpause(self, domid: int) -> None:
        domain = self._domain(domid)
        domain.pauses -= 1
        if domain.pauses == 0 and domain.thread is None and domain.context:
            domain.thread = threading.Thread(target=Guest(self, domain).run, daemon=True)
            domain.thread.start()

    def domain_destroy(self, domid: int) -> None:
        with self._lock:
            domain = self._domain(domid)
            domain.flags |= XEN_DOMINF_dying
            for number in list(domain.ports):
                domain.ports[number].signal.set()
                self._close(domain.ports, number)
            freed = [*domain.mfns, domain.shared_info_mfn, *filter(None, [domain.grant_mfn])]
            for mfn in freed:
                if any(os.pread(self.memfd, PAGE, mfn * PAGE)):
                    os.pwrite(self.memfd, bytes(PAGE), mfn * PAGE)
            self._free.extend(freed)
            del self._domains[domid]
        self._virq(xen.VIRQ_DOM_EXC)

    def domain_shutdown(self, domid: int, reason: int) -> None:
        domain = self._domain(domid)
        domain.flags = XEN_DOMINF_shutdown | reason << 16
        if reason == 3:
            self.dmesg_write(
                f"(XEN) domain {domid} crashed: the test wanted it\n(XEN) RIP: e033:[<0000000000000000>]\n"
            )
        self._virq(xen.VIRQ_DOM_EXC)

    def domain_crash_report(self, domid: int) -> str | None:
        return "RIP" if self._domain(domid).flags >> 16 == 3 else None

    def vcpu_info(self, domid: int, vcpu: int) -> Any:
        self._domain(domid)
        return types.SimpleNamespace(online=True, blocked=False, running=True, cpu_time_ns=5, cpu=0)

    def vcpu_set_context(self, domid: int, vcpu: int, context: bytes) -> None:
        self._domain(domid).context = context

    def vcpu_get_context(self, domid: int, vcpu: int) -> bytes:
        return self._domain(domid).context

    def cpu_policy(self, domid: int) -> tuple[bytes, bytes]:
        return self._domain(domid).policy

    def machine_cpu_policy(self, greatest: bool) -> tuple[bytes, bytes]:
        return CPU_POLICY

    def set_cpu_policy(self, domid: int, leaves: bytes, msrs: bytes) -> tuple[int, int, int, int] | None:
        """Knows one leaf more than it shows, and refuses the others."""
        kept = dict(_policy_leaves(self._domain(domid).policy[0]))
        for key, leaf in _policy_leaves(leaves):
            if key not in kept:
                return ERANGE, *key, 0xFFFFFFFF
            kept[key] = leaf
        self._domain(domid).policy = (b"".join(kept.values()), CPU_POLICY[1])
        return None

    def vcpu_ext_state(self, domid: int, vcpu: int) -> tuple[int, int, bytes]:
        return self._domain(domid).ext_state

    def set_vcpu_ext_state(self, domid: int, vcpu: int, xcr0: int, xcr0_accum: int, area: bytes) -> None:
        self._domain(domid).ext_state = (xcr0, xcr0_accum, area)

    def vcpu_msrs(self, domid: int, vcpu: int) -> list[tuple[int, int]]:
        return sorted(self._domain(domid).msrs.items())

    def set_vcpu_msr(self, domid: int, vcpu: int, msr: int, value: int) -> None:
        if msr not in (0x48, 0x140, 0xC0000103):
            raise CoreError(EINVAL, "MSR")
        self._domain(domid).msrs[msr] = value

    def set_tsc_info(self, domid: int, mode: int, khz: int, incarnation: int, elapsed_ns: int) -> None:
        if mode > 2:
            raise CoreError(EINVAL, "mode")
        self._domain(domid).tsc = (mode, khz, incarnation, elapsed_ns)

    def tsc_info(self, domid: int) -> tuple[int, int, int, int]:
        return self._domain(domid).tsc

    def set_hypercall_page(self, domid: int, mfn: int) -> None:
        self._domain(domid)

    def page_lists(self, domid: int, nr_max: int) -> list[int]:
        return self._domain(domid).mfns[:nr_max]

    def page_frame_info(self, domid: int, mfns: bytes) -> bytes:
        own = set(self._domain(domid).mfns)
        return array("Q", [0 if mfn in own else 0xF << 28 for mfn in array("Q", mfns)]).tobytes()

    def _setup_grant_table(self, ctx: HypercallContext, cmd: int, handle: int) -> int:
        arg = gnt.gnttab_setup_table.from_buffer_copy(ctx.read(handle, ctypes.sizeof(gnt.gnttab_setup_table)))
        if cmd != gnt.GNTTABOP_setup_table or arg.nr_frames != 1:
            return -ENOSYS
        domain = self._domain(arg.dom)
        domain.grant_mfn = domain.grant_mfn or self._free.popleft()
        ctx.write(arg.frame_list, struct.pack("<Q", domain.grant_mfn))
        return 0

    def _memory_op(self, ctx: HypercallContext, cmd: int, handle: int) -> int:
        if cmd == mem.XENMEM_set_memory_map:
            # Its guest asks for no map.
            return 0
        if cmd != mem.XENMEM_populate_physmap:
            return -ENOSYS
        arg = mem.xen_memory_reservation.from_buffer_copy(ctx.read(handle, ctypes.sizeof(mem.xen_memory_reservation)))
        domain = self._domain(arg.domid)
        nr = min(arg.nr_extents, domain.max_pages - len(domain.mfns), len(self._free))
        mfns = [self._free.popleft() for _ in range(nr)]
        domain.mfns += mfns
        ctx.write(arg.extent_start, struct.pack(f"<{nr}Q", *mfns))
        return nr


class Guest:
    """The first vCPU of a domain."""

    def __init__(self, hypervisor: Hypervisor, domain: Domain) -> None:
        self._hypervisor = hypervisor
        self._domain = domain

    def run(self) -> None:
        """Boots."""
        start_info = self._find_start_info()
        (store_mfn,) = struct.unpack_from("<Q", start_info, 0x38)
        store_port, console_mfn, console_port = struct.unpack_from("<I4xQI", start_info, 0x40)
        words = start_info[0x80:0x480].split(b"\0")[0].decode().split()
        self._console = mmap.mmap(self._hypervisor.memfd, PAGE, offset=console_mfn * PAGE)
        self._console_port = self._domain.ports[console_port]
        page = memoryview(self._console)
        self._out = ByteRing(page, 0, data_offset=1024, size=2048, cons_offset=3080, prod_offset=3084)
        self._in = ByteRing(page, 0, data_offset=0, size=1024, cons_offset=3072, prod_offset=3076)
        self._store = memoryview(mmap.mmap(self._hypervisor.memfd, PAGE, offset=store_mfn * PAGE))
        self._store_port = self._domain.ports[store_port]
        for word in words:
            key, _equals, value = word.partition("=")
            getattr(self, f"do_{key}")(value)

    def _find_start_info(self) -> bytes:
        for mfn in self._domain.mfns:
            page = os.pread(self._hypervisor.memfd, PAGE, mfn * PAGE)
            if page.startswith(b"xen-3.0-x86_64"):
                return page
        raise RuntimeError("no start_info")

    def _notify(self, port: Port) -> None:
        with self._hypervisor._lock:
            if port.peer is not None:
                self._hypervisor._raise(port.peer)

    def _is_alive(self) -> bool:
        return not self._domain.flags

    def do_print(self, text: str) -> None:
        """Prints a line; waits for room."""
        data = text.encode() + b"\r\n"
        while data and self._is_alive():
            data = data[self._out.write(data) :]
            self._notify(self._console_port)
            if data:
                self._console_port.signal.wait(0.01)
                self._console_port.signal.clear()

    def do_forever(self, text: str) -> None:
        """Prints without end."""
        while self._is_alive():
            self.do_print((text or "x") * 100)

    def do_echo(self, _value: str) -> None:
        """Prints what is typed, up to a line `quit`."""
        line = b""
        while self._is_alive():
            data = self._in.read(100)
            if not data:
                self._console_port.signal.wait(0.05)
                self._console_port.signal.clear()
                continue
            self._notify(self._console_port)
            line += data
            while b"\n" in line:
                text, _newline, line = line.partition(b"\n")
                if text == b"quit":
                    return
                self.do_print("echo:" + text.decode(errors="replace"))

    def do_xenstore(self, value: str) -> None:
        """Writes a node through the ring and prints the answer's type."""
        path, _equals, text = value.partition("=")
        payload = path.encode() + b"\0" + text.encode()
        requests = ByteRing(self._store, 0, data_offset=0, size=1024, cons_offset=2048, prod_offset=2052)
        replies = ByteRing(self._store, 0, data_offset=1024, size=1024, cons_offset=2056, prod_offset=2060)
        requests.write(struct.pack("<4I", 11, 1, 0, len(payload)) + payload)
        self._notify(self._store_port)
        answer = b""
        while len(answer) < 16 and self._is_alive():
            answer += replies.read(4096)
            time.sleep(0.002)
        self.do_print(f"xenstore:{struct.unpack_from('<I', answer)[0]}:{answer[16:].decode()}".rstrip("\0"))

    def do_sleep(self, value: str) -> None:
        """Waits."""
        end = time.monotonic() + float(value)
        while time.monotonic() < end and self._is_alive():
            time.sleep(0.01)

    def _shutdown(self, reason: int) -> None:
        if self._is_alive():
            self._hypervisor.domain_shutdown(self._domain.domid, reason)

    def do_poweroff(self, _value: str) -> None:
        """Powers off."""
        self._shutdown(0)

    def do_reboot(self, _value: str) -> None:
        """Reboots."""
        self._shutdown(1)

    def do_crash(self, _value: str) -> None:
        """Crashes."""
        self._shutdown(3)


def install() -> None:
    """Makes `import ring3._core` find this module."""
    sys.modules["ring3._core"] = sys.modules[__name__]


if __name__ == "__main__":
    from support import fake_core

    fake_core.install()
    from ring3.cli import main

    sys.exit(main())

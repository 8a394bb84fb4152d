"""The native core. Native: CPU, memory, events, scheduling, time; and of the back ends what a profile showed to be too
slow in Python (BlockRing). Nothing else is; see docs/design/0001-seams.md."""

from collections.abc import Callable, Sequence
from mmap import mmap
from typing import Literal, Self, final

__all__ = [
    "BlockRing",
    "CoreError",
    "DomainInfo",
    "EngineUnavailableError",
    "GuestFault",
    "HypercallContext",
    "Hypervisor",
    "VcpuInfo",
    "direct_execution",
    "forbid_files",
    "forbid_syscalls",
]

def direct_execution() -> str | None:
    """Returns why user code that computes is translated on this host instead of running as it is; None if it is not."""

def forbid_files() -> Literal["whole", "partial", "none"]:
    """Takes files, TCP ports and processes outside from this thread and those that it starts (Landlock); what is open
    stays open. Returns how much of that the host's kernel has. Raises CoreError."""

def forbid_syscalls() -> None:
    """Leaves to every thread of this process only what a running machine needs (seccomp); the rest fails with EPERM.
    Raises CoreError."""

class GuestFault(Exception):
    """A guest handle or range that the caller cannot access (-EFAULT)."""

class CoreError(Exception):
    """The core refused; `args` are (errno, message), errno as in xen/include/public/errno.h."""

class EngineUnavailableError(Exception):
    """`args` are (engine, reason)."""

@final
class BlockRing:
    """The quick path of a disk's ring, for its back end; not part of the hypervisor. See crates/blkif."""
    def __new__(
        cls,
        memory: tuple[memoryview, memoryview, memoryview],
        slot_bytes: int,
        nr_indirect_max: int,
        image_fd: int,
        notice: tuple[int, bytes, bytes] | None,
        events: tuple[mmap, int, int, int, int] | None,
        look_max_ns: int,
    ) -> Self:
        """`memory`: writable buffers of bytes, which stay exported until close(): all machine memory, the ring's pages,
        its journal. `notice`: a socket, and packets for it that raise the front end's event, of which the second is for
        a bell that was rung. `events`: the connection's memory, from shared_info on, its upcall eventfd, an epoll set
        that has this and all else that ends a wait, the ring's port, and where in the memory the bells are.
        Keeps descriptors of its own. Raises ValueError, OSError.
        """
    def hold(self, gref: int, address: int) -> None:
        """Says at which machine address the page of a grant is that stays held until close()."""
    def serve(
        self, index: int, nr_sectors: int, may_write: bool, idle_ms: int
    ) -> tuple[int, bool, Literal["empty", "other", "more"], int, list[int]]:
        """Serves requests from `index` on, all before which are answered, and tells the front end. For `idle_ms` it may
        look at the empty ring, while that is likely to pay, and wait for its event or anything else.

        Returns the index it came to; whether the front end is still to be told; why it stopped: the ring is empty, and
        the next request raises an event; the next request, if there is one, is for others; it is the turn of others;
        how many ns the last write had to wait for the host, if that was long; and the ports of other events that it has
        taken, which are the caller's now. Raises ValueError after close().
        """
    def close(self) -> None:
        """Lets go of memory and descriptors."""

@final
class HypercallContext:
    """Who calls, and access to its memory. Valid only during the handler."""
    @property
    def domid(self) -> int: ...
    @property
    def vcpu(self) -> int:
        """vCPU id; for domain 0, the connection id."""
    @property
    def is_privileged(self) -> bool: ...
    def read(self, handle: int, nr_bytes: int) -> bytes:
        """Copies guest memory. Raises GuestFault."""
    def write(self, handle: int, data: bytes) -> None:
        """Copies to guest memory. Raises GuestFault; bytes before the fault are written."""

@final
class DomainInfo:
    """As much of xen_domctl_getdomaininfo as the core knows. Pages are 4 KiB frames; times ns."""

    domid: int
    flags: int
    """XEN_DOMINF_* with the shutdown reason in bits 16 to 23."""
    nr_pages: int
    max_pages: int
    shared_info_mfn: int
    cpu_time_ns: int
    nr_online_vcpus: int
    max_vcpu_id: int
    handle: bytes

@final
class VcpuInfo:
    """As xen_domctl_getvcpuinfo."""

    online: bool
    blocked: bool
    running: bool
    cpu_time_ns: int
    cpu: int

@final
class Hypervisor:
    """One machine. `start()` launches pCPU workers and the timer thread."""
    def __new__(cls, *, nr_frames: int, nr_pcpus: int, engine: str = "bt", archive_fds: Sequence[int] = ...) -> Self:
        """Takes the descriptors of the files in which translations are kept (hypervisor/archives.py).

        Raises CoreError (no memory on the host), EngineUnavailableError, OSError (a descriptor that is none).
        """
    @staticmethod
    def engines() -> list[tuple[str, str | None]]:
        """(name, reason why it is unavailable or None) of every engine built in."""
    def start(self) -> None: ...
    def stop(self) -> None:
        """Destroys every domain and joins every thread."""
    @property
    def memfd(self) -> int: ...
    @property
    def nr_frames(self) -> int: ...
    @property
    def nr_free_frames(self) -> int: ...
    @property
    def nr_pcpus(self) -> int: ...
    @property
    def uptime_ns(self) -> int: ...

    # -- hypercalls
    def register_cold(self, op: int, handler: Callable[..., int]) -> None:
        """handler(ctx, a1, a2, a3, a4, a5) -> result (long). One per hypercall number."""
    def hypercall_rows(self) -> list[tuple[int, int, str, str, str, int]]:
        """Native rows and counters: (op, subop or -1, name, coverage, note, calls).
        Coverage: full, partial, refused, absent."""
    def engine_counters(self) -> list[tuple[str, int]]:
        """What the engine counts, of all domains that are or were: names and figures."""
    def count_call(self, op: int, subop: int) -> None:
        """Counts a cold sub-op in the same table."""
    def add_rows(self, rows: Sequence[tuple[int, int, str, str, str]]) -> None:
        """Adds the rows of cold hypercalls: (op, subop, name, coverage, note)."""

    def give_back(self) -> tuple[int, int]:
        """Gives frames of domains back to the host, as for idle ones; returns how many that hold one byte all over, and
        how many that are kept packed."""
    def audit(self) -> list[str]:
        """Stops every domain for a moment and checks frames, ports and grants against who holds them; returns what does
        not agree."""

    # -- the hypervisor's console: a bounded ring, what `ring3 dmesg` shows
    def dmesg(self) -> tuple[int, bytes]:
        """(bytes ever written, what the ring still holds, oldest first): guests' console_io with their domid, crash
        reports, Python's log."""
    def dmesg_write(self, text: str) -> None:
        """Appends text (of whole lines)."""

    # -- domain 0
    def serve_connection(self, sock_fd: int, connection_fd: int, upcall_fd: int) -> int:
        """Starts the thread that serves a dom0 process; takes the three descriptors. Returns the connection id."""

    # -- domains (policy in ring3.hypervisor.domctl)
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
        """domid or 0 for the next free one. Returns the domid. Raises CoreError(EEXIST, EINVAL, ENOMEM)."""
    def domain_list(self) -> list[int]: ...
    def domain_info(self, domid: int) -> DomainInfo:
        """Raises CoreError(ESRCH)."""
    def domain_set_max_pages(self, domid: int, nr_pages: int) -> None: ...
    def domain_pause(self, domid: int) -> None: ...
    def domain_unpause(self, domid: int) -> None: ...
    def domain_destroy(self, domid: int) -> None:
        """Stops its vCPUs, gives back frames, ports and threads; returns when all is free."""
    def domain_shutdown(self, domid: int, reason: int) -> None: ...
    def domain_crash_report(self, domid: int) -> str | None:
        """Registers, instruction, page-table walk and reason of the crash."""
    def vcpu_info(self, domid: int, vcpu: int) -> VcpuInfo: ...
    def vcpu_set_context(self, domid: int, vcpu: int, context: bytes) -> None:
        """context: vcpu_guest_context, 5168 bytes. Raises CoreError(EINVAL, ESRCH)."""
    def vcpu_get_context(self, domid: int, vcpu: int) -> bytes: ...
    def set_tsc_info(self, domid: int, mode: int, khz: int, incarnation: int, elapsed_ns: int) -> None:
        """XEN_DOMCTL_settscinfo. Raises CoreError(ESRCH, EINVAL)."""
    def tsc_info(self, domid: int) -> tuple[int, int, int, int]:
        """Mode, kHz, incarnation, nanoseconds elapsed (XEN_DOMCTL_gettscinfo). Raises CoreError(ESRCH)."""
    def cpu_policy(self, domid: int) -> tuple[bytes, bytes]:
        """What a domain's CPUs show: arrays of xen_cpuid_leaf_t (24 bytes each) and xen_msr_entry_t (16).

        Raises CoreError(ESRCH).
        """
    def machine_cpu_policy(self, greatest: bool) -> tuple[bytes, bytes]:
        """The same of the host's CPUs; or, if `greatest`, what a domain can have at most."""
    def set_cpu_policy(self, domid: int, leaves: bytes, msrs: bytes) -> tuple[int, int, int, int] | None:
        """Replaces leaves and MSRs; what there is not is cut off. Returns (errno, leaf, subleaf, MSR) of what was
        refused; 2**32 - 1 stands for none. Raises CoreError(ESRCH, EEXIST: the domain has run)."""
    def vcpu_ext_state(self, domid: int, vcpu: int) -> tuple[int, int, bytes]:
        """XCR0, all bits that it was ever given, and the XSAVE area; 0, 0 and nothing before `xsetbv`."""
    def set_vcpu_ext_state(self, domid: int, vcpu: int, xcr0: int, xcr0_accum: int, area: bytes) -> None:
        """Raises CoreError(ESRCH, EINVAL, EOPNOTSUPP, EIO)."""
    def vcpu_msrs(self, domid: int, vcpu: int) -> list[tuple[int, int]]:
        """(number, value) of the MSRs that XEN_DOMCTL_get_vcpu_msrs tells; zeros are left out."""
    def set_vcpu_msr(self, domid: int, vcpu: int, msr: int, value: int) -> None:
        """Raises CoreError(ESRCH, EINVAL)."""
    def set_hypercall_page(self, domid: int, mfn: int) -> None:
        """Fills a frame with the domain's hypercall stubs (XEN_DOMCTL_hypercall_init)."""
    def page_lists(self, domid: int, nr_max: int) -> list[int]:
        """MFNs that the domain owns, at most nr_max (XEN_DOMCTL_getmemlist)."""
    def page_frame_info(self, domid: int, mfns: bytes) -> bytes:
        """mfns: array of u64. Returns XEN_DOMCTL_PFINFO_* of each, an array of u64; XTAB for what is not its own."""

    # -- memory (policy in ring3.hypervisor.memory_op)
    def populate_physmap(self, domid: int, pfns: bytes) -> bytes:
        """pfns: array of u64. Allocates one zeroed frame for each, sets M2P; returns the MFNs as array of u64, shorter
        if max_pages or the machine is exhausted."""
    def decrease_reservation(self, domid: int, mfns: bytes) -> int:
        """mfns: array of u64. Returns how many were freed; stops at the first that is not the domain's or is in use."""
    def m2p(self) -> tuple[int, int]:
        """(first MFN, length in frames) of the machine-to-phys table."""

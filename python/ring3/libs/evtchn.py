"""Event channels of a connection: binding, sending, and taking the events that are pending.

The connection has a shared_info page of its own with the 2-level ABI, and an eventfd that the hypervisor writes when
`evtchn_upcall_pending` goes from 0 to 1. `fileno()` suits select and asyncio; `pending()` scans as a kernel does.
"""

import contextlib
import mmap
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ring3.abi.errno import EINVAL
from ring3.abi.event_channel import (
    EVTCHN_2L_NR_CHANNELS,
    EVTCHNOP_alloc_unbound,
    EVTCHNOP_bind_interdomain,
    EVTCHNOP_bind_virq,
    EVTCHNOP_close,
    EVTCHNOP_send,
    EVTCHNOP_status,
    EVTCHNOP_unmask,
    evtchn_alloc_unbound,
    evtchn_bind_interdomain,
    evtchn_bind_virq,
    evtchn_port_op,
    evtchn_status,
)
from ring3.abi.xen import DOMID_SELF, shared_info, vcpu_info
from ring3.abi.xen import __HYPERVISOR_event_channel_op as EVENT_CHANNEL_OP
from ring3.errors import HypercallError
from ring3.libs.atomics import AtomicWords
from ring3.libs.connection import MAY_WAIT, NO_REPLY, REQUEST, Connection, Slot

_UPCALL_PENDING = vcpu_info.evtchn_upcall_pending.offset
_PENDING_SEL = vcpu_info.evtchn_pending_sel.offset
_PENDING = shared_info.evtchn_pending.offset
_MASK = shared_info.evtchn_mask.offset

REBIND_TIMEOUT_S = 5.0
_REBIND_POLL_S = 0.005


class EventChannels:
    """The ports that this connection binds. One thread calls pending(); the other methods may be called from any."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._shared = conn.shared_info
        self._words = AtomicWords(conn.shared_info_map)
        self._opened_at = time.monotonic()
        self._kept: dict[int, Slot] = {}
        """The argument of EVTCHNOP_send of ports that post() or packet() was called for."""
        self._free: list[Slot] = []
        os.set_blocking(conn.upcall_fd, False)

    def fileno(self) -> int:
        """Returns the upcall eventfd: readable when pending() may have something."""
        return self._conn.upcall_fd

    def pending(self) -> list[int]:
        """Takes and returns the ports with a pending, unmasked event. A port may come once more than it was sent."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._conn.upcall_fd, 8)
        # Order matters: flag, then selector, then words. An event set after a step is announced by the next upcall.
        self._shared[_UPCALL_PENDING] = 0
        selector = self._words.swap(_PENDING_SEL, 0)
        ports = []
        while selector:
            word = (selector & -selector).bit_length() - 1
            selector &= selector - 1
            mask = int.from_bytes(self._shared[_MASK + 8 * word : _MASK + 8 * word + 8], "little")
            raised = int.from_bytes(self._shared[_PENDING + 8 * word : _PENDING + 8 * word + 8], "little") & ~mask
            if raised:
                raised &= self._words.clear_bits(_PENDING + 8 * word, raised)
            while raised:
                ports.append(64 * word + (raised & -raised).bit_length() - 1)
                raised &= raised - 1
        return ports

    def alloc_unbound(self, remote_domid: int, *, domid: int = DOMID_SELF) -> int:
        """Makes a port of `domid` (DOMID_SELF: ours) that `remote_domid` may bind."""
        arg = evtchn_alloc_unbound(dom=domid, remote_dom=remote_domid)
        self._op(EVTCHNOP_alloc_unbound, arg)
        return arg.port

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """Binds a port of another domain and returns the local one."""
        arg = evtchn_bind_interdomain(remote_dom=remote_domid, remote_port=remote_port)
        self._op(EVTCHNOP_bind_interdomain, arg)
        return arg.local_port

    def rebind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """As bind_interdomain(), for a port that a killed predecessor may hold: the hypervisor may not have noticed its
        end yet. Waits for that while this connection is young, and not later: a domain that names ports which cannot
        be bound shall not delay the others.
        """
        timeout_s = max(0.0, self._opened_at + REBIND_TIMEOUT_S - time.monotonic())
        return patiently(lambda: self.bind_interdomain(remote_domid, remote_port), EINVAL, timeout_s)

    def bind_virq(self, virq: int, *, vcpu: int = 0) -> int:
        """Binds a virtual interrupt. A global one (VIRQ_DOM_EXC, VIRQ_CON_RING, ...) goes to one holder, on vCPU 0."""
        arg = evtchn_bind_virq(virq=virq, vcpu=vcpu)
        self._op(EVTCHNOP_bind_virq, arg)
        return arg.port

    def close(self, port: int) -> None:
        """Closes a port; an event still pending on it is dropped."""
        self._op(EVTCHNOP_close, evtchn_port_op(port=port))
        self._words.clear_bits(_PENDING + 8 * (port // 64), 1 << port % 64)
        slot = self._kept.pop(port, None)
        if slot is not None:
            self._free.append(slot)

    def packet(self, port: int, *, may_wait: bool = False) -> bytes:
        """Returns the packet that, sent on the connection's socket, sends an event to the other end, until close().

        One that `may_wait` is for a bell that was rung: the event waits until the other end's vCPU blocks. Who sends it
        sees to it that this does not take too long.
        """
        slot = self._kept.get(port)
        if slot is None:
            arg = bytes(evtchn_port_op(port=port))
            with self._conn.arena() as arena:
                slot = self._kept[port] = self._free.pop() if self._free else arena.keep(len(arg))
            slot.view[:] = arg
        return REQUEST.pack(EVENT_CHANNEL_OP, EVTCHNOP_send, slot.handle, 0, 0, 0, 0, NO_REPLY | MAY_WAIT * may_wait)

    @property
    def shared_info_map(self) -> mmap.mmap:
        """The mapping that starts with shared_info, for native code that takes events as pending() does."""
        return self._conn.shared_info_map

    @property
    def bells_at(self) -> int:
        """Where in that mapping the page of the bells is, for native code that sends events."""
        return self._conn.bells_at

    @property
    def socket_fd(self) -> int:
        """The socket that packets go to."""
        return self._conn.fileno()

    def post(self, port: int) -> None:
        """Sends an event as notify() does, but waits for nothing; what is wrong with the port is not told."""
        self._conn.post(self.packet(port))

    def notify(self, port: int) -> None:
        """Sends an event to the other end."""
        self._op(EVTCHNOP_send, evtchn_port_op(port=port))

    def mask(self, port: int) -> None:
        """Holds back a port's events until unmask()."""
        if not 0 < port < EVTCHN_2L_NR_CHANNELS:
            raise ValueError(f"port {port} does not exist")
        self._words.set_bits(_MASK + 8 * (port // 64), 1 << port % 64)

    def unmask(self, port: int) -> None:
        """Lets a port's events through; one that came meanwhile raises an upcall now."""
        self._op(EVTCHNOP_unmask, evtchn_port_op(port=port))

    def status(self, port: int, *, domid: int = DOMID_SELF) -> evtchn_status:
        """Returns what a port is bound to."""
        arg = evtchn_status(dom=domid, port=port)
        self._op(EVTCHNOP_status, arg)
        return arg

    def release(self) -> None:
        """Stops looking at shared_info; the ports stay bound until they or the connection are closed."""
        self._words.release()
        self._shared.release()

    def _op(
        self,
        cmd: int,
        arg: evtchn_alloc_unbound | evtchn_bind_interdomain | evtchn_bind_virq | evtchn_port_op | evtchn_status,
    ) -> None:
        self._conn.call(EVENT_CHANNEL_OP, cmd, arg)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def patiently(bind: Callable[[], int], errno: int, timeout_s: float = REBIND_TIMEOUT_S) -> int:
    """Binds a port that another process held: the hypervisor, which then answers `errno`, may not have noticed its end
    yet. Raises HypercallError.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return bind()
        except HypercallError as error:
            if error.errno != errno or time.monotonic() >= deadline:
                raise
        time.sleep(_REBIND_POLL_S)

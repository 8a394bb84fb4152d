"""A connection of a dom0 process to the hypervisor: the control socket, its hypercall buffer and its descriptors.

To the hypervisor a connection is a vCPU of domain 0. Wire format: docs/design/0001-seams.md, "Control socket". One
thread at a time holds the connection (a re-entrant lock), from filling the hypercall buffer to reading the results.
"""

import contextlib
import ctypes
import mmap
import os
import socket
import struct
import threading
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self, TypeAlias

from ring3.abi.errno import MAX_ERRNO
from ring3.abi.xen import PAGE_SIZE
from ring3.errors import ConnectionLostError, HypercallError
from ring3.libs.closeable import Closeable

GREETING = struct.Struct("<IIQQII")
"""magic, version, nr_frames, buffer_bytes, connection_id, pad; 32 bytes."""
GREETING_MAGIC = 0x334E4952
PROTOCOL_VERSION = 1
REQUEST = struct.Struct("<8Q")
"""op, a1 to a5, cookie, flags; 64 bytes."""
NO_REPLY = 1
"""In the last word of a request: nobody waits for an answer."""
MAY_WAIT = 2
"""There, too: the bell of the port was rung, and the event may wait while its vCPU is busy."""
REPLY = struct.Struct("<Qq")
"""cookie, result; 16 bytes."""

BytesLike: TypeAlias = "bytes | bytearray | memoryview | array[int] | mmap.mmap"

_U64 = (1 << 64) - 1
_FIRST_HANDLE = 16
"""Handle 0 is NULL; the bytes below 16 are never handed out."""


class Slot(NamedTuple):
    """A piece of the hypercall buffer: `handle` goes into a hypercall, `view` is its memory. Dies with its arena."""

    handle: int
    view: memoryview

    def bytes(self) -> bytes:
        """Returns a copy of the contents."""
        return self.view.tobytes()


class Arena:
    """Bump allocator over the hypercall buffer; what a nested arena takes is free again when that one ends."""

    def __init__(self, buffer: memoryview) -> None:
        self._buffer = buffer
        self._next = _FIRST_HANDLE

    @property
    def nr_free_bytes(self) -> int:
        """Bytes that one alloc() of alignment 16 could still get."""
        return max(0, len(self._buffer) - (self._next + 15 & ~15))

    def alloc(self, nr_bytes: int, *, align: int = 16) -> Slot:
        """Returns uninitialised buffer memory. Raises MemoryError: callers split long calls by `nr_free_bytes`."""
        handle = self._next + align - 1 & -align
        if handle + nr_bytes > len(self._buffer):
            raise MemoryError(f"{nr_bytes} bytes do not fit the hypercall buffer ({len(self._buffer)} bytes)")
        self._next = handle + nr_bytes
        return Slot(handle, self._buffer[handle : handle + nr_bytes])

    def keep(self, nr_bytes: int) -> Slot:
        """Takes memory from the end of the buffer for good."""
        start = len(self._buffer) - nr_bytes & ~15
        if start < self._next:
            raise MemoryError(f"{nr_bytes} bytes do not fit the hypercall buffer ({len(self._buffer)} bytes)")
        slot = Slot(start, self._buffer[start : start + nr_bytes])
        self._buffer = self._buffer[:start]
        return slot

    def put(self, data: BytesLike, *, align: int = 16) -> Slot:
        """Copies bytes into the buffer."""
        raw = memoryview(data).cast("B")
        slot = self.alloc(raw.nbytes, align=align)
        slot.view[:] = raw
        return slot


class Connection(Closeable):
    """An open connection. Use `Connection.connect(path)`; a context manager that closes it."""

    def __init__(self, sock: socket.socket, memfd: int, connection_fd: int, upcall_fd: int, greeting: bytes) -> None:
        """Takes ownership of the socket and the descriptors, also when it raises ConnectionLostError."""
        self._sock = sock
        self._fds = [memfd, connection_fd, upcall_fd]
        self._lock = threading.RLock()
        self._cookie = 0
        self._closed = False
        self.memfd = memfd
        self.upcall_fd = upcall_fd
        try:
            magic, version, self.nr_frames, self._buffer_bytes, self.connection_id, _pad = GREETING.unpack(greeting)
            if magic != GREETING_MAGIC or version != PROTOCOL_VERSION:
                raise ConnectionLostError(
                    f"control socket protocol {magic:#x}/{version} instead of {GREETING_MAGIC:#x}/{PROTOCOL_VERSION}"
                )
            self._memory = mmap.mmap(connection_fd, PAGE_SIZE + self._buffer_bytes + PAGE_SIZE)
        except (struct.error, ValueError, OSError) as error:
            self._release()
            raise ConnectionLostError(f"the hypervisor's greeting is unusable: {error}") from error
        except BaseException:
            self._release()
            raise
        self._view = memoryview(self._memory)
        self._arena = Arena(self._view[PAGE_SIZE:-PAGE_SIZE])

    @classmethod
    def connect(cls, path: str | Path, *, timeout_s: float | None = 10.0) -> Self:
        """Connects to the control socket of a ring3d. Raises ConnectionLostError. The timeout is for the greeting."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            greeting, fds, _flags, _addr = socket.recv_fds(sock, GREETING.size, 3, socket.MSG_CMSG_CLOEXEC)
            sock.settimeout(None)
        except OSError as error:
            sock.close()
            raise ConnectionLostError(f"{path}: {error.strerror or error}") from error
        if len(fds) != 3:
            sock.close()
            for fd in fds:
                os.close(fd)
            raise ConnectionLostError(f"{path}: the hypervisor sent no greeting (is this user allowed to connect?)")
        memfd, connection_fd, upcall_fd = fds
        return cls(sock, memfd, connection_fd, upcall_fd, greeting)

    @property
    def shared_info(self) -> memoryview:
        """This connection's shared_info page (4096 bytes); EventChannels alone writes to it."""
        return self._view[:PAGE_SIZE]

    @property
    def shared_info_map(self) -> mmap.mmap:
        """The mapping that starts with shared_info, for atomic access."""
        return self._memory

    @property
    def bells_at(self) -> int:
        """Where in that mapping the page of the bells is."""
        return len(self._memory) - PAGE_SIZE

    def fileno(self) -> int:
        """Returns the control socket: for packets of post(), that native code may send, too."""
        return self._sock.fileno()

    def post(self, packet: bytes) -> None:
        """Sends a request that has NO_REPLY in its last word. Raises ConnectionLostError."""
        try:
            self._sock.send(packet)
        except OSError as error:
            self._closed = True
            raise ConnectionLostError(f"the hypervisor is gone: {error.strerror or error}") from error

    @property
    def is_closed(self) -> bool:
        """Whether close() was called or the peer went away."""
        return self._closed

    @contextlib.contextmanager
    def arena(self) -> Iterator[Arena]:
        """Holds the connection and lends its hypercall buffer; slots made within are void afterwards."""
        with self._lock:
            mark = self._arena._next
            try:
                yield self._arena
            finally:
                self._arena._next = mark

    def trim(self) -> None:
        """Gives the host back what no slot of the hypercall buffer lies in; long calls make use of all of it."""
        with self.arena() as arena:
            start = PAGE_SIZE + arena._next + PAGE_SIZE - 1 & -PAGE_SIZE
            end = PAGE_SIZE + len(arena._buffer) & -PAGE_SIZE
            if start < end:
                with contextlib.suppress(OSError):  # a host that does not do that keeps it
                    self._memory.madvise(mmap.MADV_REMOVE, start, end - start)

    def hypercall(self, op: int, *args: int, subop: int | None = None) -> int:
        """Makes a hypercall of up to five arguments and returns its result.

        Raises HypercallError for a negative error code (`subop` only names the call in it), ConnectionLostError.
        """
        if len(args) > 5:
            raise TypeError(f"a hypercall takes at most five arguments, not {len(args)}")
        words = [arg & _U64 for arg in args] + [0] * (5 - len(args))
        with self._lock:
            if self._closed:
                raise ConnectionLostError("the connection to the hypervisor is closed")
            self._cookie = self._cookie + 1 & _U64
            try:
                self._sock.send(REQUEST.pack(op, *words, self._cookie, 0))
                reply = self._sock.recv(REPLY.size)
            except OSError as error:
                self._closed = True
                raise ConnectionLostError(f"the hypervisor is gone: {error.strerror or error}") from error
            if len(reply) != REPLY.size:
                self._closed = True
                raise ConnectionLostError("the hypervisor closed the connection")
            cookie, result = REPLY.unpack(reply)
            if cookie != self._cookie:
                self._closed = True
                raise ConnectionLostError(f"reply {cookie} does not belong to request {self._cookie}")
        if -MAX_ERRNO <= result < 0:
            raise HypercallError(-result, op, subop)
        return int(result)

    def call(self, op: int, cmd: int | None, arg: ctypes.Structure, *, subop: int | None = None) -> int:
        """Makes a hypercall with a pointer to `arg`, after `cmd` if the call has one; OUT fields come back in `arg`."""
        with self.arena() as arena:
            slot = arena.put(bytes(arg))
            if cmd is None:
                result = self.hypercall(op, slot.handle, subop=subop)
            else:
                result = self.hypercall(op, cmd, slot.handle, subop=cmd)
            ctypes.memmove(ctypes.addressof(arg), slot.bytes(), ctypes.sizeof(arg))
        return result

    def close(self) -> None:
        """Closes the connection; the hypervisor then closes the ports that it bound. Closing again does nothing."""
        with self._lock:
            self._closed = True
            if not self._fds:
                return
            self._arena._buffer.release()
            self._view.release()
            with contextlib.suppress(BufferError):  # whoever still looks at it keeps the mapping alive
                self._memory.close()
            self._release()

    def _release(self) -> None:
        self._sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []

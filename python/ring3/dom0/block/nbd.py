"""Disk images that QEMU's storage daemon reads for us (qcow2, vhd, vmdk ...): a client of its NBD server.

The daemon is a helper program under the supervisor, which starts it again should it end. It keeps some of what was
written in its memory until it is asked to flush: so that a daemon that is killed loses nothing that the guest was told
is done, writes are kept here until a flush, and are repeated to its successor.

Source: the NBD protocol's proto.md: fixed newstyle negotiation, simple replies.
"""

from __future__ import annotations

import errno
import socket
import struct
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ring3.abi.blkif import SECTOR_BYTES

EXPORT: Final = b"disk"
_OPTION_MAGIC: Final = 0x49484156454F5054
_REPLY_MAGIC: Final = 0x3E889045565A9
_OPT_GO: Final = 7
_REP_ACK, _REP_INFO = 1, 3
_INFO_EXPORT: Final = 0
_FLAG_SEND_TRIM: Final = 1 << 5
_REQUEST: Final = struct.Struct(">IHHQQI")
_REQUEST_MAGIC: Final = 0x25609513
_SIMPLE_REPLY: Final = struct.Struct(">IIQ")
_SIMPLE_REPLY_MAGIC: Final = 0x67446698
_READ, _WRITE, _FLUSH, _TRIM = 0, 1, 3, 4
_UNFLUSHED_BYTES_MAX: Final = 8 << 20
_RECONNECT_S: Final = 10.0
_ERRNO: Final = {
    1: errno.EPERM,
    5: errno.EIO,
    12: errno.ENOMEM,
    22: errno.EINVAL,
    28: errno.ENOSPC,
    95: errno.EOPNOTSUPP,
}


class NbdImage:
    """An export of a server on a Unix socket; one request at a time, from any thread."""

    def __init__(self, path: Path) -> None:
        """Connects. Raises OSError."""
        self._path = path
        self._lock = threading.Lock()
        self._handle = 0
        self._unflushed: list[tuple[int, bytes]] = []
        self._nr_unflushed_bytes = 0
        self._size = 0
        self._flags = 0
        self._sock = self._connect()
        if not self.nr_sectors():
            self._sock.close()
            raise OSError(errno.EINVAL, "smaller than one sector")

    def nr_sectors(self) -> int:
        """Returns its size, as it was at the beginning."""
        return self._size // SECTOR_BYTES

    def logical_sector_bytes(self) -> int:
        """What formats promise."""
        return SECTOR_BYTES

    def physical_sector_bytes(self) -> int:
        """Formats have clusters, which are too large to ask a guest for."""
        return SECTOR_BYTES

    def can_discard(self) -> bool:
        """Returns what the server says."""
        return bool(self._flags & _FLAG_SEND_TRIM)

    def read_cached(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:  # noqa: ARG002
        """The server may always take long."""
        return False

    def write_quickly(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> bool:  # noqa: ARG002
        """The server may always take long."""
        return False

    def read(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Reads."""
        with self._lock:
            data = self._patiently(_READ, offset, nr_bytes)
        start = 0
        for buffer in buffers:
            buffer[:] = data[start : start + len(buffer)]
            start += len(buffer)

    def write(self, buffers: Sequence[memoryview], offset: int, nr_bytes: int) -> None:
        """Writes."""
        data = b"".join(buffers)
        with self._lock:
            self._patiently(_WRITE, offset, nr_bytes, data)
            self._unflushed.append((offset, data))
            self._nr_unflushed_bytes += nr_bytes
            if self._nr_unflushed_bytes > _UNFLUSHED_BYTES_MAX:
                self._flush()

    def flush(self) -> None:
        """Waits for stable storage."""
        with self._lock:
            self._flush()

    def discard(self, offset: int, nr_bytes: int) -> None:
        """Lets go of contents; after a flush, so that no older write is repeated over it."""
        with self._lock:
            self._flush()
            while nr_bytes:
                part = min(nr_bytes, 1 << 30)
                self._patiently(_TRIM, offset, part)
                offset, nr_bytes = offset + part, nr_bytes - part

    def close(self) -> None:
        """Ends the connection."""
        self._sock.close()

    def _flush(self) -> None:
        self._patiently(_FLUSH, 0, 0)
        self._unflushed.clear()
        self._nr_unflushed_bytes = 0

    def _patiently(self, kind: int, offset: int, nr_bytes: int, data: bytes = b"") -> bytes:
        """Makes a request, again if the server has ended meanwhile. Raises OSError."""
        deadline = time.monotonic() + _RECONNECT_S
        while True:
            try:
                return self._ask(kind, offset, nr_bytes, data)
            except (ConnectionError, EOFError):
                self._sock.close()
            while True:
                if time.monotonic() > deadline:
                    raise OSError(errno.EIO, "the storage daemon does not come back")
                try:
                    self._sock = self._connect()
                    for at, written in self._unflushed:
                        self._ask(_WRITE, at, len(written), written)
                    break
                except (OSError, EOFError):
                    time.sleep(0.02)

    def _ask(self, kind: int, offset: int, nr_bytes: int, data: bytes = b"") -> bytes:
        self._handle += 1
        self._sock.sendall(_REQUEST.pack(_REQUEST_MAGIC, 0, kind, self._handle, offset, nr_bytes) + data)
        magic, error, handle = _SIMPLE_REPLY.unpack(self._receive(_SIMPLE_REPLY.size))
        if magic != _SIMPLE_REPLY_MAGIC or handle != self._handle:
            raise ConnectionError("no NBD reply")
        if error:
            raise OSError(_ERRNO.get(error, errno.EIO), "the storage daemon reports an error")
        return self._receive(nr_bytes) if kind == _READ else b""

    def _receive(self, nr_bytes: int) -> bytes:
        data = bytearray(nr_bytes)
        view = memoryview(data)
        while view:
            done = self._sock.recv_into(view)
            if not done:
                raise EOFError
            view = view[done:]
        return bytes(data)

    def _connect(self) -> socket.socket:
        """Connects and negotiates. Raises OSError, EOFError."""
        self._sock = sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(_RECONNECT_S)
            sock.connect(str(self._path))
            greeting = self._receive(18)
            if greeting[:8] != b"NBDMAGIC":
                raise OSError(errno.EPROTO, "no NBD server")
            sock.sendall(struct.pack(">I", 3))  # fixed newstyle, no zeroes
            data = struct.pack(">I", len(EXPORT)) + EXPORT + struct.pack(">H", 0)
            sock.sendall(struct.pack(">QII", _OPTION_MAGIC, _OPT_GO, len(data)) + data)
            while True:
                magic, _option, kind, length = struct.unpack(">QIII", self._receive(20))
                payload = self._receive(length)
                if magic != _REPLY_MAGIC or kind not in (_REP_ACK, _REP_INFO):
                    raise OSError(errno.EPROTO, f"NBD reply {kind:#x}")
                if kind == _REP_ACK:
                    break
                if struct.unpack_from(">H", payload)[0] == _INFO_EXPORT:
                    self._size, self._flags = struct.unpack_from(">QH", payload, 2)
        except BaseException:
            sock.close()
            raise
        sock.settimeout(None)
        return sock

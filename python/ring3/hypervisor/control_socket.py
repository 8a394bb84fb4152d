"""The control socket: how a process becomes part of domain 0. The protocol is in docs/design/0001-seams.md.

What comes over the socket after the greeting is served by a thread of the core, not here.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from struct import Struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ring3._core import Hypervisor

_log = logging.getLogger(__name__)

MAGIC: Final = 0x334E4952
VERSION: Final = 1
GREETING: Final = Struct("<IIQQII")
SHARED_INFO_BYTES: Final = 4096
BUFFER_BYTES: Final = 1 << 20
BELLS_BYTES: Final = 4096
_UCRED: Final = Struct("<iII")


def peer_uid(sock: socket.socket) -> int:
    """Returns the user id of the process at the other end."""
    _pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return int(uid)


def connection_memfd() -> int:
    """Returns a new connection memfd. Sealed, so that no peer can shrink it under the hypervisor's mapping."""
    fd = os.memfd_create("ring3-connection", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, SHARED_INFO_BYTES + BUFFER_BYTES + BELLS_BYTES)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except OSError:
        os.close(fd)
        raise
    return fd


def welcome(core: Hypervisor, sock: socket.socket) -> int | None:
    """Makes a new connection part of domain 0. Returns its id, or None for a peer of another user. Raises OSError."""
    uid = peer_uid(sock)
    if uid not in (os.getuid(), 0):
        _log.warning("control socket: refused a process of uid %d", uid)
        return None
    memfd = connection_memfd()
    upcall_fd = -1
    try:
        upcall_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        # The core takes its own descriptors. The peer sends nothing before it has read the greeting.
        descriptors = [os.dup(sock.fileno()), os.dup(memfd), os.dup(upcall_fd)]
        connection_id = core.serve_connection(*descriptors)
        greeting = GREETING.pack(MAGIC, VERSION, core.nr_frames, BUFFER_BYTES, connection_id, 0)
        socket.send_fds(sock, [greeting], [core.memfd, memfd, upcall_fd])
    finally:
        os.close(memfd)
        if upcall_fd >= 0:
            os.close(upcall_fd)
    return connection_id

"""The greeting, and peers that misbehave."""

import fcntl
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from ring3.errors import HypercallError
from ring3.libs import sysctl
from ring3.libs.connection import Connection


@pytest.fixture
def serving(xen: Any, tmp_path: Path) -> Any:
    """A control socket that is served until the test ends; yields its path."""
    from ring3.hypervisor import boot, control_socket

    path = tmp_path / "control"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(path))
    listener.listen()

    def accept() -> None:
        while True:
            try:
                sock, _address = listener.accept()
            except OSError:
                return
            with sock:
                control_socket.welcome(xen.core, sock)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    assert boot
    yield path
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def test_connection_makes_hypercalls(serving: Path) -> None:
    with Connection.connect(serving) as conn:
        assert sysctl.physinfo(conn).total_pages == conn.nr_frames == 2048
        with pytest.raises(HypercallError):
            conn.hypercall(38, 0)


def test_connection_memory_cannot_be_shrunk_under_the_hypervisor(serving: Path) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(serving))
    _greeting, fds, _flags, _address = socket.recv_fds(sock, 32, 3)
    with pytest.raises(PermissionError):
        os.ftruncate(fds[1], 0)
    assert fcntl.fcntl(fds[1], fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
    for fd in fds:
        os.close(fd)
    sock.close()


@pytest.mark.parametrize("nonsense", [b"", b"x", bytes(63), bytes(65), bytes(4096)])
def test_peers_that_speak_nonsense_harm_nobody(serving: Path, nonsense: bytes) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.connect(str(serving))
    sock.send(nonsense)
    with Connection.connect(serving) as conn:
        assert sysctl.physinfo(conn).nr_cpus == 2
    sock.close()


def test_other_users_are_refused(xen: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from ring3.hypervisor import control_socket

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    monkeypatch.setattr(control_socket, "peer_uid", lambda _sock: os.getuid() + 1)
    assert control_socket.welcome(xen.core, ours) is None
    ours.close()
    theirs.close()

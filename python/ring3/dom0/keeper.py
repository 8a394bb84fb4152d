"""What a service asks of its supervisor: to keep descriptors that shall outlive it.

A service is confined: it can open no terminal and start no program. The supervisor is not; it does these things for
it, and no others. Requests are packets of text on a socket pair, with descriptors beside them:

- `pty NAME`: keep a pseudo-terminal of that name, made now or earlier. Answer: `DEVICE` with its master, or nothing.
- `drop NAME`: hang up and forget it.
- `take NAME`: the descriptors that the toolstack has given for a device (`requests`), or nothing.
- `keep`: keep the descriptors that come along for my successor, in this order.
- `replace PROGRAM`: when I end, start the service anew by that interpreter, with what was kept.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import tty
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ring3.dom0.requests import received_fds
from ring3.dom0.warden import Key, Shelf

_log = logging.getLogger(__name__)
_PACKET_BYTES_MAX: Final = 4096
_NR_FDS_PER_PACKET: Final = 64
NR_PTYS_MAX: Final = 1024


class Keeper:
    """The service's side."""

    def __init__(self, fd: int) -> None:
        self._sock = socket.socket(fileno=fd)

    def pty(self, name: str) -> tuple[int, str] | None:
        """Returns master and device of the pseudo-terminal of that name; None if there is none to be had."""
        try:
            self._sock.send(f"pty {name}".encode())
            data, fds, _flags, _address = socket.recv_fds(self._sock, _PACKET_BYTES_MAX, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            _log.warning("no pseudo-terminal: the supervisor is gone: %s", error)
            return None
        return (fds[0], data.decode()) if fds else None

    def drop(self, name: str) -> None:
        """Hangs up a pseudo-terminal."""
        with contextlib.suppress(OSError):
            self._sock.send(f"drop {name}".encode())

    def take(self, name: str) -> list[int]:
        """Returns the descriptors that the toolstack has given for a device; they are kept for a successor, too."""
        try:
            self._sock.send(f"take {name}".encode())
            _data, fds, _flags, _address = socket.recv_fds(
                self._sock, _PACKET_BYTES_MAX, _NR_FDS_PER_PACKET, socket.MSG_CMSG_CLOEXEC
            )
        except OSError as error:
            _log.warning("%s: the supervisor is gone: %s", name, error)
            return []
        return list(fds)

    def replace(self, program: str, fds: list[int]) -> None:
        """Asks for a successor, once this process ends; it gets these descriptors. Raises OSError."""
        for start in range(0, len(fds), _NR_FDS_PER_PACKET):
            socket.send_fds(self._sock, [b"keep"], fds[start : start + _NR_FDS_PER_PACKET])
        self._sock.send(f"replace {program}".encode())

    def close(self) -> None:
        """Asks nothing more."""
        self._sock.close()


@dataclass(slots=True)
class Kept:
    """The supervisor's side of one service: what it keeps."""

    sock: socket.socket
    """Ours of the pair."""
    ptys: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Name to master, slave and device."""
    fds: list[int] = field(default_factory=list)
    program: str | None = None
    given: Callable[[str], list[int]] = lambda _name: []
    """What the toolstack has given, by name."""
    shelf: Shelf = field(default_factory=Shelf)
    owner: str = ""
    """The service, by whose name it all lies on the shelf."""
    _keys: list[Key] = field(default_factory=list)
    """Where what is kept for its successor lies."""

    def serve(self) -> bool:
        """Answers one request. Returns False when the service has closed its side."""
        try:
            # Differs from recv_fds(): an unwanted packet must not raise.
            data, ancillary, _flags, _address = self.sock.recvmsg(
                _PACKET_BYTES_MAX, socket.CMSG_SPACE(_NR_FDS_PER_PACKET * 4), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            return False
        fds = received_fds(ancillary)
        verb, _blank, argument = data.decode(errors="replace").partition(" ")
        if verb == "keep":
            self.fds += fds
            self._put(("kept", self.owner, str(len(self._keys))), "", fds)
            return True
        for fd in fds:
            os.close(fd)
        match verb:
            case "pty":
                self._send_pty(argument)
            case "drop":
                self._drop(argument)
            case "take":
                with contextlib.suppress(OSError):
                    socket.send_fds(self.sock, [b"given"], self.given(argument))
            case "replace":
                self.program = argument
                self._put(("replace", self.owner), argument, [])
            case _:
                return bool(data)
        return True

    def take(self) -> tuple[str | None, list[int]]:
        """Returns the program that shall run the service, if another one shall, and the descriptors for it."""
        while self._has_request() and self.serve():
            pass
        program, fds = self.program, self.fds
        self.program, self.fds = None, []
        if program is None:
            for fd in fds:
                os.close(fd)
            fds = []
        return program, fds

    def find(self, key: Key, value: str, fds: list[int]) -> None:
        """Goes on with what a predecessor of the supervisor was given for a service's successor."""
        self._keys.append(key)
        self.fds += fds
        if key[0] == "replace":
            self.program = value

    def settle(self) -> None:
        """The successor has what was kept for it."""
        for key in self._keys:
            self.shelf.drop(*key)
        self._keys = []

    def _put(self, key: Key, value: str, fds: list[int]) -> None:
        self._keys.append(key)
        self.shelf.put(key, value, fds)

    def close(self) -> None:
        """Lets go of everything: who uses a terminal of these is told that it has hung up, if nobody else keeps it."""
        self.sock.close()
        for name in list(self.ptys):
            self._drop(name)

    def _has_request(self) -> bool:
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _send_pty(self, name: str) -> None:
        if name not in self.ptys:
            try:
                if len(self.ptys) >= NR_PTYS_MAX:
                    raise OSError("too many")
                master, slave, device = self.ptys[name] = _open_pty()
                self.shelf.put(("pty", self.owner, name), device, [master, slave])
            except OSError as error:
                _log.warning("pseudo-terminal %s: %s", name, error)
                with contextlib.suppress(OSError):
                    self.sock.send(b"none")
                return
        master, _slave, device = self.ptys[name]
        with contextlib.suppress(OSError):
            socket.send_fds(self.sock, [device.encode()], [master])

    def _drop(self, name: str) -> None:
        if name in self.ptys:
            master, slave, _device = self.ptys.pop(name)
            self.shelf.drop("pty", self.owner, name)
            os.close(master)
            os.close(slave)


def _open_pty() -> tuple[int, int, str]:
    """Returns master, slave (which is kept open, so that users may come and go) and device of a raw terminal."""
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    return master, slave, os.ttyname(slave)

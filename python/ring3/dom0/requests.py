"""What the toolstack asks of the supervisor: services that are not always there, descriptors for them, helper programs.

A service is confined and opens no file of the user's. The toolstack, which runs with the user's rights, opens what a
device needs and hands it over; the supervisor keeps it, so that a service that is started again finds it
(`keeper`, `take`). Requests are packets of words with NULs between, on a Unix socket of the state directory:

- `need SERVICE`: run the service from now on.
- `give NAME`: keep the descriptors that come along under that name, in place of those that were.
- `run NAME PROGRAM ARGUMENT...`: run a helper program, and again should it end; the descriptors that come along become
  its 3, 4 and so on.
- `forget NAME`: close the descriptors and end the helper of that name.
- `pid NAME`: the answer is the process id of a service or helper.

The answer is `ok`, or `error TEXT`. A name is a device (`vbd/1/51712`) by convention. Services are refused: what is
confined must not have programs started in its place.
"""

from __future__ import annotations

import array
import logging
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

_log = logging.getLogger(__name__)
PACKET_BYTES_MAX: Final = 32 << 10
NR_FDS_MAX: Final = 16
_PEER_CREDENTIALS: Final = struct.Struct("iII")


class RequestError(Exception):
    """A request that cannot be carried out; the text goes to who asked."""


class Host(Protocol):
    """Who carries requests out: the supervisor. Takes over the descriptors that it is given."""

    def need(self, service: str) -> None:
        """Runs a service from now on."""

    def give(self, name: str, fds: list[int]) -> None:
        """Keeps descriptors."""

    def run_helper(self, name: str, command: Sequence[str], fds: list[int]) -> None:
        """Runs a program."""

    def forget(self, name: str) -> None:
        """Closes descriptors and ends a helper."""

    def pid_of(self, name: str) -> int:
        """Returns the process of a service or helper."""

    def is_service(self, pid: int) -> bool:
        """Returns whether a process is one of ours."""


@dataclass(frozen=True, slots=True)
class RequestSocket:
    """The listening socket and the clients, in the supervisor's poll."""

    listener: socket.socket
    host: Host

    def accept(self) -> socket.socket | None:
        """Returns a new client; None if there is none, or it is none that may ask."""
        try:
            client, _address = self.listener.accept()
        except OSError:
            return None
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER_CREDENTIALS.size)
        pid, uid, _gid = _PEER_CREDENTIALS.unpack(credentials)
        if uid not in (os.geteuid(), 0) or self.host.is_service(pid):
            _log.warning("process %d may not ask anything of the supervisor", pid)
            client.close()
            return None
        return client

    def serve(self, client: socket.socket) -> bool:
        """Answers one request. Returns False when the client has gone."""
        try:
            data, ancillary, flags, _address = client.recvmsg(
                PACKET_BYTES_MAX, socket.CMSG_SPACE(NR_FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
            )
        except OSError:
            return False
        fds = received_fds(ancillary)
        if not data or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            _close(fds)
            return False
        try:
            answer = self._carry_out(data.decode(errors="surrogateescape").split("\0"), fds)
        except (RequestError, OSError) as error:
            answer = f"error\0{error}"
        try:
            client.send(answer.encode(errors="surrogateescape"))
        except OSError:
            return False
        return True

    def _carry_out(self, words: list[str], fds: list[int]) -> str:
        host = self.host
        match words:
            case ["give", name]:
                host.give(name, fds)
                return "ok"
            case ["run", name, *command] if command:
                host.run_helper(name, command, fds)
                return "ok"
        _close(fds)
        match words:
            case ["need", service]:
                host.need(service)
            case ["forget", name]:
                host.forget(name)
            case ["pid", name]:
                return f"ok\0{host.pid_of(name)}"
            case _:
                raise RequestError(f"no such request: {words[0]}")
        return "ok"


def received_fds(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Returns the descriptors that came along with a packet."""
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
    return list(fds)


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)

"""Asks the supervisor of domain 0's services: for services on demand, to keep descriptors, to run helper programs.

The other side, with the protocol, is `ring3.dom0.requests`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from ring3.errors import ConnectionLostError, Error
from ring3.libs.closeable import Closeable

if TYPE_CHECKING:
    from pathlib import Path

_PACKET_BYTES_MAX: Final = 32 << 10


class Services(Closeable):
    """A connection to the supervisor, made when the first request is. A context manager that closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock: socket.socket | None = None

    @property
    def directory(self) -> Path:
        """The state directory, which services may write to."""
        return self._path.parent

    def need(self, service: str) -> None:
        """Has a service run from now on. Raises Error, ConnectionLostError."""
        self._ask(["need", service])

    def give(self, name: str, fds: Sequence[int]) -> None:
        """Has descriptors kept under a name, for the service that serves that device. They stay the caller's."""
        self._ask(["give", name], fds)

    def run(self, name: str, command: Sequence[str | Path], fds: Sequence[int] = ()) -> None:
        """Runs a helper program, and again should it end; the descriptors become its 3, 4 and so on."""
        self._ask(["run", name, *map(str, command)], fds)

    def forget(self, name: str) -> None:
        """Has the descriptors closed and the helper ended that have this name."""
        self._ask(["forget", name])

    def pid(self, name: str) -> int:
        """Returns the process id of a service or helper that runs."""
        return int(self._ask(["pid", name]))

    def close(self) -> None:
        """Closes the connection; what was asked for stays."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def _ask(self, words: Sequence[str], fds: Sequence[int] = ()) -> str:
        try:
            if self._sock is None:
                self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
                self._sock.connect(str(self._path))
            socket.send_fds(self._sock, [b"\0".join(map(os.fsencode, words))], fds)
            answer = os.fsdecode(self._sock.recv(_PACKET_BYTES_MAX))
        except OSError as error:
            self.close()
            raise ConnectionLostError(f"{self._path}: {error.strerror or error}") from error
        verdict, _nul, text = answer.partition("\0")
        if verdict == "ok":
            return text
        if not answer:
            self.close()
            raise ConnectionLostError(f"{self._path}: the supervisor closed the connection")
        raise Error(text)

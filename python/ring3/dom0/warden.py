"""Who starts the supervisor, and starts it again should it be killed: what it must not lose lies here.

The warden of a machine that stays is the process that the toolstack forks; it does nothing but wait, so that it touches
(and has for itself) little memory. That of `ring3 run` is a thread of the command. The supervisor is its child, and
tells it of each descriptor that a successor needs: packets of words with NULs between, the descriptors beside them, on
a socket pair. Each is answered, so that what was taken off the shelf is closed when the supervisor goes on.

- `put KIND NAME... VALUE`: keep the descriptors, and VALUE, under KIND and NAME, in place of what was there.
- `drop KIND NAME...`: close them.
- `bury PID`: the answer is the exit code of a process that has ended, negative for a signal.

A successor is forked with all of it. Services that outlived their supervisor, and helper programs from the start, are
the warden's children (PR_SET_CHILD_SUBREAPER), which buries them; supervisors have their pidfds.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn

from ring3.dom0.requests import PACKET_BYTES_MAX, received_fds

_log = logging.getLogger(__name__)
_PR_SET_CHILD_SUBREAPER: Final = 36
"""Source: Linux, linux/prctl.h."""
_SHORT_LIFE_S: Final = 2.0
"""Who fails by itself in less than this is started again after a pause, or not at all."""
_NR_SHORT_LIVES_MAX: Final = 10
"""So many in a row, and it is given up."""
_PAUSE_S: Final = 0.2
_NR_FDS_MAX: Final = 64
"""As many as a service leaves to its successor in one packet."""
_ANSWER_BYTES_MAX: Final = 64

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """What lies on the shelf under a key."""

    value: str
    fds: list[int]


@dataclass(slots=True)
class Shelf:
    """The supervisor's side. Without a socket, or a warden, it forgets what it is given."""

    sock: socket.socket | None = None
    found: dict[Key, Item] = field(default_factory=dict)
    """What a predecessor has left; the descriptors are the finder's."""
    is_answered: bool = True
    """Whether put() and drop() are. If not, they are carried out before a successor is started, but maybe no sooner."""

    @property
    def has_warden(self) -> bool:
        """Whether processes may be left to a warden."""
        return self.sock is not None

    def fds(self) -> set[int]:
        """Returns all its descriptors."""
        return {fd for item in self.found.values() for fd in item.fds} | ({self.sock.fileno()} if self.sock else set())

    def put(self, key: Key, value: str, fds: list[int]) -> None:
        """Lays descriptors on the shelf; they stay the caller's."""
        self._ask(["put", *key, value], fds)

    def drop(self, *key: str) -> None:
        """Takes them off."""
        self._ask(["drop", *key], [])

    def exit_code(self, pid: int) -> int:
        """Returns how a child of the warden ended, which it has; as if by a signal where nobody knows."""
        answer = self._ask(["bury", str(pid)], [])
        return int(answer) if answer.lstrip(b"-").isdigit() else -signal.SIGKILL

    def close(self) -> None:
        """For a child: leaves the shelf as it is."""
        if self.sock is not None:
            self.sock.close()
            self.sock = None

    def _ask(self, words: list[str], fds: list[int]) -> bytes:
        if self.sock is None:
            return b""
        try:
            socket.send_fds(self.sock, [b"\0".join(map(os.fsencode, words))], fds)
            if not self.is_answered and words[0] != "bury":
                return b""
            if answer := self.sock.recv(_ANSWER_BYTES_MAX):
                return answer
        except OSError as error:
            _log.warning("warden: %s", error.strerror)
        _log.warning("the warden is gone: nobody will start a successor")
        self.close()
        return b""


def watch(body: Callable[[Shelf], int], lifetime_fd: int) -> int:
    """Runs body() in a child, and again whenever it is killed, until the lifetime pipe ends. Returns its exit code."""

    def start(shelf: Shelf, ours: socket.socket) -> int:
        pid = os.fork()
        if pid == 0:
            ours.close()
            _child(body, shelf)
        return pid

    return Warden(start).stay(lifetime_fd)


class Warden:
    """Has start() start a supervisor, at once, and again in stay(). It returns a pid; it gets the shelf, and the
    warden's end, which a child closes. In a process that is busy with other things nobody waits for answers, and
    children that the supervisor does not ask about are left alone.
    """

    def __init__(self, start: Callable[[Shelf, socket.socket], int], *, is_busy: bool = False) -> None:
        self._start = start
        self._is_busy = is_busy
        self._shelf: dict[Key, Item] = {}
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._begin()

    def _begin(self) -> None:
        self._started_at = time.monotonic()
        self._sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._pid = self._start(Shelf(theirs, self._shelf, not self._is_busy), self._sock)

    def stay(self, lifetime_fd: int) -> int:
        """Starts successors until the lifetime pipe ends; returns the supervisor's exit code."""
        nr_short_lives = 0
        while True:
            with self._sock:
                code = _await(self._pid, self._sock, self._shelf, is_busy=self._is_busy)
            nr_short_lives = count_short_lives(nr_short_lives, time.monotonic() - self._started_at, code)
            if code == 0 or _has_ended(lifetime_fd) or nr_short_lives > _NR_SHORT_LIVES_MAX:
                return max(code, 0)
            if nr_short_lives > 1:
                time.sleep(_PAUSE_S)
            self._begin()


def count_short_lives(before: int, lived_s: float, code: int) -> int:
    """Returns how many lives in a row were short, with the one that ended with this exit code (negative: a signal).

    Who kills a process wants it back; one that fails by itself would do nothing but that.
    """
    is_own_fault = code not in (-signal.SIGKILL, -signal.SIGTERM)
    return before + 1 if lived_s < _SHORT_LIFE_S and is_own_fault else 0


def _child(body: Callable[[Shelf], int], shelf: Shelf) -> NoReturn:
    code = 1
    try:
        code = body(shelf)
    except BaseException:
        _log.exception("the supervisor failed")
    finally:
        logging.shutdown()
        os._exit(code)


def _await(pid: int, sock: socket.socket, shelf: dict[Key, Item], *, is_busy: bool) -> int:
    """Keeps what a child gives until it ends; returns its exit code, negative for a signal."""
    ended: dict[int, int] = {}
    while _serve(sock, shelf, ended, is_answered=not is_busy):
        if not is_busy:
            _bury_others(pid, ended)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:  # who ends the machine was faster
        return 0


def _serve(sock: socket.socket, shelf: dict[Key, Item], ended: dict[int, int], *, is_answered: bool) -> bool:
    """Carries a request out; returns False at the end of the child. `ended` has the exit codes of who was buried."""
    try:
        data, ancillary, _flags, _address = sock.recvmsg(
            PACKET_BYTES_MAX, socket.CMSG_SPACE(_NR_FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
        )
    except OSError:
        return False
    if not data:
        return False
    verb, *words = os.fsdecode(data).split("\0")
    if verb == "bury":
        with contextlib.suppress(OSError):
            sock.send(str(_bury(int(words[0]), ended)).encode())
        return True
    value = words.pop() if verb == "put" else ""
    old = shelf.pop(tuple(words), None)
    for fd in old.fds if old is not None else ():
        os.close(fd)
    if verb == "put":
        shelf[tuple(words)] = Item(value, received_fds(ancillary))
    if is_answered:
        with contextlib.suppress(OSError):
            sock.send(b"\0")
    return True


def _bury(pid: int, ended: dict[int, int]) -> int | str:
    """Returns the exit code of one of our children that has ended; no number for one that is none."""
    if pid in ended:
        return ended.pop(pid)
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
    return "?"


def _bury_others(pid: int, ended: dict[int, int]) -> None:
    """Waits for those that have ended, beside the supervisor, which has their pidfds and will ask about them."""
    with contextlib.suppress(ChildProcessError):
        while (
            found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        ) is not None and found.si_pid != pid:
            ended[found.si_pid] = os.waitstatus_to_exitcode(os.waitpid(found.si_pid, 0)[1])


def _has_ended(lifetime_fd: int) -> bool:
    poll = select.poll()
    poll.register(lifetime_fd, select.POLLIN)
    return bool(poll.poll(0))

"""The warden: a supervisor that is killed has a successor, with all that lay on the shelf."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from ring3.dom0.keeper import Keeper
from ring3.dom0.supervisor import Start, Supervisor
from ring3.dom0.warden import Shelf, watch
from ring3.errors import Error
from ring3.tools.services import Services
from support.waiting import wait_for


class Wardens:
    """Starts wardens, whose lifetime ends with the test."""

    def __init__(self) -> None:
        self.life_r, self._life_w = os.pipe()
        self._pids: list[int] = []

    def __call__(self, body: Callable[[Shelf], int]) -> int:
        """Runs a warden for a body; returns its pid."""
        pid = os.fork()
        if pid == 0:
            os.close(self._life_w)
            os._exit(watch(body, self.life_r))
        self._pids.append(pid)
        return pid

    def end(self) -> None:
        os.close(self._life_w)
        for pid in self._pids:
            wait_for(partial(has_ended, pid), f"{pid} does not end")
        os.close(self.life_r)


def has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG) is not None


@pytest.fixture
def run() -> Iterator[Wardens]:
    wardens = Wardens()
    yield wardens
    wardens.end()


def test_successor_finds_what_lay_on_the_shelf(tmp_path: Path, run: Wardens) -> None:
    kept, dropped = os.pipe(), os.pipe()

    def body(shelf: Shelf) -> int:
        life = tmp_path / "lives"
        number = int(life.read_text()) if life.exists() else 0
        life.write_text(str(number + 1))
        if number == 0:
            for key, value, fd in (("a", "1", dropped[1]), ("b", "", dropped[1]), ("a", "2", kept[1])):
                shelf.put(("given", key), value, [fd])
            shelf.drop("given", "b")
            for fd in (*kept, *dropped):
                os.close(fd)
            os.kill(os.getpid(), signal.SIGKILL)
        assert list(shelf.found) == [("given", "a")]
        item = shelf.found["given", "a"]
        os.write(item.fds[0], item.value.encode())
        return 0

    warden = run(body)
    for fd in (kept[1], dropped[1]):
        os.close(fd)
    assert os.read(kept[0], 10) == b"2"
    assert os.waitid(os.P_PID, warden, os.WEXITED | os.WNOWAIT) is not None
    assert (tmp_path / "lives").read_text() == "2", "who ends in good order has no successor"
    for fd in (kept[0], dropped[0]):
        os.close(fd)


def test_one_that_fails_at_once_is_given_up(tmp_path: Path, run: Wardens) -> None:
    def body(_shelf: Shelf) -> int:
        with (tmp_path / "lives").open("a") as file:
            file.write("x")
        return 1

    warden = run(body)
    os.waitid(os.P_PID, warden, os.WEXITED | os.WNOWAIT)
    assert (tmp_path / "lives").read_text() == "x" * 11


def test_services_and_helpers_outlive_their_supervisor(tmp_path: Path, run: Wardens) -> None:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "dom0"))
    listener.listen()

    def service(_start: Start) -> int:
        (tmp_path / "service.pid").write_text(str(os.getpid()))
        os.read(run.life_r, 1)
        return 0

    def body(shelf: Shelf) -> int:
        (tmp_path / "dom0.pid").write_text(str(os.getpid()))
        own = socket.socket(fileno=os.dup(listener.fileno()))
        return Supervisor({"service": service}, run.life_r, tmp_path, listener=own, shelf=shelf).run()

    run(body)
    pid_file = tmp_path / "service.pid"
    wait_for(pid_file.exists, "the service does not start")
    with Services(tmp_path / "dom0") as services:
        read, write = os.pipe()
        services.give("vbd/1/1", [write])
        services.run("helper", ["sh", "-c", f"echo $$ >> {tmp_path}/helper; exec sleep 1000"])
        services.run("failing", ["sh", "-c", f"echo $$ >> {tmp_path}/failing; echo oops >&2; exit 7"])
        helper = services.pid("helper")
        os.close(write)
        first = services.pid("service")
    for _kill in range(5):
        old = (tmp_path / "dom0.pid").read_text()
        os.kill(int(old), signal.SIGKILL)
        wait_for(lambda old=old: (tmp_path / "dom0.pid").read_text() not in (old, ""), "no successor")
        with Services(tmp_path / "dom0") as services:
            assert (services.pid("service"), services.pid("helper")) == (first, helper), "they went on"
    assert (tmp_path / "helper").read_text() == f"{helper}\n"
    assert (tmp_path / "failing").read_text().count("\n") < 20, "one that fails by itself is started after pauses"
    for victim in (first, helper):
        os.kill(victim, signal.SIGKILL)
    wait_for(lambda: int(pid_file.read_text() or first) != first, "it is not supervised")
    with Services(tmp_path / "dom0") as services:
        services.forget("failing")
        assert not (tmp_path / "helper-failing.log").exists()
        wait_for(lambda: runs(services, "helper") and services.pid("helper") != helper, "the helper does not come back")
    with Services(tmp_path / "dom0") as services:
        os.set_blocking(read, False)
        with pytest.raises(BlockingIOError):
            os.read(read, 1)
        services.forget("vbd/1/1")
        assert os.read(read, 1) == b"", "nobody keeps it any more"
        services.forget("helper")
    listener.close()
    os.close(read)


def test_successor_of_a_service_gets_what_was_left_to_it_though_the_supervisor_is_killed(
    tmp_path: Path, run: Wardens
) -> None:
    read, write = os.pipe()

    def service(start: Start) -> int:
        if start.program is None:
            Keeper(start.keeper_fd).replace("successor", [write] * 100)
            (tmp_path / "asked").touch()
            wait_for((tmp_path / "go").exists, "nobody lets it end")
            return 0
        os.write(start.fds[99], f"{start.program} {len(start.fds)}".encode())
        os.read(run.life_r, 1)
        return 0

    def body(shelf: Shelf) -> int:
        with (tmp_path / "dom0.pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return Supervisor({"service": service}, run.life_r, tmp_path, shelf=shelf).run()

    run(body)
    wait_for((tmp_path / "asked").exists, "the service does not start")
    for number in range(1, 4):
        pids = (tmp_path / "dom0.pids").read_text().split()
        assert len(pids) == number
        os.kill(int(pids[-1]), signal.SIGKILL)
        wait_for(lambda nr=number: len((tmp_path / "dom0.pids").read_text().split()) > nr, "no successor")
    (tmp_path / "go").touch()
    assert os.read(read, 100) == b"successor 100"
    for fd in (read, write):
        os.close(fd)


def runs(services: Services, name: str) -> bool:
    with contextlib.suppress(Error, OSError):
        return ") Z " not in Path("/proc", str(services.pid(name)), "stat").read_text()
    return False

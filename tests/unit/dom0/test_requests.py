"""The supervisor's requests: services on demand, descriptors that outlive a service, helper programs, who may ask."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.dom0.keeper import Keeper
from ring3.dom0.supervisor import Start, Supervisor
from ring3.errors import ConnectionLostError, Error
from ring3.tools.services import Services


def _reader(run_dir: Path, start: Start) -> int:
    """A service that writes down what it is given for `vbd/1/1`, and then that the supervisor does not listen to it."""
    [fd] = Keeper(start.keeper_fd).take("vbd/1/1")
    with Services(run_dir / "dom0") as services:
        try:
            services.run("evil", ["true"])
            answer = "obeyed"
        except ConnectionLostError:
            answer = "refused"
    (run_dir / "seen").write_text(f"{os.pread(fd, 100, 0).decode()} {answer} {os.getpid()}")
    signal.pause()
    return 0


@pytest.fixture
def services(tmp_path: Path) -> Iterator[Services]:
    """A client of a supervisor that runs in a process of its own."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(tmp_path / "dom0"))
    listener.listen()
    life_r, life_w = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(life_w)
        bodies = {"reader": lambda start: _reader(tmp_path, start)}
        os._exit(Supervisor(bodies, life_r, tmp_path, listener=listener, on_demand=["reader"]).run())
    os.close(life_r)
    listener.close()
    with Services(tmp_path / "dom0") as client:
        yield client
    if (tmp_path / "seen").exists():
        os.kill(int((tmp_path / "seen").read_text().split()[-1]), signal.SIGTERM)
    os.close(life_w)
    killer = threading.Timer(20, os.kill, (pid, signal.SIGKILL))
    killer.start()
    os.waitpid(pid, 0)
    killer.cancel()


def wait_for_text(path: Path, other_than: str = "") -> str:
    deadline = time.monotonic() + 20
    while not path.exists() or path.read_text() in ("", other_than):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.02)
    return path.read_text()


def test_service_on_demand_gets_what_was_given_also_after_it_was_killed(services: Services, tmp_path: Path) -> None:
    (tmp_path / "image").write_text("content")
    fd = os.open(tmp_path / "image", os.O_RDONLY)
    services.give("vbd/1/1", [fd])
    os.close(fd)
    assert not (tmp_path / "seen").exists()
    services.need("reader")
    services.need("reader")
    first = wait_for_text(tmp_path / "seen")
    assert first.startswith("content refused "), "a service must not have programs started"
    assert int(first.split()[-1]) == services.pid("reader")
    os.kill(services.pid("reader"), signal.SIGKILL)
    second = wait_for_text(tmp_path / "seen", first)
    assert second.startswith("content refused ")


def test_helper_runs_until_it_is_forgotten(services: Services, tmp_path: Path) -> None:
    target = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT, 0o600)
    services.run("vif/1/0", ["sh", "-c", "echo $$ >&3; exec sleep 60"], [target])
    os.close(target)
    pid = int(wait_for_text(tmp_path / "out"))
    assert services.pid("vif/1/0") == pid
    with pytest.raises(Error, match="runs already"):
        services.run("vif/1/0", ["true"])
    os.kill(pid, signal.SIGKILL)
    again = int(wait_for_text(tmp_path / "out", f"{pid}\n").split()[-1])
    assert again != pid
    services.forget("vif/1/0")
    assert not Path("/proc", str(again)).exists()
    with pytest.raises(Error, match="does not run"):
        services.pid("vif/1/0")


def test_unknown_requests_are_refused(services: Services) -> None:
    with pytest.raises(Error, match="no service nothing"):
        services.need("nothing")
    services.forget("never given")
    with pytest.raises(Error, match="no such request"):
        services._ask(["whatever"])

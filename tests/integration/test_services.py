"""Domain 0's services are killed again and again, under load: they come back, and guests go on as if nothing was."""

import os
import re
import select
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ring3.libs.xenstore import XenstoreClient
from ring3.libs.xenstore_socket import XenstoreSocket
from ring3.tools.devices.image_lock import lock
from support import disks, guests
from support.command import Ring3
from support.waiting import wait_for

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

NR_KILLS = 20
_LIMIT_S = 60.0


def read_pid(run_dir: Path, service: str) -> int | None:
    try:
        return int((run_dir / f"{service}.pid").read_text())
    except (OSError, ValueError):
        return None


def nr_lines(log: Path) -> int:
    """Returns the number in the last whole line of a console's log."""
    lines = re.findall(rb"^line (\d+)\r$", log.read_bytes()[-4096:], re.MULTILINE)
    return int(lines[-1]) if lines else 0


def wait_for_lines(log: Path, nr_more: int) -> None:
    wanted = nr_lines(log) + nr_more
    deadline = time.monotonic() + _LIMIT_S
    while nr_lines(log) < wanted:
        assert time.monotonic() < deadline, f"the guest has stopped: {log.read_bytes()[-300:]!r}"
        time.sleep(0.01)


def kill(run_dir: Path, service: str) -> None:
    """Kills a service and waits for its successor."""
    pid = read_pid(run_dir, service)
    assert pid is not None
    os.kill(pid, 9)
    wait_for(lambda: read_pid(run_dir, service) not in (pid, None), f"{service} does not come back", _LIMIT_S)


@pytest.fixture
def busy(ring3: Ring3, tmp_path: Path) -> Ring3:
    """A machine with a domain that uses xenstore and console without end."""
    image = guests.build("services", tmp_path)
    assert ring3("up", "--memory", "128").exit_code == 0
    done = ring3("create", "--kernel", image, "--memory", "16", "--name", "busy")
    assert done.exit_code == 0, done.describe()
    return ring3


def listener_of(path: Path) -> str:
    """Returns what /proc/PID/fd shows of who listens on a path."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    # Flags, state 1 and the path: the one that listens, not those that it accepted.
    return next(f"socket:[{line[6]}]" for line in lines if line[7:] == [str(path)] and line[3] == "00010000")


def test_only_xenstored_and_its_supervisor_hold_its_listener(ring3: Ring3) -> None:
    assert ring3("up", "--memory", "128").exit_code == 0
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    listener = listener_of(run_dir / "xenstore")
    holders = set()
    for file in run_dir.glob("*.pid"):
        descriptors = Path(f"/proc/{file.read_text().strip()}/fd").iterdir()
        if any(str(one.readlink()) == listener for one in descriptors):
            holders.add(file.stem)
    assert {"xenstored"} <= holders <= {"xenstored", "dom0", "warden"}


@pytest.mark.parametrize("service", ["xenstored", "consoled"])
def test_guest_goes_on_while_a_service_is_killed(busy: Ring3, service: str) -> None:
    ring3 = busy
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    log = run_dir / "console" / "1.log"
    attached = ring3.start("console", "busy")
    assert attached.stdout is not None
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        xenstore.watch("/local/domain/1/data/b", "b")
        for number in range(NR_KILLS):
            wait_for_lines(log, 5 + number % 7)
            kill(run_dir, service)
            xenstore.write("/test/host", str(number))
        wait_for_lines(log, 20)
        assert xenstore.read_text("/test/host") == str(NR_KILLS - 1)
        assert xenstore.control("check") == "OK"
        assert sum(path.endswith("/data/b") for path, _token in xenstore.events()) > 0
        xenstore.write("/local/domain/1/data/stop", "1")
        output, _errors = attached.communicate(timeout=_LIMIT_S)
    assert attached.returncode == 0
    logs = "".join(path.read_text() for path in sorted(run_dir.glob("*.log")))
    assert b"VERDICT: SUCCESS" in output, f"{log.read_bytes()[-300:]!r} {output[-300:]!r} {logs[-3000:]}"
    printed = [int(number) for number in re.findall(rb"^line (\d+)\r$", output, re.MULTILINE)]
    assert printed == list(range(printed[0], printed[0] + len(printed))), "no line is lost, none comes twice"
    assert output.endswith(log.read_bytes()[-2000:])
    assert ring3("down").exit_code == 0


def test_supervisor_that_is_killed_comes_back_and_its_services_go_on(busy: Ring3, tmp_path: Path) -> None:
    run_dir = Path(busy.environment["RING3_RUN_DIR"])
    log = run_dir / "console" / "1.log"
    image = disks.image(tmp_path / "image", 4)
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        device = xenstore.read_text("/local/domain/1/console/tty")
        pids = [read_pid(run_dir, service) for service in ("xenstored", "consoled")]
        for number in range(NR_KILLS):
            wait_for_lines(log, 5)
            kill(run_dir, "dom0")
            xenstore.write("/test/host", str(number))
        assert [read_pid(run_dir, service) for service in ("xenstored", "consoled")] == pids
        # What it is for, the successor does, too.
        assert busy("block-attach", "busy", f"{image},raw,xvda,rw").exit_code == 0
        kill(run_dir, "dom0")
        for service in ("xenstored", "consoled", "block"):
            kill(run_dir, service)
            wait_for_lines(log, 20)
        again = busy("block-attach", "busy", f"{image},raw,xvdb,rw")
        assert (again.exit_code, "is busy" in again.stderr) == (1, True), again.describe()
        assert xenstore.read_text("/local/domain/1/console/tty") == device
        assert busy("destroy", "busy").exit_code == 0
    lock_fd = os.open(image, os.O_RDWR)
    lock(lock_fd, is_read_only=False)  # nobody keeps it any more
    os.close(lock_fd)
    assert busy("down").exit_code == 0
    wait_for(lambda: not processes_of(run_dir), "processes of the machine stay", _LIMIT_S)


def test_command_that_runs_a_guest_starts_its_supervisor_again(ring3: Ring3, tmp_path: Path) -> None:
    running = ring3.start("run", "--kernel", guests.build("services", tmp_path), "--memory", "16")
    top = Path(ring3.environment["RING3_RUN_DIR"])
    wait_for(lambda: list(top.glob("run-*/console/1.log")) != [], "no console", _LIMIT_S)
    [run_dir] = top.glob("run-*")
    log = run_dir / "console" / "1.log"
    for number in range(NR_KILLS):
        wait_for_lines(log, 5)
        kill(run_dir, "dom0")
        if number % 4 == 0:
            kill(run_dir, ("xenstored", "consoled")[number % 8 // 4])
    wait_for_lines(log, 5)
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        xenstore.write("/local/domain/1/data/stop", "1")
    output, _errors = running.communicate(timeout=_LIMIT_S)
    assert (running.returncode, b"VERDICT: SUCCESS" in output) == (0, True), output[-300:]
    wait_for(lambda: not processes_of(run_dir), "processes of the machine stay", _LIMIT_S)
    assert not run_dir.exists()


def processes_of(run_dir: Path) -> list[str]:
    """Returns the processes that have a socket or log of the machine open."""
    found = []
    for fd in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            if str(fd.readlink()).startswith(str(run_dir)):
                found.append((fd.parent.parent / "comm").read_text().strip())
        except OSError:
            continue
    return found


def test_live_update_keeps_every_connection(busy: Ring3) -> None:
    """The clients here never connect again: they have no path to do it by."""
    run_dir = Path(busy.environment["RING3_RUN_DIR"])
    log = run_dir / "console" / "1.log"
    with (
        XenstoreClient(XenstoreSocket.open(run_dir / "xenstore")) as first,
        XenstoreClient(XenstoreSocket.open(run_dir / "xenstore")) as second,
    ):
        first.watch("/test", "t")
        assert first.next_event(5) == ("/test", "t")
        for number in range(5):
            wait_for_lines(log, 10)
            pid = read_pid(run_dir, "xenstored")

            def body(tx_id: int, number: int = number, pid: int | None = pid) -> None:
                second.write("/test/a", str(number), tx_id=tx_id)
                if read_pid(run_dir, "xenstored") == pid:
                    assert first.control("live-update", "-s") == "OK"
                assert second.read("/test/a", tx_id=tx_id) == b"%d" % number

            second.transaction(body)  # its first end is refused: it was open meanwhile
            assert read_pid(run_dir, "xenstored") != pid
            assert first.next_event(5) == ("/test/a", "t")
            assert first.read_text("/test/a") == str(number)
        assert first.control("live-update", "-f", "/none") != "OK"
        wait_for_lines(log, 20)
        first.write("/local/domain/1/data/stop", "1")
    deadline = time.monotonic() + _LIMIT_S
    while b"VERDICT" not in log.read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert b"VERDICT: SUCCESS" in log.read_bytes()


def test_pseudo_terminal_of_a_console_stays_while_the_daemon_is_killed(busy: Ring3) -> None:
    run_dir = Path(busy.environment["RING3_RUN_DIR"])
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        device = xenstore.read_text("/local/domain/1/console/tty")
        with subprocess.Popen(["cat", device], stdout=subprocess.PIPE) as reader:
            assert reader.stdout is not None
            for _again in range(3):
                kill(run_dir, "consoled")
                wait_for_lines(run_dir / "console" / "1.log", 50)
                for _line in range(100):
                    assert re.match(rb"(line)? ?\d*\r?\n?", reader.stdout.readline())
                assert xenstore.read_text("/local/domain/1/console/tty") == device
            assert busy("destroy", "busy").exit_code == 0
            assert reader.wait(10) in (0, 1), "it is hung up with the domain"


def test_console_of_a_domain_whose_daemon_is_late_is_waited_for(ring3: Ring3, tmp_path: Path) -> None:
    """As on a host with much to do: `create` has returned and the console daemon has not had its turn yet."""
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    image = guests.build("services", tmp_path)
    assert ring3("up", "--memory", "128").exit_code == 0
    daemon = read_pid(run_dir, "consoled")
    assert daemon is not None
    os.kill(daemon, signal.SIGSTOP)
    try:
        done = ring3("create", "--kernel", image, "--memory", "16", "--name", "late")
        assert done.exit_code == 0, done.describe()
        attached = ring3.start("console", "late")
        missing = ring3("console", "late", "-n", "3")
        assert (missing.exit_code, "late has no console 3" in missing.stderr) == (1, True), missing.describe()
        time.sleep(6)
        assert attached.poll() is None
    finally:
        os.kill(daemon, signal.SIGCONT)
    assert attached.stdout is not None
    assert select.select([attached.stdout], [], [], _LIMIT_S)[0], "it does not attach"
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        xenstore.write("/local/domain/1/data/stop", "1")
    output, errors = attached.communicate(timeout=_LIMIT_S)
    assert (attached.returncode, b"VERDICT: SUCCESS" in output) == (0, True), errors

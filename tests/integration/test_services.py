"""Domain 0's services are killed again and again, under load: they come back, and guests go on as if nothing was."""

import os
import re
import time
from pathlib import Path

import pytest

from ring3.libs.xenstore import XenstoreClient
from support import guests
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.slow, pytest.mark.timeout(300)]

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
    deadline = time.monotonic() + _LIMIT_S
    while read_pid(run_dir, service) in (pid, None):
        assert time.monotonic() < deadline, f"{service} does not come back"
        time.sleep(0.005)


@pytest.mark.parametrize("service", ["xenstored", "consoled"])
def test_guest_goes_on_while_a_service_is_killed(ring3: Ring3, tmp_path: Path, service: str) -> None:
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    image = guests.build("services", tmp_path)
    assert ring3("up", "--memory", "128").exit_code == 0
    done = ring3("create", "--kernel", image, "--memory", "16", "--name", "busy")
    assert done.exit_code == 0, done.describe()
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

"""Frames go back to the host when a domain is idle, and nothing that a guest writes is lost by that."""

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import pytest

from ring3.libs import sysctl
from ring3.libs.connection import Connection
from support import guests
from support.command import Ring3, at_shell

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]


def test_no_store_is_lost(ring3: Ring3, tmp_path: Path) -> None:
    """Each debug key looks through all frames, while three vCPUs write and clear words in them."""
    image = guests.build("zeros", tmp_path)
    assert ring3("up", "--memory", "64").exit_code == 0
    done = ring3("create", "--kernel", image, "--memory", "16", "--name", "zeros", "--vcpus", "3")
    assert done.exit_code == 0, done.describe()
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    log = run_dir / "console" / "1.log"
    given: list[tuple[str, str]] = []
    with Connection.connect(run_dir / "control") as conn:
        while not log.exists() or b"VERDICT" not in log.read_bytes():
            sysctl.debug_keys(conn, "z")
            given += re.findall(r"(\d+) uniform frames .* (\d+) others", sysctl.readconsole(conn, clear=True))
            time.sleep(0.005)
    assert b"VERDICT: SUCCESS" in log.read_bytes(), log.read_bytes()
    for kind in range(2):
        assert sum(int(nrs[kind]) > 0 for nrs in given) > 32, given
    assert "all references are explained" in (ring3("debug-keys", "k"), ring3("dmesg"))[1].stdout


@pytest.mark.stock
def test_an_idle_domain_holds_few_frames(ring3: Ring3, cloud_kernel: Path, busybox_image: Path) -> None:
    """Of some 14,000 of a kernel that holds more than one byte, a quarter cannot be packed."""
    with at_shell(ring3, cloud_kernel, busybox_image) as inner:
        pid_file = Path(inner.environment["RING3_RUN_DIR"]) / "ring3d.pid"
        deadline = time.monotonic() + 30
        while (resident := look_at_resident(int(pid_file.read_text()))).uniform > 256 or resident.other > 8000:
            assert time.monotonic() < deadline, resident
            time.sleep(0.5)
        inner("debug-keys", "k")
        assert "all references are explained" in inner("dmesg").stdout


class Resident(NamedTuple):
    """Pages that take host memory: those that hold one byte all over, and others."""

    uniform: int
    other: int


def look_at_resident(pid: int) -> Resident:
    """Returns what of the machine's memory takes host memory."""
    [place] = [fd for fd in Path(f"/proc/{pid}/fd").iterdir() if "ring3-machine" in str(fd.readlink())]
    fd = os.open(place, os.O_RDONLY)
    position = 0
    nr = [0, 0]
    try:
        while True:
            start = os.lseek(fd, position, os.SEEK_DATA)
            position = os.lseek(fd, start, os.SEEK_HOLE)
            for at in range(start, position, 4096):
                nr[len(set(os.pread(fd, 4096, at))) > 1] += 1
    except OSError:  # no more data
        return Resident(*nr)
    finally:
        os.close(fd)

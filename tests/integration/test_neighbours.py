"""Two domains that look for each other's registers and pages, and that share code (tests/guests/hostile)."""

import re
import time
from pathlib import Path

import pytest

from ring3.libs import sysctl
from ring3.libs.connection import Connection
from support import guests
from support.command import Ring3

pytestmark = pytest.mark.guest

LIMIT_S = 60


def test_neighbours_see_what_was_granted_and_nothing_else(ring3: Ring3, tmp_path: Path) -> None:
    run_pair(ring3, guests.build("hostile/neighbours", tmp_path), nr_pcpus=1)


def test_neighbours_carry_nothing_over_to_each_other(ring3: Ring3, tmp_path: Path) -> None:
    run_pair(ring3, guests.build("hostile/carried", tmp_path), nr_pcpus=1)


@pytest.mark.parametrize("nr_pcpus", [1, 2, 4])
def test_neighbours_run_the_code_that_either_has_written_last(ring3: Ring3, tmp_path: Path, nr_pcpus: int) -> None:
    run_pair(ring3, guests.build("hostile/shared_code", tmp_path), nr_pcpus)


def run_pair(ring3: Ring3, image: Path, nr_pcpus: int) -> None:
    """Has two domains of two vCPUs, which know each other's numbers, run to their verdicts; looks at what is left."""
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    done = ring3("up", "--memory", "96", "--pcpus", str(nr_pcpus))
    assert done.exit_code == 0, done.describe()
    for domid, peer in ((1, 2), (2, 1)):
        options = ("--kernel", image, "--memory", "16", "--vcpus", "2", "--name", f"neighbour-{domid}")
        done = ring3("create", *options, "--cmdline", f"self={domid} peer={peer}")
        assert done.exit_code == 0, done.describe()
    logs = [run_dir / "console" / f"{domid}.log" for domid in (1, 2)]
    end = time.monotonic() + LIMIT_S
    texts = ["", ""]
    while time.monotonic() < end and not all("VERDICT" in text for text in texts):
        time.sleep(0.1)
        texts = [log.read_text(errors="replace") if log.exists() else "" for log in logs]
    assert [re.findall(r"VERDICT: (\w+)", text) for text in texts] == [["SUCCESS"], ["SUCCESS"]], texts
    with Connection.connect(run_dir / "control") as connection:
        sysctl.debug_keys(connection, "k")
        assert "all references are explained" in sysctl.readconsole(connection)

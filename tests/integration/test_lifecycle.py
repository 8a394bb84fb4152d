"""A dead domain gives back everything: 50 domains are created and destroyed in turn, and the counts compared."""

import re
import time
from pathlib import Path

import pytest

from support import guests
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.timeout(300)]

NR_DOMAINS = 50


def resources(ring3: Ring3) -> dict[str, int]:
    """Returns what must not grow: free frames, ports, and the hypervisor's threads and descriptors."""
    done = ring3("info")
    assert done.exit_code == 0, done.describe()
    counts = {
        key.strip(): int(value)
        for key, value in re.findall(
            r"^\s*([A-Za-z0-9 _-]*(?:free|port|thread)[A-Za-z _-]*?)\s*:\s*(\d+)", done.stdout, re.M
        )
    }
    pid = int((Path(ring3.environment["RING3_RUN_DIR"]) / "ring3d.pid").read_text().split()[0])
    counts["os threads"] = len(list(Path(f"/proc/{pid}/task").iterdir()))
    counts["descriptors"] = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return counts


def test_fifty_domains_leave_nothing_behind(ring3: Ring3, tmp_path: Path) -> None:
    image = guests.build("endless", tmp_path)
    assert ring3("up", "--memory", "128").exit_code == 0
    create = ("create", "--kernel", str(image), "--memory", "16", "--name")

    def once(number: int) -> None:
        name = f"domain-{number}"
        done = ring3(*create, name)
        assert done.exit_code == 0, done.describe()
        done = ring3("destroy", name)
        assert done.exit_code == 0, done.describe()

    once(0)  # what is allocated once and kept is there after the first
    before = resources(ring3)
    for number in range(1, NR_DOMAINS + 1):
        once(number)
    # The thread that served the last command may still be on its way out.
    for _attempt in range(20):
        if (after := resources(ring3)) == before:
            break
        time.sleep(0.25)
    assert after == before
    assert not list((Path(ring3.environment["RING3_RUN_DIR"]) / "console").glob("*.sock"))
    assert ring3("down").exit_code == 0

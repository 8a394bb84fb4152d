"""vCPUs that race for the same frames, while domain 0 stops them again and again and has every reference explained."""

import time
from pathlib import Path

import pytest

from ring3.libs import sysctl
from ring3.libs.connection import Connection
from support import guests
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]

NAME = "hostile/races"
NR_ROUNDS = 60_000


@pytest.mark.parametrize("nr_vcpus", [2, 4])
def test_every_reference_is_explained_at_any_moment(ring3: Ring3, tmp_path: Path, nr_vcpus: int) -> None:
    image = guests.build(NAME, tmp_path)
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    assert ring3("up", "--memory", "64").exit_code == 0
    sizes = ("--memory", "16", "--vcpus", str(nr_vcpus), "--cmdline", f"rounds={NR_ROUNDS}")
    created = ring3("create", "--kernel", image, *sizes, "--name", "races")
    assert created.exit_code == 0, created.describe()
    end = time.monotonic() + guests.load(NAME).timeout_s
    nr_audits = 0
    with Connection.connect(run_dir / "control") as conn:
        while any(domain.domid != 0 and not domain.is_shutdown for domain in sysctl.getdomaininfolist(conn)):
            assert time.monotonic() < end, "the guest does not come to its end"
            sysctl.debug_keys(conn, "k")
            nr_audits += 1
            time.sleep(0.01)
        sysctl.debug_keys(conn, "k")
        said = [line for line in sysctl.readconsole(conn).splitlines() if "audit:" in line]
    assert nr_audits > 3
    assert said, "the audits say nothing"
    assert all("all references" in line for line in said), said
    logs = "".join(path.read_text(errors="replace") for path in (run_dir / "console").glob("*.log"))
    assert "VERDICT: SUCCESS" in logs, logs

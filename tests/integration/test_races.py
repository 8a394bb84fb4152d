"""vCPUs that race for the same frames, while domain 0 stops them again and again and has every reference explained."""

import time
from pathlib import Path

import pytest

from ring3.libs import sysctl
from ring3.libs.connection import Connection
from support import guests
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.timeout(180)]


@pytest.mark.parametrize(
    ("name", "nr_vcpus", "nr_pcpus", "nr_rounds"),
    [("hostile/races", 2, 2, 60_000), ("hostile/races", 4, 2, 60_000), ("smp_pins", 4, 1, 1000)],
)
def test_every_reference_is_explained_at_any_moment(
    ring3: Ring3, tmp_path: Path, name: str, nr_vcpus: int, nr_pcpus: int, nr_rounds: int
) -> None:
    """With one pCPU, calls of one vCPU stop half way for the next one all the time."""
    image = guests.build(name, tmp_path)
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    assert ring3("up", "--memory", "64", "--pcpus", str(nr_pcpus)).exit_code == 0
    sizes = ("--memory", "16", "--vcpus", str(nr_vcpus), "--cmdline", f"rounds={nr_rounds}")
    created = ring3("create", "--kernel", image, *sizes, "--name", "races")
    assert created.exit_code == 0, created.describe()
    end = time.monotonic() + 2 * guests.load(name).timeout_s
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

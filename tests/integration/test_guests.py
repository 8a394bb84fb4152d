"""Boots each small guest of tests/guests and compares its end with what its opening comment expects."""

import re
from pathlib import Path

import pytest

from support import guests
from support.command import Ring3

pytestmark = pytest.mark.guest


@pytest.mark.parametrize(
    ("mode", "text"), [("always_emulate", "TSC mode 1, emulated"), ("native", "TSC mode 2, native")]
)
@pytest.mark.parametrize("name", ["tsc", "clock"])
def test_tsc_modes(name: str, mode: str, text: str, ring3: Ring3, tmp_path: Path) -> None:
    image = guests.build(name, tmp_path)
    done = ring3("run", "--kernel", image, "--memory", "16", "--tsc-mode", mode, timeout_s=60)
    assert "VERDICT: SUCCESS" in done.stdout, done.describe()
    assert name != "tsc" or text in done.stdout, done.describe()


@pytest.mark.parametrize("name", guests.names())
def test_guest(name: str, ring3: Ring3, tmp_path: Path) -> None:
    guest = guests.load(name)
    image = guests.build(name, tmp_path)
    sizes = ("--memory", str(guest.memory_mib), "--vcpus", str(guest.nr_vcpus))
    done = ring3("run", "--kernel", image, *sizes, "--name", name.replace("/", "-"), timeout_s=guest.timeout_s)
    assert done.exit_code == guest.expect_exit, done.describe()
    if guest.expect_stderr is not None:
        assert guest.expect_stderr in done.stderr.lower(), done.describe()
    if guest.expect_exit != 0:
        return
    verdict = re.search(r"^VERDICT: (\w+)", done.stdout, re.MULTILINE)
    assert verdict is not None, done.describe()
    if verdict.group(1) == "SKIP":
        pytest.skip(done.stdout)
    assert verdict.group(1) == "SUCCESS", done.describe()

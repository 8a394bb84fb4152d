"""A few seconds of `make fuzz-hypercalls`."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

DRIVER = Path(__file__).parent.parent / "support" / "fuzz_hypercalls.py"


def test_random_hypercalls_of_two_domains_are_survived() -> None:
    command = [sys.executable, str(DRIVER), "--seconds", "12", "--seed", "7"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "clean after" in done.stdout

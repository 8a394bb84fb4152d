"""`make demo` without a terminal: both guests boot and run a command, domain 0 is listed, and it ends with 0."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]


def test_demo_boots_two_domains_and_ends(cloud_kernel: Path, busybox_image: Path) -> None:
    environment = {**os.environ, "RING3_GUEST_CACHE": str(busybox_image.parent), "RING3_KERNEL": str(cloud_kernel)}
    command = [sys.executable, "-m", "ring3.dev", "demo"]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240
    )
    text = f"exit {done.returncode}\n{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    assert done.returncode == 0, text
    for name in ("alpha", "beta"):
        assert re.search(rf"^{name}\s+\| {name} runs Linux \S+ and says 42", done.stdout, re.MULTILINE), text
        assert re.search(rf"{name} was at its shell \d+\.\d+ s", done.stdout), text
    assert "Domain-0" in done.stdout, text

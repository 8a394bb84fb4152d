"""What a kernel's first start translated is there at its second, though ring3d has given the file system up by then."""

import re
from pathlib import Path

import pytest

from support.command import Ring3, read_until

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(180)]


def nr_woken(ring3: Ring3, kernel: Path, ramdisk: Path) -> int:
    """Starts the kernel and ends it at its shell; returns how many of its blocks came out of the archive."""
    sizes = ("--memory", "256", "--cmdline", "console=hvc0 quiet")
    with ring3.start("run", "--kernel", str(kernel), "--ramdisk", str(ramdisk), *sizes) as process:
        assert process.stdout is not None
        assert b"SHELL-READY" in read_until(process.stdout.fileno(), b"SHELL-READY", 1, 60)
        inner = Ring3(Path(ring3.environment["RING3_RUN_DIR"]) / f"run-{process.pid}")
        inner("debug-keys", "p")
        found = re.search(r"blocks woken: (\d+)", inner("dmesg").stdout)
        process.terminate()
    assert found is not None
    return int(found[1])


def test_the_second_start_finds_them(ring3: Ring3, cloud_kernel: Path, busybox_image: Path, tmp_path: Path) -> None:
    ring3.environment["RING3_TRANSLATIONS"] = str(tmp_path / "translations")
    assert nr_woken(ring3, cloud_kernel, busybox_image) == 0
    assert nr_woken(ring3, cloud_kernel, busybox_image) > 20_000

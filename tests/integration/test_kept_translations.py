"""What a kernel's first start translated is there at its second, though ring3d has given the file system up by then."""

import re
from pathlib import Path

import pytest

from support.command import Ring3, at_shell

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(180)]


def nr_woken(ring3: Ring3, kernel: Path, ramdisk: Path) -> int:
    """Starts the kernel and ends it at its shell; returns how many of its blocks came out of the archive."""
    with at_shell(ring3, kernel, ramdisk) as inner:
        inner("debug-keys", "p")
        found = re.search(r"blocks woken: (\d+)", inner("dmesg").stdout)
    assert found is not None
    return int(found[1])


def test_the_second_start_finds_them(ring3: Ring3, cloud_kernel: Path, busybox_image: Path, tmp_path: Path) -> None:
    ring3.environment["RING3_TRANSLATIONS"] = str(tmp_path / "translations")
    assert nr_woken(ring3, cloud_kernel, busybox_image) == 0
    assert nr_woken(ring3, cloud_kernel, busybox_image) > 20_000

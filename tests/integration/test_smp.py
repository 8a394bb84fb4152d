"""Stock kernels with several vCPUs, more than the host has cores too."""

import re
from pathlib import Path

import pytest

from ring3.dev import initramfs, stress
from ring3.dev.initramfs import MARKER
from support.command import Ring3, ring3_path

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(400)]


@pytest.mark.parametrize("nr_vcpus", [8, 32])
def test_more_vcpus_than_cores(ring3: Ring3, cloud_kernel: Path, busybox_image: Path, nr_vcpus: int) -> None:
    command = ("run", "--kernel", cloud_kernel, "--ramdisk", busybox_image, "--vcpus", str(nr_vcpus))
    words = "console=hvc0 ring3.run=/proc/version"
    done = ring3(*command, "--cmdline", words, timeout_s=120)
    assert done.exit_code == 0, done.describe()
    assert MARKER in done.stdout, done.describe()
    brought_up = re.search(r"smp: Brought up 1 node, (\d+) CPUs?", done.stdout)
    assert brought_up is not None, done.describe()
    assert int(brought_up.group(1)) == nr_vcpus, done.describe()


@pytest.mark.parametrize("nr_vcpus", [2, 4])
def test_stress_for_a_moment(nr_vcpus: int, guest_cache: Path) -> None:
    """Three seconds of each class; `make stress` runs ten minutes."""
    command = ring3_path()
    assert command is not None
    try:
        stress.image(guest_cache)
    except initramfs.ArtefactError as error:
        pytest.skip(str(error))
    result = stress.run(Path(command), guest_cache, nr_vcpus=nr_vcpus, seconds=3 * len(stress.CLASSES))
    assert not result.trouble, f"{result.trouble}\n{result.log[-6000:]}"

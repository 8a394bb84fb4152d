"""User code that runs directly gives what the CPU gives, whatever changes under it."""

from pathlib import Path

import pytest

from ring3.dev import initramfs
from ring3.dev.initramfs import ArtefactError
from support import images
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(400)]

_SOURCE = Path(images.__file__).parent / "c" / "direct.c"


@pytest.mark.parametrize("nr_vcpus", [1, 2])
def test_computing_phases(ring3: Ring3, cloud_kernel: Path, tmp_path: Path, nr_vcpus: int) -> None:
    try:
        program = images.compile_static(_SOURCE, tmp_path / "direct", "-O2", "-pthread")
        files = {"test/script": b"/test/direct\n", "test/direct": program.read_bytes()}
        ramdisk = initramfs.build(tmp_path, "direct", files)
    except ArtefactError as error:
        pytest.skip(str(error))
    done = ring3(
        *("run", "--kernel", str(cloud_kernel), "--ramdisk", str(ramdisk), "--memory", "256"),
        *("--vcpus", str(nr_vcpus), "--cmdline", "console=hvc0 quiet ring3.run=/test/script"),
        timeout_s=360,
    )
    assert done.exit_code == 0, done.describe()
    assert "DIRECT-OK" in done.stdout, done.describe()

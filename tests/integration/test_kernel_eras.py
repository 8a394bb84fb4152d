"""Stock kernels of other suites of Debian's, the oldest that is supported to the newest: `docs/guests.md` lists them.

Each is downloaded with apt lists of its own, which takes minutes: RING3_SLOW_TESTS=1 runs it.
"""

import re
from pathlib import Path

import pytest

from ring3.dev import initramfs, kernel, modules
from ring3.dev.initramfs import MARKER, ArtefactError
from support import disks, images
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.slow, pytest.mark.timeout(900)]

_ERAS = (
    *(("bullseye", "cloud"), ("bullseye", "main"), ("bookworm", "rt")),
    *(("trixie", "cloud"), ("trixie", "rt"), ("sid", "cloud"), ("sid", "main")),
)
_MODULES = ("xen_blkfront", "xen_netfront")
_SCRIPT = """\
sh /test/exercise-script || exit 1
for i in $(seq 100); do [ -e /dev/xvda ] && break; sleep 0.1; done
dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null
dd if=/tmp/data of=/dev/xvda bs=1M conv=fsync 2>/dev/null
echo 3 > /proc/sys/vm/drop_caches
dd if=/dev/xvda bs=1M count=8 2>/dev/null | cmp - /tmp/data && echo DISK-OK
ip link set eth0 up; ip link set eth1 up; ip addr add 10.0.0.1/24 dev eth0; sleep 0.5
arping -D -c 3 -I eth1 10.0.0.1 | grep "Received [1-9]" && echo NETWORK-OK
"""


@pytest.mark.parametrize(("suite", "flavour"), _ERAS)
def test_kernel_of_another_era(ring3: Ring3, guest_cache: Path, tmp_path: Path, suite: str, flavour: str) -> None:
    """Two vCPUs, programs, a disk and a network; the log is free of complaints."""
    try:
        image = kernel.fetch(guest_cache, flavour, suite)
        files = modules.files(guest_cache, image, _MODULES, suite)
    except ArtefactError as error:
        pytest.skip(str(error))
    program = images.compile_static(images.EXERCISE, tmp_path / "exercise", "-pthread")
    files |= {"test/script": _SCRIPT.encode(), "test/exercise-script": images.SCRIPT.encode()}
    ramdisk = initramfs.build(guest_cache, "eras", {**files, "test/exercise": program.read_bytes()})
    disk = disks.image(tmp_path / "disk.img", 16)
    done = ring3(
        *("run", "--kernel", image, "--ramdisk", ramdisk, "--memory", "384", "--vcpus", "2"),
        *("--cmdline", "console=hvc0 ring3.run=/test/script", "--disk", f"{disk},raw,xvda,rw"),
        *("--vif", "network=switch,switch=eras", "--vif", "network=switch,switch=eras"),
        timeout_s=300,
    )
    assert done.exit_code == 0, done.describe()
    for text in (MARKER, "SCRIPT-OK", "DISK-OK", "NETWORK-OK", "ended with 0"):
        assert text in done.stdout, f"no {text}: {done.describe()}"
    trouble = re.compile(r"WARNING: CPU|BUG:|Oops|Call Trace|general protection|rcu.*stall|soft lockup", re.IGNORECASE)
    assert not trouble.search(done.stdout), done.describe()

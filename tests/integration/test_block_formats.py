"""A qcow2 image, by QEMU's storage daemon: used, locked, and no write lost when daemon and block service are killed."""

import os
import shutil
import struct
from pathlib import Path

import pytest

from ring3.tools.services import Services
from support import disks
from support.command import Ring3
from support.disks import Guest

pytestmark = [
    pytest.mark.guest,
    pytest.mark.stock,
    pytest.mark.timeout(300),
    pytest.mark.skipif(shutil.which("qemu-storage-daemon") is None, reason="no qemu-storage-daemon here"),
]

_CLUSTER = 1 << 16


def qcow2(path: Path, nr_mib: int) -> Path:
    """Returns a new, empty image. Source: QEMU, docs/interop/qcow2.txt: header, refcount table and block, L1 table."""
    header = struct.pack(
        ">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, 0, 0, 16, nr_mib << 20, 0, 1, 3 * _CLUSTER, _CLUSTER, 1, 0, 0
    )
    clusters = [header, struct.pack(">Q", 2 * _CLUSTER), struct.pack(">4H", 1, 1, 1, 1), b""]
    path.write_bytes(b"".join(cluster.ljust(_CLUSTER, b"\0") for cluster in clusters))
    return path


def test_qcow2(ring3: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path) -> None:
    ramdisk = disks.ramdisk(guest_cache, cloud_kernel)
    assert ring3("up", "--memory", "512").exit_code == 0
    image = qcow2(tmp_path / "disk.qcow2", 64)
    spec = f"{image},qcow2,xvda,rw"
    guest = Guest(ring3, cloud_kernel, ramdisk, spec)
    busy = ring3("create", "--kernel", cloud_kernel, "--memory", "80", "--name", "other", "--disk", spec)
    assert (busy.exit_code, "is busy" in busy.stderr) == (1, True), busy.describe()
    assert guest.ok("cat /sys/block/xvda/size").strip() == str(64 << 11)
    guest.ok("/sbin/mke2fs -q -t ext4 /dev/xvda && mkdir /mnt && mount /dev/xvda /mnt")
    with Services(guest.run_dir / "dom0") as services:
        for number in range(6):
            guest.send(f"dd if=/dev/urandom of=/mnt/f{number} bs=16k count=64 2>/dev/null; md5sum /mnt/f{number}")
            os.kill(services.pid("block" if number % 3 == 2 else f"vbd/{guest.domid}/51712"), 9)
            assert guest.wait()[0] == 0
        sums = guest.ok("sync; echo 3 > /proc/sys/vm/drop_caches; md5sum /mnt/f*")
        assert len(sums.splitlines()) == 6
        guest.ok("umount /mnt; /sbin/e2fsck -f -n /dev/xvda")
        pid = services.pid(f"vbd/{guest.domid}/51712")
    assert ring3("destroy", "guest").exit_code == 0
    guest.close()
    assert not Path("/proc", str(pid)).exists(), "the daemon ends with the disk"
    heir = Guest(ring3, cloud_kernel, ramdisk, f"{image},qcow2,xvda,ro")
    heir.ok("mkdir /mnt; mount -o ro /dev/xvda /mnt")
    assert heir.ok("md5sum /mnt/f*") == sums
    heir.close()


def test_broken_image_is_refused(ring3: Ring3, cloud_kernel: Path, tmp_path: Path) -> None:
    assert ring3("up", "--memory", "128").exit_code == 0
    image = tmp_path / "broken"
    image.write_bytes(b"no qcow2" * 1000)
    done = ring3("create", "--kernel", cloud_kernel, "--memory", "80", "--disk", f"{image},qcow2,xvda,rw")
    assert (done.exit_code, "Image is not in qcow2 format" in done.stderr) == (1, True), done.describe()
    assert f"xvda: {image}" in done.stderr

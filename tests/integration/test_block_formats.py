"""A qcow2 image, by QEMU's storage daemon: used, locked, and no write lost when daemon and block service are killed."""

import os
import shutil
import struct
import subprocess
from collections.abc import Callable
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
_BASE_FORMAT = 0xE2792ACA


def qcow2(path: Path, nr_bytes: int, base: str = "", base_format: str = "raw") -> Path:
    """Returns a new, empty image. Source: QEMU, docs/interop/qcow2.txt: header, refcount table and block, L1 table."""
    place = 1024 if base else 0
    header = struct.pack(
        *(">4sIQIIQIIQQIIQ", b"QFI\xfb", 2, place, len(base), 16, nr_bytes, 0, 1, 3 * _CLUSTER, _CLUSTER, 1, 0, 0)
    )
    if base:
        header += struct.pack(">II", _BASE_FORMAT, len(base_format)) + base_format.encode()
        header = header.ljust(place, b"\0") + base.encode()
    clusters = [header, struct.pack(">Q", 2 * _CLUSTER), struct.pack(">4H", 1, 1, 1, 1), b""]
    path.write_bytes(b"".join(cluster.ljust(_CLUSTER, b"\0") for cluster in clusters))
    return path


def test_qcow2(ring3: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path) -> None:
    ramdisk = disks.ramdisk(guest_cache, cloud_kernel)
    assert ring3("up", "--memory", "512").exit_code == 0
    image = qcow2(tmp_path / "disk.qcow2", 64 << 20)
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


def test_qcow2_in_a_block_device(ring3: Ring3, cloud_kernel: Path, tmp_path: Path) -> None:
    image = qcow2(tmp_path / "disk.qcow2", 64 << 20)
    os.truncate(image, 8 << 20)
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no loop devices: {done.stderr.strip()}")
    try:
        assert ring3("up", "--memory", "320").exit_code == 0
        disk = f"{done.stdout.strip()},qcow2,xvda,rw"
        created = ring3("create", "--kernel", cloud_kernel, "--memory", "80", "--disk", disk)
        assert created.exit_code == 0, created.describe()
        assert ring3("down").exit_code == 0
    finally:
        subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"no qcow2" * 1000), "{image}: Image is not in qcow2 format"),
        (lambda path: qcow2(path, 1 << 63), "{image}: Image is too big"),
        (lambda path: qcow2(path, 1 << 50), "{image}: L1 table is too small"),
        (lambda path: qcow2(path, 0), "{image}: smaller than one sector"),
        (lambda path: qcow2(path, 1 << 20, "/not/there"), "{image}: Could not open backing file: "),
        (lambda path: qcow2(path, 1 << 20, path.name, "qcow2"), "{image}: Could not open backing file: "),
        (lambda _path: None, "{image}: Could not open '{image}': No such file or directory"),
    ],
)
def test_broken_image_is_refused(
    ring3: Ring3, cloud_kernel: Path, tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    assert ring3("up", "--memory", "128").exit_code == 0
    image = tmp_path / "broken"
    make(image)
    done = ring3("create", "--kernel", cloud_kernel, "--memory", "80", "--disk", f"{image},qcow2,xvda,rw")
    assert (done.exit_code, "xvda: " + message.format(image=image) in done.stderr) == (1, True), done.describe()
    assert len(ring3("list").stdout.splitlines()) == 2, "nothing is left of the domain"


def test_image_that_promises_more_than_its_base_has(
    ring3: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path
) -> None:
    assert ring3("up", "--memory", "320").exit_code == 0
    base = tmp_path / "base"
    base.write_bytes(b"\x55" * (2 << 20))
    image = qcow2(tmp_path / "disk.qcow2", 8 << 20, str(base))
    guest = Guest(ring3, cloud_kernel, disks.ramdisk(guest_cache, cloud_kernel), f"{image},qcow2,xvda,rw")
    guest.ok("[ $(cat /sys/block/xvda/size) = 16384 ]")
    guest.ok("[ $(head -c 4194304 /dev/xvda | tr -d '\\000' | wc -c) = 2097152 ]")
    guest.ok("dd if=/dev/urandom of=/dev/xvda bs=64k count=64 conv=fsync 2>/dev/null")
    assert base.read_bytes() == b"\x55" * (2 << 20), "the base is not written"
    guest.close()

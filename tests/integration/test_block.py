"""Disks with Linux's own front end: file systems, live attach and detach, resize, and what cannot be served."""

import hashlib
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ring3.libs.xenstore import XenstoreClient
from support import disks
from support.command import Ring3
from support.disks import Guest

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]


@pytest.fixture(scope="session")
def ramdisk(guest_cache: Path, cloud_kernel: Path) -> Path:
    return disks.ramdisk(guest_cache, cloud_kernel)


@pytest.fixture
def machine(ring3: Ring3) -> Iterator[Ring3]:
    assert ring3("up", "--memory", "512").exit_code == 0
    yield ring3


def test_disks_from_attach_to_detach(machine: Ring3, cloud_kernel: Path, ramdisk: Path, tmp_path: Path) -> None:
    first, second = disks.image(tmp_path / "first.img", 64), disks.image(tmp_path / "second.img", 32)
    content = os.urandom(1 << 20)
    second.write_bytes(content.ljust(32 << 20, b"\0"))
    guest = Guest(
        machine, cloud_kernel, ramdisk, f"{first},raw,xvda,rw", f"vdev=xvdb,access=ro,target={second}", vcpus=2
    )
    front = f"/local/domain/{guest.domid}/device/vbd/51712"
    back = f"/local/domain/0/backend/vbd/{guest.domid}/51712"
    with XenstoreClient.connect(guest.run_dir / "xenstore") as xenstore:
        assert xenstore.read_text(f"{front}/backend") == back
        assert xenstore.read_text(f"{back}/frontend") == front
        assert xenstore.read_text(f"{back}/sectors") == str(64 << 11)
        assert xenstore.read_text(f"{back}/state") == xenstore.read_text(f"{front}/state") == "4"
        assert xenstore.read_text(f"{back}/hotplug-status") == "connected"
        assert xenstore.read_text(f"{front}/multi-queue-num-queues") == "2"

        # A file system, made, filled, read back past the cache, and checked by both sides.
        guest.ok("/sbin/mke2fs -q -t ext4 /dev/xvda && mkdir -p /mnt && mount -o discard /dev/xvda /mnt")
        guest.ok("dd if=/dev/urandom of=/mnt/file bs=64k count=300 conv=fsync 2>/dev/null")
        want = guest.ok("md5sum < /mnt/file")
        guest.ok("echo 3 > /proc/sys/vm/drop_caches")
        assert guest.ok("md5sum < /mnt/file") == want
        allocated = first.stat().st_blocks
        guest.ok("rm /mnt/file; sync; fstrim /mnt; sync")
        assert first.stat().st_blocks < allocated - 20000, "discarded blocks are given back"
        guest.ok("umount /mnt; /sbin/e2fsck -f -n /dev/xvda")
        disks.fsck(first)

        # Read-only.
        assert hashlib.sha256(content).hexdigest() in guest.ok(
            "dd if=/dev/xvdb bs=64k count=16 2>/dev/null | sha256sum"
        )
        assert guest("dd if=/dev/zero of=/dev/xvdb bs=4k count=1 conv=fsync")[0] != 0
        assert second.read_bytes().startswith(content)

        # A size that changes, a CD, one disk more, and away again.
        os.truncate(first, 80 << 20)
        guest.ok(
            "for i in $(seq 100); do [ $(cat /sys/block/xvda/size) = 163840 ] && break; sleep 0.1; done; [ $i != 100 ]"
        )
        third = disks.image(tmp_path / "third.img", 16)
        done = machine("block-attach", "guest", f"{third},raw,xvdc,r", "cdrom")
        assert done.exit_code == 0, done.describe()
        guest.ok(
            "for i in $(seq 100); do [ -e /dev/xvdc ] && break; sleep 0.1; done; dd if=/dev/xvdc of=/dev/null bs=1M"
        )
        listed = machine("block-list", "guest").stdout.splitlines()
        assert listed[0] == "Vdev  BE  handle state evt-ch ring-ref BE-path                       "
        assert [line.split()[:4] for line in listed[1:]] == [
            [number, "0", str(guest.domid), "4"] for number in ("51712", "51728", "51744")
        ]
        again = machine("block-attach", "guest", f"{third},raw,xvdc,r")
        assert (again.exit_code, "xvdc: the domain has such a device already" in again.stderr) == (1, True)
        none = machine("block-detach", "guest", "xvdz")
        assert (none.exit_code, "xvdz: the domain has no such device" in none.stderr) == (1, True)
        assert machine("block-detach", "guest", "xvdc").exit_code == 0
        guest.ok("[ ! -e /dev/xvdc ]")
        assert xenstore.read_optional(f"/local/domain/0/backend/vbd/{guest.domid}/51744") is None
        guest.ok("mount /dev/xvda /mnt")
        assert machine("destroy", "guest").exit_code == 0
        assert xenstore.read_optional(f"/libxl/{guest.domid}") is None
        assert xenstore.read_optional(f"/local/domain/0/backend/vbd/{guest.domid}") is None
    guest.close()
    # The image is free at once.
    again_guest = Guest(machine, cloud_kernel, ramdisk, f"{first},raw,xvda,rw")
    again_guest.ok("/sbin/e2fsck -f -p /dev/xvda >/dev/null; [ $? -le 1 ]")
    again_guest.close()


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A file of 16 MiB, and a block device of it."""
    file = disks.image(tmp_path / "loop.img", 16)
    done = subprocess.run(["losetup", "--find", "--show", file], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no loop devices: {done.stderr.strip()}")
    yield file, done.stdout.strip()
    subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


@pytest.mark.parametrize("flags", ["", ",direct-io-safe"])
def test_block_device_that_grows(
    machine: Ring3, cloud_kernel: Path, ramdisk: Path, loop: tuple[Path, str], flags: str
) -> None:
    file, device = loop
    guest = Guest(machine, cloud_kernel, ramdisk, f"phy:{device},xvda,w{flags}")
    os.truncate(file, 32 << 20)
    subprocess.run(["losetup", "--set-capacity", device], check=True)
    guest.ok("for i in $(seq 100); do [ $(cat /sys/block/xvda/size) = 65536 ] && break; sleep 0.1; done; [ $i != 100 ]")
    guest.ok("printf at-the-end | dd of=/dev/xvda bs=512 seek=65535 conv=fsync,sync 2>/dev/null")
    assert file.read_bytes()[-512:].rstrip(b"\0") == b"at-the-end"
    assert machine("destroy", "guest").exit_code == 0
    guest.close()


def test_drive_without_a_medium_keeps_no_start_waiting(machine: Ring3, cloud_kernel: Path, ramdisk: Path) -> None:
    """A kernel waits up to five minutes for disks that do not connect."""
    guest = Guest(machine, cloud_kernel, ramdisk, ",hdc:cdrom,r")
    assert "5632 0 1 4" in " ".join(machine("block-list", "guest").stdout.split())
    assert guest.ok("cd /sys/block/xvd*; cat size ro removable").split() == ["0", "1", "1"]
    guest.ok('! dd if=/dev/xvdc of=/dev/null count=1 2>/dev/null || [ -z "$(head -c 1 /dev/xvdc)" ]')
    assert machine("block-detach", "guest", "hdc").exit_code == 0
    guest.ok("[ ! -e /sys/block/xvdc ]")
    guest.close()


def test_sectors_of_a_block_device_are_the_guests(
    machine: Ring3, cloud_kernel: Path, ramdisk: Path, tmp_path: Path
) -> None:
    """Who counted a partition table in sectors of 4096 bytes on the host finds it in the guest."""
    file = disks.image(tmp_path / "loop.img", 16)
    attach = ["losetup", "--find", "--show", "--sector-size", "4096", file]
    done = subprocess.run(attach, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no loop devices: {done.stderr.strip()}")
    try:
        guest = Guest(machine, cloud_kernel, ramdisk, f"phy:{done.stdout.strip()},xvda,w")
        assert guest.ok("cd /sys/block/xvda; cat queue/logical_block_size size").split() == ["4096", "32768"]
        guest.ok("printf here | dd of=/dev/xvda bs=4096 seek=4095 conv=fsync,sync 2>/dev/null")
        guest.ok("dd if=/dev/xvda of=/dev/null bs=4096 count=8 skip=4088 iflag=direct 2>/dev/null")
        assert file.read_bytes()[-4096:].rstrip(b"\0") == b"here"
        assert machine("destroy", "guest").exit_code == 0
        guest.close()
    finally:
        subprocess.run(["losetup", "--detach", done.stdout.strip()], check=True)


def test_host_errors_reach_the_guest_as_errors(
    machine: Ring3, cloud_kernel: Path, ramdisk: Path, tmp_path: Path
) -> None:
    shrunk = disks.image(tmp_path / "shrunk.img", 16)
    guest = Guest(machine, cloud_kernel, ramdisk, f"{shrunk},raw,xvda,rw")
    os.truncate(shrunk, 8 << 20)
    # On a busy host the guest may have been told of the new size before it reads: then there is nothing to read.
    guest.ok("! dd if=/dev/xvda of=/dev/null bs=1M skip=12 || [ $(cat /sys/block/xvda/size) = 16384 ]")
    guest.ok("dd if=/dev/xvda of=/dev/null bs=1M count=4")
    guest.close()


def test_direct_image_leaves_the_page_cache_alone(
    machine: Ring3, cloud_kernel: Path, ramdisk: Path, tmp_path: Path
) -> None:
    image = disks.image(tmp_path / "direct.img", 16)
    try:
        os.close(os.open(image, os.O_RDWR | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    guest = Guest(machine, cloud_kernel, ramdisk, f"{image},raw,xvda,rw,direct-io-safe")
    guest.ok(
        "dd if=/dev/urandom of=/dev/xvda bs=64k count=64 conv=fsync 2>/dev/null; echo 3 > /proc/sys/vm/drop_caches"
    )
    want = guest.ok("dd if=/dev/xvda bs=1M count=4 iflag=direct 2>/dev/null | sha256sum").split()[0]
    assert disks.nr_cached_pages(image) == 0
    assert hashlib.sha256(image.read_bytes()[: 4 << 20]).hexdigest() == want
    guest.close()


@pytest.mark.parametrize(
    ("make", "spec", "message"),
    [
        (lambda _path: None, "{path},raw,xvda,rw", "xvda: {path}: No such file"),
        (Path.mkdir, "{path},raw,xvda,rw", "xvda: {path}: Is a directory"),
        (lambda path: path.write_bytes(b"x"), "{path},raw,xvda,rw", "xvda: {path} is smaller than one sector"),
        (os.mkfifo, "{path},raw,xvda,r", "xvda: {path} is neither a file nor a block device"),
        (lambda path: disks.image(path, 1), "{path},raw,xvda,rw,extra", "one word too many"),
    ],
)
def test_images_that_cannot_be_used(
    machine: Ring3, cloud_kernel: Path, tmp_path: Path, make: Callable[[Path], object], spec: str, message: str
) -> None:
    path = tmp_path / "image"
    make(path)
    done = machine("create", "--kernel", cloud_kernel, "--memory", "80", "--disk", spec.format(path=path))
    assert done.exit_code == 1
    assert message.format(path=path) in done.stderr
    assert len(machine("list").stdout.splitlines()) == 2, "nothing is left of the domain"


def test_busy_images_are_refused(machine: Ring3, cloud_kernel: Path, tmp_path: Path) -> None:
    path = disks.image(tmp_path / "image", 4)
    create = ("create", "--kernel", cloud_kernel, "--memory", "80")
    assert machine(*create, "--name", "one", "--disk", f"{path},raw,xvda,rw").exit_code == 0
    for access in ("rw", "r"):
        done = machine(*create, "--name", "two", "--disk", f"{path},raw,xvda,{access}")
        assert (done.exit_code, f"xvda: {path} is busy" in done.stderr) == (1, True)
    assert machine("destroy", "one").exit_code == 0
    for name in ("three", "four"):
        assert machine(*create, "--name", name, "--disk", f"{path},raw,xvda,r").exit_code == 0
    done = machine(*create, "--name", "five", "--disk", f"{path},raw,xvda,rw")
    assert (done.exit_code, "is busy" in done.stderr) == (1, True)

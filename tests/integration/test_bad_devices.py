"""Bad input to devices (issue 5): a host that cannot, and front ends that write nonsense; messages name the device."""

import itertools
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.libs.device import Device
from ring3.libs.xenstore import XenstoreClient
from support import disks, guests
from support.command import Ring3
from support.disks import Guest

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]

_NONSENSE = ("", "-1", "x", "0", "4294967295", "4294967296", "9" * 300, "\u0661", "7\n8", "\0")
_KEYS = {
    "vfb": ("page-ref", "event-channel", "protocol"),
    "vkbd": ("page-gref", "page-ref", "event-channel", "request-abs-pointer"),
    "9pfs": ("num-rings", "ring-ref0", "event-channel-0", "version"),
    "console": ("ring-ref", "port"),
}
_SERVICES = {"vfb": "displayd", "vkbd": "displayd", "9pfs": "9pfsd", "console": "consoled"}


@pytest.fixture
def machine(ring3: Ring3) -> Iterator[Ring3]:
    assert ring3("up", "--memory", "320").exit_code == 0
    yield ring3


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that a mount namespace of its own can mount on."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode != 0:
        pytest.skip("mounts need root")
    made = tmp_path / "mount"
    made.mkdir()
    return made


def apart(ring3: Ring3, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs a command of ring3 where it alone sees what the script mounts."""
    command = ["unshare", "--mount", "sh", "-ec", f'{script}; exec "$@"', "sh", ring3.path, *words]
    return subprocess.run(command, env=ring3.environment, capture_output=True, text=True, timeout=60)


def test_read_only_image_is_refused_for_writing(machine: Ring3, cloud_kernel: Path, place: Path) -> None:
    image = disks.image(place / "image", 4)
    mount = f"mount --bind {place} {place}; mount -o remount,ro,bind {place}"
    create = ("create", "--kernel", str(cloud_kernel), "--memory", "80", "--disk")
    done = apart(machine, mount, *create, f"{image},raw,xvda,rw")
    assert done.returncode == 1
    assert f"xvda: {image}: Read-only file system (access=ro attaches it read-only)" in done.stderr
    assert len(machine("list").stdout.splitlines()) == 2, "nothing is left of the domain"
    assert apart(machine, mount, *create, f"{image},raw,xvda,r").returncode == 0


def test_what_the_host_has_mounted_is_refused(machine: Ring3, cloud_kernel: Path, place: Path, tmp_path: Path) -> None:
    """As by Xen's block scripts; where it is mounted read-only, it may be read."""
    image = disks.image(tmp_path / "image", 8)
    subprocess.run(["/sbin/mke2fs", "-q", image], check=True)
    done = subprocess.run(["losetup", "--find", "--show", image], capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip(f"no loop devices: {done.stderr.strip()}")
    loop = done.stdout.strip()
    create = ("create", "--kernel", str(cloud_kernel), "--memory", "80", "--disk")
    try:
        for options, access in itertools.product(("rw", "ro"), ("w", "r")):
            is_refused = (options, access) != ("ro", "r")
            mount = f"mount -o {options} {loop} {place}"
            for target in (loop, str(image)):
                answer = apart(machine, mount, *create, f"{target},raw,xvda,{access}")
                assert answer.returncode == int(is_refused), answer.stderr
                if is_refused:
                    assert f"xvda: {target} is busy: the host has it mounted on {place}" in answer.stderr
                else:
                    assert machine("destroy", answer.stdout.split()[-1]).exit_code == 0
        alone = os.open(loop, os.O_RDWR | os.O_EXCL)
        assert f"xvda: {loop} is busy: the host uses it" in machine(*create, f"{loop},raw,xvda,w").stderr
        os.close(alone)
        done = machine(*create, f"{loop},raw,xvda,w")
        assert done.exit_code == 0, done.describe()
        with pytest.raises(OSError, match="busy"):
            os.open(loop, os.O_RDWR | os.O_EXCL)
        assert machine("destroy", done.stdout.split()[-1]).exit_code == 0
        os.close(os.open(loop, os.O_RDWR | os.O_EXCL))
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_full_host_is_an_error_of_that_disk_alone(
    machine: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path, place: Path
) -> None:
    whole = disks.image(tmp_path / "whole.img", 16)
    guest = Guest(machine, cloud_kernel, disks.ramdisk(guest_cache, cloud_kernel), f"{whole},raw,xvda,rw")
    mount = f"mount -t tmpfs -o size=6m tmpfs {place}; truncate -s 64M {place}/full"
    done = apart(machine, mount, "block-attach", "guest", f"{place}/full,raw,xvdb,rw")
    assert done.returncode == 0, done.stderr
    guest.ok("for i in $(seq 100); do [ -e /dev/xvdb ] && break; sleep 0.1; done")
    write = "dd if=/dev/urandom of=%s bs=256k count=%d seek=%d oflag=direct 2>/dev/null"
    guest.ok(write % ("/dev/xvdb", 8, 0))
    want = guest.ok("dd if=/dev/xvdb bs=256k count=8 iflag=direct 2>/dev/null | md5sum")
    assert guest(write % ("/dev/xvdb", 40, 8))[0] != 0, "there is no room for it"
    assert guest.ok("dd if=/dev/xvdb bs=256k count=8 iflag=direct 2>/dev/null | md5sum") == want, "nothing is lost"
    guest.ok(write % ("/dev/xvda", 16, 0))
    log = (guest.run_dir / "block.log").read_text()
    assert f"vbd 51728 of domain {guest.domid}" in log.split("No space left on device")[0].splitlines()[-1], log
    assert machine("block-detach", "guest", "xvdb").exit_code == 0
    guest.close()


@pytest.mark.parametrize("kind", _KEYS)
def test_nonsense_of_front_ends_ends_their_device_alone(machine: Ring3, tmp_path: Path, kind: str) -> None:
    """The domain has no front end, so all that its nodes say is written here, in its place."""
    image = guests.build("services", tmp_path)
    share = tmp_path / "share"
    share.mkdir()
    words = {
        "vfb": ("--vfb", "vnc=1"),
        "vkbd": ("--vfb", "vnc=1"),
        "9pfs": ("--p9", f"tag=share,path={share}"),
        "console": ("--channel", "name=extra,connection=pty"),
    }[kind]
    done = machine("create", "--kernel", image, "--memory", "16", "--name", "odd", *words)
    assert done.exit_code == 0, done.describe()
    device = Device(kind, int(done.stdout.split()[-1]), 1 if kind == "console" else 0)
    run_dir = Path(machine.environment["RING3_RUN_DIR"])
    pid = (run_dir / f"{_SERVICES[kind]}.pid").read_text()
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:

        def wait_for_state(*states: str) -> None:
            deadline = time.monotonic() + 30
            while (state := xenstore.read_optional(f"{device.back}/state")) not in states:
                assert time.monotonic() < deadline, (kind, key, value, state, states)
                time.sleep(0.005)

        for key in _KEYS[kind]:
            for value in _NONSENSE:
                xenstore.write(f"{device.front}/state", "1")
                wait_for_state("2")
                for other in _KEYS[kind]:
                    xenstore.write(f"{device.front}/{other}", "1")
                xenstore.write(f"{device.front}/{key}", value)
                for state in ("3", "4"):
                    xenstore.write(f"{device.front}/state", state)
                wait_for_state("5", "6")
        key = "state"
        for value in (*_NONSENSE, "99", "7", "6"):
            xenstore.write(f"{device.front}/state", value)
        wait_for_state("6")
        xenstore.rm(device.front)
    assert (run_dir / f"{_SERVICES[kind]}.pid").read_text() == pid, "the service did not end over it"
    log = (run_dir / f"{_SERVICES[kind]}.log").read_text()
    assert "Traceback" not in log, log[-3000:]
    assert f"of domain {device.domid}" in log or f"domain {device.domid}" in log, "the log names who it was"
    assert machine("destroy", "odd").exit_code == 0

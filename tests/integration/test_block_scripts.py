"""`script=` in a disk's configuration: programs that make what the disk is to be, called as libxl calls them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.libs.device import Device
from ring3.libs.xenstore import XenstoreClient
from support import disks
from support.command import Ring3
from support.disks import Guest

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]
DUMMY = Path("/etc/xen/scripts/block-dummy")

SCRIPT = """#!/bin/sh
exec {python} - "$@" <<'END'
import os, shutil, sys
from pathlib import Path
from ring3.libs.xenstore import XenstoreClient

back = os.environ["XENBUS_PATH"]
with XenstoreClient.connect(os.environ["XENSTORED_PATH"]) as xenstore:
    wanted = Path(xenstore.read(f"{{back}}/params").decode().removeprefix("copy:"))
    copy = wanted.with_suffix(".copy")
    with open(wanted.with_suffix(".log"), "a") as log:
        print(sys.argv[1], os.environ["XENBUS_TYPE"], os.environ["XENBUS_BASE_PATH"], back, file=log)
    if sys.argv[1] == "remove":
        copy.unlink()
    elif not wanted.exists():
        xenstore.write(f"{{back}}/hotplug-error", f"{{wanted}} is not there")
        xenstore.write(f"{{back}}/hotplug-status", "error")
        sys.exit(1)
    else:
        shutil.copy(wanted, copy)
        xenstore.write(f"{{back}}/physical-device-path", str(copy))
        xenstore.write(f"{{back}}/hotplug-status", "connected")
END
"""


@pytest.fixture
def machine(ring3: Ring3) -> Iterator[Ring3]:
    assert ring3("up", "--memory", "320").exit_code == 0
    yield ring3


@pytest.fixture
def script(ring3: Ring3, tmp_path: Path) -> Path:
    """A script that copies the file which its target names."""
    made = tmp_path / "block-copy"
    made.write_text(SCRIPT.format(python=Path(ring3.path).parent / "python"))
    made.chmod(0o755)
    return made


def test_script_makes_the_disk_and_undoes_it(
    machine: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path, script: Path
) -> None:
    image = disks.image(tmp_path / "image.img", 8)
    copy, log = tmp_path / "image.copy", tmp_path / "image.log"
    guest = Guest(
        machine,
        cloud_kernel,
        disks.ramdisk(guest_cache, cloud_kernel),
        f"vdev=xvda,script={script},target=copy:{image}",
    )
    guest.ok("printf here | dd of=/dev/xvda conv=fsync,notrunc 2>/dev/null")
    assert copy.read_bytes()[:4] == b"here"
    assert image.read_bytes()[:4] != b"here"
    back = f"backend/vbd/{guest.domid}/51712"
    assert log.read_text() == f"add vbd backend {back}\n"
    assert machine("block-detach", "guest", "xvda").exit_code == 0
    assert log.read_text() == f"add vbd backend {back}\nremove vbd backend {back}\n"
    assert not copy.exists()

    # Attached to the running guest, the back end killed meanwhile, and gone with the domain.
    done = machine("block-attach", "guest", f"vdev=xvdb,script={script},target=copy:{image}")
    assert done.exit_code == 0, done.describe()
    os.kill(int((guest.run_dir / "block.pid").read_text()), 9)
    guest.ok("for i in $(seq 100); do [ -e /dev/xvdb ] && break; sleep 0.1; done")
    guest.ok("dd if=/dev/xvdb of=/dev/null bs=64k iflag=direct")
    assert copy.exists()
    assert machine("destroy", "guest").exit_code == 0
    assert not copy.exists()
    guest.close()


def test_failures_of_scripts_are_told(machine: Ring3, cloud_kernel: Path, tmp_path: Path, script: Path) -> None:
    silent = tmp_path / "block-silent"
    silent.write_text("#!/bin/sh\n[ $1 = remove ]\n")
    silent.chmod(0o755)
    idle = tmp_path / "block-idle"
    idle.write_text("#!/bin/sh\n")
    idle.chmod(0o755)
    plain = tmp_path / "plain"
    plain.write_text("")
    for words, message in (
        (f"{tmp_path}/none,,xvda,script={script}", f"xvda: {script}: {tmp_path}/none is not there"),
        (f"x,,xvda,script={silent}", f"xvda: {silent}: it ended with code 1"),
        (f"x,,xvda,script={idle}", f"xvda: {idle}: it has named no device"),
        (f"x,,xvda,script={plain}", f"xvda: {plain} is not executable"),
        ("x,,xvda,script=block-nowhere", "xvda: /etc/xen/scripts/block-nowhere: there is no such script"),
    ):
        done = machine("create", "--kernel", cloud_kernel, "--memory", "80", "--disk", words)
        assert done.exit_code == 1
        assert message in done.stderr, done.describe()
        assert len(machine("list").stdout.splitlines()) == 2, "nothing is left of the domain"


@pytest.mark.skipif(not DUMMY.exists(), reason="Xen's scripts are missing (apt install xen-utils-common)")
@pytest.mark.skipif(shutil.which("xenstore-read") is None, reason="Debian's tools are missing (xenstore-utils)")
def test_xens_own_script(machine: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path) -> None:
    if subprocess.run(["losetup", "--find"], capture_output=True).returncode != 0:
        pytest.skip("loop devices need root")
    image = disks.image(tmp_path / "image.img", 8)
    ramdisk = disks.ramdisk(guest_cache, cloud_kernel)
    guest = Guest(machine, cloud_kernel, ramdisk, f"vdev=xvda,script=block-dummy,target=dummy:{image}")
    guest.ok("printf here | dd of=/dev/xvda conv=fsync,notrunc 2>/dev/null")
    assert image.read_bytes()[:4] == b"here"
    with XenstoreClient.connect(guest.run_dir / "xenstore") as xenstore:
        loop = xenstore.read(f"{Device('vbd', guest.domid, 51712).back}/physical-device-path").decode()
    assert loop.startswith("/dev/loop")
    assert str(image) in subprocess.run(["losetup", loop], capture_output=True, text=True).stdout
    assert machine("down").exit_code == 0
    assert str(image) not in subprocess.run(["losetup", "--list"], capture_output=True, text=True).stdout
    guest.close()

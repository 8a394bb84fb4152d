"""The block service is killed in the middle of writes, again and again: no write is lost, and the guest goes on."""

import os
import random
import re
import time
from pathlib import Path

import pytest

from support import disks
from support.command import Ring3
from support.disks import Guest

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(400)]

NR_KILLS = 20
_LOAD = (
    "mount /dev/xvda /mnt; n=0; while [ ! -e /mnt/stop ]; do n=$((n+1)); f=/mnt/f$((n % 40)); "
    "dd if=/dev/urandom of=$f bs=16k count=16 conv=fsync 2>/dev/null || break; s=$(md5sum < $f); "
    'echo "$n $s" > /mnt/sum$((n % 40)); sync; echo "safe $n $s $f"; '
    "dd if=/dev/xvdb of=/dev/null bs=256k count=8 skip=$((n % 30 * 8)) iflag=direct 2>/dev/null || break; "
    "done; echo over"
)


def read_pid(run_dir: Path) -> int:
    try:
        return int((run_dir / "block.pid").read_text())
    except (OSError, ValueError):
        return -1


def kill(run_dir: Path) -> None:
    pid = read_pid(run_dir)
    assert pid > 0
    os.kill(pid, 9)
    deadline = time.monotonic() + 30
    while read_pid(run_dir) in (pid, -1):
        assert time.monotonic() < deadline, "the block service does not come back"
        time.sleep(0.002)


def read_safe(guest: Guest, nr_more: int) -> dict[str, tuple[int, str]]:
    """Waits until the guest has been told of so many more files that they are safe; returns file to number and checksum
    of all.
    """
    last = max(map(int, re.findall(rb"safe (\d+) .*\n", guest.text)), default=0)
    guest.wait_for(rb"safe %d .*\n" % (last + nr_more))
    found = re.findall(rb"safe (\d+) ([0-9a-f]{32})  - (\S+)", guest.text)
    return {file.decode(): (int(number), checksum.decode()) for number, checksum, file in found}


def test_guest_goes_on_and_nothing_is_lost(ring3: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path) -> None:
    ramdisk = disks.ramdisk(guest_cache, cloud_kernel)
    assert ring3("up", "--memory", "512").exit_code == 0
    written, read = disks.image(tmp_path / "written.img", 64), disks.image(tmp_path / "read.img", 64)
    read.write_bytes(os.urandom(64 << 20))
    specs = f"{written},raw,xvda,rw", f"{read},raw,xvdb,r"
    guest = Guest(ring3, cloud_kernel, ramdisk, *specs, vcpus=2)
    guest.ok("/sbin/mke2fs -q -t ext4 /dev/xvda; mkdir /mnt")
    guest.send(_LOAD)
    chance = random.Random(5)
    for _kill in range(NR_KILLS):
        read_safe(guest, 1 + chance.randrange(2))
        time.sleep(chance.random() * 0.1)
        kill(guest.run_dir)
    safe = read_safe(guest, 3)
    # The domain ends as if its power had failed; another one looks at what there is.
    assert ring3("destroy", "guest").exit_code == 0
    guest.close()
    assert len(safe) > NR_KILLS
    heir = Guest(ring3, cloud_kernel, ramdisk, *specs)
    heir.ok("mkdir -p /mnt; mount /dev/xvda /mnt")
    texts = heir.ok("for f in /mnt/f*; do echo $f $(md5sum < $f) sum $(cat /mnt/sum${f#/mnt/f}); done")
    found = re.findall(r"(/mnt/f\d+) ([0-9a-f]{32}) - sum (\d+) ([0-9a-f]{32})", texts)
    # Until its power failed the guest went on, unheard: what it wrote then has a higher number, and its own checksum.
    whole = {
        file
        for file, checksum, number, summed in found
        if checksum == summed and file in safe and (int(number) > safe[file][0] or (int(number), summed) == safe[file])
    }
    # One file was being written again.
    wrong = safe.keys() - whole
    assert len(wrong) <= 1, wrong
    heir.ok("umount /mnt")
    disks.fsck(written)
    heir.close()
    log = (guest.run_dir / "block.log").read_text()
    # A kill may come before the successor has connected.
    assert len(re.findall(r"vbd 51712 .*adopted", log)) >= NR_KILLS // 2
    assert "Traceback" not in log

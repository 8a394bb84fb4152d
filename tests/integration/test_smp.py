"""Stock kernels with several vCPUs, more than the host has cores too."""

import re
from pathlib import Path

import pytest

from ring3.dev import initramfs, stress
from ring3.dev.initramfs import MARKER
from support.command import Ring3, read_until, ring3_path

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


def test_vcpus_come_and_go(ring3: Ring3, cloud_kernel: Path, guest_cache: Path) -> None:
    """The kernel follows what `vcpu-set` writes; bringing a new CPU into use is the business of its user space."""
    script = b"""\
online=/sys/devices/system/cpu/online
await() { while [ "$(cat $online)" != "$1" ]; do sleep 0.1; done; echo "ONLINE $1"; }
await 0
echo WAITING-FOR-MORE
while :; do
    for cpu in /sys/devices/system/cpu/cpu[1-3]; do
        [ -e $cpu/online ] && [ "$(cat $cpu/online)" = 0 ] && echo 1 2>/dev/null > $cpu/online
    done
    [ "$(cat $online)" = 0-3 ] && break
    sleep 0.1
done
await 0-3
for n in 1 2 3 4 5 6 7 8; do (i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done) & done; wait
echo WAITING-FOR-FEWER
await 0-1
for n in 1 2 3 4; do (i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done) & done; wait
# Its own doing: down and up again, many times.
for n in 1 2 3 4 5 6 7 8 9 10; do
    echo 0 > /sys/devices/system/cpu/cpu1/online
    echo 1 > /sys/devices/system/cpu/cpu1/online
done
await 0-1
echo HOTPLUG-OK
"""
    image = initramfs.build(guest_cache, "hotplug", {"test/script": script})
    assert ring3("up", "--memory", "512", timeout_s=60).exit_code == 0
    command = ("create", "--kernel", cloud_kernel, "--ramdisk", image, "--memory", "256", "--name", "plug")
    words = "console=hvc0 ring3.run=/test/script"
    done = ring3(*command, "--vcpus", "1", "--maxvcpus", "4", "--cmdline", words)
    assert done.exit_code == 0, done.describe()
    console = ring3.start("console", "plug")
    assert console.stdout is not None
    try:
        seen = read_until(console.stdout.fileno(), b"WAITING-FOR-MORE", nr_times=1, limit_s=120)
        assert b"WAITING-FOR-MORE" in seen, seen[-4000:].decode(errors="replace")
        too_many = ring3("vcpu-set", "plug", "5")
        assert too_many.exit_code == 1
        assert "at most 4" in too_many.stderr
        assert ring3("vcpu-set", "plug", "4").exit_code == 0
        seen += read_until(console.stdout.fileno(), b"WAITING-FOR-FEWER", nr_times=1, limit_s=120)
        listed = ring3("vcpu-list", "plug")
        assert [line.split()[:3] for line in listed.stdout.splitlines()[1:]] == [
            ["plug", "1", str(number)] for number in range(4)
        ], listed.describe()
        assert ring3("vcpu-set", "plug", "2").exit_code == 0
        seen += read_until(console.stdout.fileno(), b"HOTPLUG-OK", nr_times=1, limit_s=120)
    finally:
        console.kill()
        console.communicate()
    text = seen.decode(errors="replace")
    assert "HOTPLUG-OK" in text, text[-4000:]
    assert not re.search(r"WARNING:|BUG:|Call Trace|rcu.*stall", text), text[-6000:]

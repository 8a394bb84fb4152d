"""Debian's unmodified kernels boot to the shell, do ordinary work, and end with the right exit code."""

import re
import signal
from pathlib import Path

import pytest

from ring3.dev.initramfs import MARKER
from support import images
from support.command import Finished, Ring3, read_until

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]


@pytest.fixture(params=["cloud", "main"])
def stock_kernel(request: pytest.FixtureRequest) -> Path:
    """Each of the two kernels in turn."""
    kernel: Path = request.getfixturevalue(f"{request.param}_kernel")
    return kernel


@pytest.fixture(scope="module")
def exercise_image(guest_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An initramfs with the script and the C program."""
    return images.build_exercise(guest_cache, tmp_path_factory.mktemp("exercise"))


def boot(ring3: Ring3, kernel: Path, ramdisk: Path, words: str, *options: str, stdin: bytes | None = None) -> Finished:
    cmdline = f"console=hvc0 {words}"
    command = ["run", "--kernel", str(kernel), "--ramdisk", str(ramdisk), "--cmdline", cmdline, "--memory", "256"]
    return ring3(*command, *options, stdin=stdin, timeout_s=240)


def test_script_and_program_run_and_power_off_exits_0(ring3: Ring3, stock_kernel: Path, exercise_image: Path) -> None:
    done = boot(ring3, stock_kernel, exercise_image, "ring3.run=/test/script")
    assert done.exit_code == 0, done.describe()
    for text in (MARKER, "BUSYBOX-OK", "EXERCISE-OK", "SCRIPT-OK", "ended with 0"):
        assert text in done.stdout, f"no {text}: {done.describe()}"
    assert "xen" in done.stdout.lower()


def test_kernel_reports_no_trouble(ring3: Ring3, stock_kernel: Path, exercise_image: Path) -> None:
    done = boot(ring3, stock_kernel, exercise_image, "ring3.run=/test/script")
    trouble = re.compile(r"WARNING: CPU|BUG:|Oops|Call Trace|general protection|rcu.*stall|soft lockup", re.IGNORECASE)
    lines = [line for line in done.stdout.splitlines() if trouble.search(line)]
    assert not lines, done.describe()


def test_two_vcpus(ring3: Ring3, cloud_kernel: Path, exercise_image: Path) -> None:
    done = boot(ring3, cloud_kernel, exercise_image, "ring3.run=/test/script", "--vcpus", "2")
    assert done.exit_code == 0, done.describe()
    assert "SCRIPT-OK" in done.stdout, done.describe()
    assert "\n2\r\n" in done.stdout or "\n2\n" in done.stdout, f"two processors: {done.describe()}"


def test_memory_map_is_the_domains_memory(ring3: Ring3, cloud_kernel: Path, busybox_image: Path) -> None:
    """As xl says it. A kernel that makes a map for itself adds 8 MiB, which it then misses under `mem=`."""
    done = boot(ring3, cloud_kernel, busybox_image, "mem=160M ring3.run=/proc/version")
    assert done.exit_code == 0, done.describe()
    assert "Xen: [mem 0x0000000000100000-0x000000000fffffff] usable" in done.stdout, done.describe()


def test_reboot_with_destroy_exits_0(ring3: Ring3, stock_kernel: Path, busybox_image: Path) -> None:
    words = "quiet ring3.run=/proc/version ring3.end=reboot"
    done = boot(ring3, stock_kernel, busybox_image, words, "--on-reboot", "destroy")
    assert done.exit_code == 0, done.describe()
    assert done.stdout.count(MARKER) == 1, done.describe()


def test_reboot_with_restart_boots_again(ring3: Ring3, cloud_kernel: Path, busybox_image: Path) -> None:
    """The guest reboots for ever; two boots are enough."""
    words = "console=hvc0 quiet ring3.run=/proc/version ring3.end=reboot"
    process = ring3.start(
        "run", "--kernel", str(cloud_kernel), "--ramdisk", str(busybox_image), "--cmdline", words, "--memory", "256"
    )
    seen = read_until(process.stdout.fileno(), MARKER.encode(), nr_times=2, limit_s=200)  # type: ignore[union-attr]
    process.terminate()
    process.communicate(timeout=30)
    assert seen.count(MARKER.encode()) >= 2, seen[-4000:].decode(errors="replace")


def test_panic_exits_3_with_a_report(ring3: Ring3, stock_kernel: Path, busybox_image: Path) -> None:
    done = boot(ring3, stock_kernel, busybox_image, "ring3.run=/proc/version ring3.end=panic")
    assert done.exit_code == 3, done.describe()
    assert "sysrq" in done.stdout.lower(), done.describe()
    assert "rip" in done.stderr.lower(), done.describe()


def test_shell_is_interactive_and_leaving_it_ends_the_guest(
    ring3: Ring3, cloud_kernel: Path, busybox_image: Path
) -> None:
    process = ring3.start(
        *("run", "--kernel", str(cloud_kernel), "--ramdisk", str(busybox_image)),
        *("--cmdline", "console=hvc0 quiet", "--memory", "256"),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    out = process.stdout.fileno()
    seen = read_until(out, b"# ", nr_times=1, limit_s=120)
    process.stdin.write(b"echo $((6 * 7)) is the answer\n")
    process.stdin.flush()
    seen += read_until(out, b"42 is the answer", nr_times=1, limit_s=30)
    process.stdin.write(b"exit\n")
    process.stdin.flush()
    stdout, stderr = process.communicate(timeout=60)
    text = (seen + stdout).decode(errors="replace")
    assert "42 is the answer" in text, text[-4000:]
    assert process.returncode == 0, stderr.decode(errors="replace")


def test_terminating_the_command_exits_4_or_by_signal(ring3: Ring3, cloud_kernel: Path, busybox_image: Path) -> None:
    process = ring3.start(
        *("run", "--kernel", str(cloud_kernel), "--ramdisk", str(busybox_image)),
        *("--cmdline", "console=hvc0 quiet", "--memory", "256"),
    )
    assert process.stdout is not None
    read_until(process.stdout.fileno(), MARKER.encode(), nr_times=1, limit_s=120)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode in (4, -signal.SIGTERM, 128 + signal.SIGTERM)

"""Bad input to `ring3 run`: each case ends with the contract's exit code and a message that says what is wrong."""

import resource
import subprocess
from pathlib import Path

import pytest

from support import guests
from support.command import Finished, Ring3

pytestmark = pytest.mark.guest


def run(ring3: Ring3, kernel: Path, *options: str, timeout_s: float = 60) -> Finished:
    return ring3("run", "--kernel", str(kernel), *options, timeout_s=timeout_s)


def assert_refused(done: Finished, *words: str) -> None:
    """Exit 1, nothing on standard output, one clear message and no traceback."""
    assert done.exit_code == 1, done.describe()
    assert done.stdout == "", done.describe()
    assert "Traceback" not in done.stderr, done.describe()
    for word in words:
        assert word.lower() in done.stderr.lower(), f"no {word!r}: {done.describe()}"


def test_missing_kernel_is_refused(ring3: Ring3, tmp_path: Path) -> None:
    assert_refused(run(ring3, tmp_path / "nothing"), "nothing")


@pytest.mark.parametrize(
    "content",
    [b"", b"not a kernel\n" * 1000, b"\x7fELF", bytes(1 << 20)],
    ids=["empty", "text", "only the ELF magic", "zeros"],
)
def test_what_is_not_a_kernel_is_refused(ring3: Ring3, tmp_path: Path, content: bytes) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    assert_refused(run(ring3, image), "image")


def test_a_kernel_without_xen_notes_names_the_note_and_the_package(ring3: Ring3, tmp_path: Path) -> None:
    image = tmp_path / "plain"
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-o", image, "-x", "c", "-"],
        input=b"void _start(void) { for (;;); }",
        check=True,
    )
    assert_refused(run(ring3, image), "note", "linux-image-")


@pytest.mark.parametrize("nr_bytes", [100, 600, 20_000, 3_000_000])
def test_a_truncated_image_is_refused(ring3: Ring3, cloud_kernel: Path, tmp_path: Path, nr_bytes: int) -> None:
    image = tmp_path / "truncated"
    image.write_bytes(cloud_kernel.read_bytes()[:nr_bytes])
    assert_refused(run(ring3, image, "--memory", "128"), "truncated")


def test_missing_ramdisk_is_refused(ring3: Ring3, cloud_kernel: Path, tmp_path: Path) -> None:
    assert_refused(run(ring3, cloud_kernel, "--ramdisk", str(tmp_path / "no-ramdisk")), "no-ramdisk")


def test_too_little_memory_is_refused(ring3: Ring3, cloud_kernel: Path) -> None:
    assert_refused(run(ring3, cloud_kernel, "--memory", "8"), "memory")


def test_more_memory_than_the_host_has_is_refused(ring3: Ring3, cloud_kernel: Path) -> None:
    assert_refused(run(ring3, cloud_kernel, "--memory", str(1 << 30)), "memory")


def test_no_room_on_the_host_is_reported(ring3: Ring3, cloud_kernel: Path) -> None:
    """A limit on the size of files stops the machine memory's file from growing."""
    limit = (64 << 20, 64 << 20)
    done = subprocess.run(
        [ring3.path, "run", "--kernel", str(cloud_kernel), "--memory", "256"],
        env=ring3.environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["run", "--kernel"],
        ["run", "--kernel", "x", "--memory", "many"],
        ["run", "--kernel", "x", "--vcpus", "0"],
        ["run", "--kernel", "x", "--on-reboot", "explode"],
        ["no-such-command"],
        ["create"],
    ],
)
def test_bad_usage_exits_2(ring3: Ring3, arguments: list[str]) -> None:
    done = ring3(*arguments)
    assert done.exit_code == 2, done.describe()
    assert done.stdout == ""


def test_no_write_access_to_the_state_directory(ring3: Ring3, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("a file where the directory should be")
    ring3.environment["RING3_RUN_DIR"] = str(place / "run")
    assert_refused(ring3("up"), "run")


def test_a_second_up_is_refused(ring3: Ring3) -> None:
    assert ring3("up", "--memory", "64").exit_code == 0
    assert_refused(ring3("up", "--memory", "64"), "already")
    assert ring3("down").exit_code == 0


def test_a_guest_that_prints_without_end_is_bounded(ring3: Ring3, tmp_path: Path) -> None:
    """Nobody reads its console: the guest waits, and the services' memory does not grow."""
    image = guests.build("endless", tmp_path)
    assert ring3("up", "--memory", "128").exit_code == 0
    done = ring3("create", "--kernel", image, "--memory", "16", "--name", "endless")
    assert done.exit_code == 0, done.describe()
    subprocess.run(["sleep", "3"], check=True)
    logs = sum(path.stat().st_size for path in Path(ring3.environment["RING3_RUN_DIR"]).rglob("*.log*"))
    assert logs < 8 << 20
    listed = ring3("list", timeout_s=10)
    assert "endless" in listed.stdout, listed.describe()
    assert ring3("destroy", "endless", timeout_s=20).exit_code == 0
    assert "endless" not in ring3("list").stdout
    assert ring3("down").exit_code == 0


def test_a_guest_that_ignores_its_console_does_not_block_the_command(ring3: Ring3, tmp_path: Path) -> None:
    """A megabyte typed at a guest that never reads: it still powers off, and the command ends."""
    image = guests.build("hello", tmp_path)
    done = ring3("run", "--kernel", image, "--memory", "16", stdin=b"x" * (1 << 20), timeout_s=30)
    assert done.exit_code == 0, done.describe()

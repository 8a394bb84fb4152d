"""32-bit programs run in a 64-bit guest as they do on the host."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from ring3.dev import cpio, initramfs
from ring3.dev.initramfs import ArtefactError
from support import i386, images
from support.command import Finished, Ring3

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]

_SOURCES = Path(images.__file__).parent / "c"


def _compile(name: str, directory: Path, *flags: str) -> Path:
    try:
        return i386.compile_32bit(_SOURCES / f"{name}.c", directory / name, *flags)
    except ArtefactError as error:
        pytest.skip(str(error))


def _run(ring3: Ring3, kernel: Path, directory: Path, files: Mapping[str, bytes], *options: str) -> Finished:
    try:
        ramdisk = initramfs.build(directory, "compat", files)
    except ArtefactError as error:
        pytest.skip(str(error))
    command = ["run", "--kernel", str(kernel), "--ramdisk", str(ramdisk), "--memory", "256"]
    return ring3(*command, "--cmdline", "console=hvc0 quiet ring3.run=/test/script", *options, timeout_s=240)


def _compat_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("compat: ")]


def test_each_instruction_has_the_hosts_result(ring3: Ring3, cloud_kernel: Path, tmp_path: Path) -> None:
    program = _compile("compat", tmp_path, "-O1", "-fno-pic", "-fcf-protection=none")
    files = {"test/script": b"/test/compat\n", "test/compat": program.read_bytes()}
    done = _run(ring3, cloud_kernel, tmp_path, files)
    assert done.exit_code == 0, done.describe()
    assert "COMPAT-OK" in done.stdout, done.describe()
    if not i386.runs_here(program):
        pytest.skip("it ran to its end, but the host executes no 32-bit programs to compare with")
    expected = images.output_of(program)
    assert _compat_lines(done.stdout) == _compat_lines(expected), done.describe()


def test_segments_with_bases_and_limits(ring3: Ring3, cloud_kernel: Path, tmp_path: Path) -> None:
    """Far calls to segments of modify_ldt, stacks in them, what limits refuse, and signals in the midst of it."""
    program = _compile("segments", tmp_path)
    files = {"test/script": b"/test/segments\n", "test/segments": program.read_bytes()}
    done = _run(ring3, cloud_kernel, tmp_path, files)
    assert "SEGMENTS-OK" in done.stdout, done.describe()
    if not i386.runs_here(program):
        pytest.skip("it ran to its end, but the host executes no such programs to compare with")
    assert _compat_lines(done.stdout) == _compat_lines(images.output_of(program)), done.describe()


@pytest.mark.parametrize("nr_vcpus", [1, 2])
def test_threads_signals_and_floating_point(ring3: Ring3, cloud_kernel: Path, tmp_path: Path, nr_vcpus: int) -> None:
    # The program compares floats for equality, which excess precision would spoil on any machine.
    program = _compile("exercise", tmp_path, "-pthread", "-msse2", "-mfpmath=sse")
    files = {"test/script": b"/test/exercise\n", "test/exercise": program.read_bytes()}
    done = _run(ring3, cloud_kernel, tmp_path, files, "--vcpus", str(nr_vcpus))
    assert done.exit_code == 0, done.describe()
    assert "EXERCISE-OK" in done.stdout, done.describe()


def test_a_32bit_user_space(ring3: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path) -> None:
    """busybox as /init, the shell and every command."""
    try:
        busybox = i386.fetch_busybox(guest_cache)
    except ArtefactError as error:
        pytest.skip(str(error))
    script = images.SCRIPT.replace("/test/exercise\n", "")
    if not i386.runs_here(busybox):
        pytest.skip("the host executes no 32-bit programs, so the applets cannot be listed")
    members = initramfs.entries(busybox, {"test/script": script.encode()})
    image = tmp_path / "i386.cpio"
    image.write_bytes(cpio.pack(members))
    done = ring3(
        *("run", "--kernel", str(cloud_kernel), "--ramdisk", str(image), "--memory", "256"),
        *("--cmdline", "console=hvc0 quiet ring3.run=/test/script"),
        timeout_s=240,
    )
    assert done.exit_code == 0, done.describe()
    for text in ("BUSYBOX-OK", "SCRIPT-OK", "ended with 0"):
        assert text in done.stdout, f"no {text}: {done.describe()}"

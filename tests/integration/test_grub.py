"""GRUB for Xen, a PV kernel of another family: its shell on the PV console, and Linux started by it."""

import os
import re
import select
import subprocess
import time
from pathlib import Path

import pytest

from ring3.dev.initramfs import MARKER, ArtefactError
from support import grub
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]

_PROMPT = "grub> "


class Shell:
    """GRUB's shell at the other end of the console."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.output = b""

    def wait_for_prompt(self, nr_before: int, limit_s: float) -> str:
        """Returns all that was printed once there are more prompts than before."""
        assert self.process.stdout is not None
        end = time.monotonic() + limit_s
        while grub.plain(self.output).count(_PROMPT) <= nr_before:
            left = end - time.monotonic()
            ready = left > 0 and select.select([self.process.stdout], [], [], left)[0]
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            assert data, f"no prompt: {grub.plain(self.output)}"
            self.output += data
        return grub.plain(self.output)

    def run(self, command: str) -> str:
        """Returns what a command prints."""
        before = grub.plain(self.output)
        assert self.process.stdin is not None
        self.process.stdin.write(command.encode() + b"\r")
        self.process.stdin.flush()
        return self.wait_for_prompt(before.count(_PROMPT), 20)[len(before) :]


def test_shell_and_its_commands(ring3: Ring3, guest_cache: Path) -> None:
    try:
        image = grub.ready_made(guest_cache)
    except ArtefactError as error:
        pytest.skip(str(error))
    process = ring3.start("run", "--kernel", str(image), "--memory", "256", "--name", "grub")
    shell = Shell(process)
    try:
        assert "GNU GRUB" in shell.wait_for_prompt(0, 60)
        helped = shell.run("help")
        for command in ("multiboot", "linux", "ls [-l|-h|-a]", "lsmmap", "xen_ls"):
            assert command in helped
        assert "(memdisk)" in shell.run("ls")
        assert re.search(r"base_addr = 0x0, length = 0x\w+, available RAM", shell.run("lsmmap"))
        assert "filename expected" in shell.run("multiboot")
        assert "file `/absent' not found" in shell.run("multiboot /absent")
        assert "can't find command `nonsense'" in shell.run("nonsense")
        # The xenstore ring, both ways.
        assert "grub" in shell.run("xen_cat name").splitlines()[1:]
        assert "ENOENT" in shell.run("xen_cat absent")
        # The clock.
        assert time.strftime("%Y-%m-", time.gmtime()) in shell.run("date")
        assert process.stdin is not None
        process.stdin.write(b"halt\r")
        process.stdin.flush()
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 0, stderr.decode(errors="replace")
    finally:
        process.kill()
        process.wait()


def test_it_starts_linux(
    ring3: Ring3, guest_cache: Path, main_kernel: Path, busybox_image: Path, tmp_path: Path
) -> None:
    """GRUB builds a new start of day within the domain: page tables, P2M, start_info, as the domain builder does."""
    config = b"linux (memdisk)/vmlinuz console=hvc0 ring3.run=/proc/version\ninitrd (memdisk)/initrd\nboot\n"
    files = {"grub.cfg": config, "vmlinuz": main_kernel.read_bytes(), "initrd": busybox_image.read_bytes()}
    try:
        image = grub.make(guest_cache, tmp_path, files)
    except ArtefactError as error:
        pytest.skip(str(error))
    done = ring3("run", "--kernel", image, "--vcpus", "2", timeout_s=150)
    assert done.exit_code == 0, done.describe()
    assert MARKER in done.stdout, done.describe()
    assert "smp: Brought up 1 node, 2 CPUs" in done.stdout, done.describe()

"""What tests with disks share: the initramfs with the front end and e2fsprogs, and talking to the guest's shell."""

import ctypes
import mmap
import os
import re
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ring3.dev import debian, initramfs, modules
from support.command import Ring3

SHELL = b"""
cat /proc/partitions > /dev/null
echo SHELL-IS-THERE
while read -r line; do
    eval "$line"
    echo "status=$?=" # the caller waits for it
done
"""
_LIMIT_S = 120.0


def ramdisk(guest_cache: Path, kernel: Path) -> Path:
    """Returns an initramfs whose script carries out lines of its console."""
    files = modules.files(guest_cache, kernel, ["xen-blkfront"])
    for program in ("mke2fs", "e2fsck"):
        files |= debian.program(guest_cache / "packages", "e2fsprogs", f"sbin/{program}")
    return initramfs.build(guest_cache, "disks", {**files, "test/script": SHELL})


class Guest:
    """A domain whose console is a shell."""

    def __init__(
        self,
        ring3: Ring3,
        kernel: Path,
        image: Path,
        *disks: str,
        name: str = "guest",
        vcpus: int = 1,
        vifs: Sequence[str] = (),
    ) -> None:
        self.ring3 = ring3
        self.name = name
        self.run_dir = Path(ring3.environment["RING3_RUN_DIR"])
        done = ring3(
            *("create", "--kernel", kernel, "--ramdisk", image, "--memory", "192", "--name", name),
            *("--vcpus", str(vcpus), "--cmdline", "console=hvc0 quiet ring3.run=/test/script"),
            *(word for disk in disks for word in ("--disk", disk)),
            *(word for vif in vifs for word in ("--vif", vif)),
        )
        assert done.exit_code == 0, done.describe()
        self.domid = int(done.stdout.split()[-1])
        self._process = ring3.start("console", name)
        self.text = b""
        self.wait_for(rb"SHELL-IS-THERE")
        self("stty -echo; echo 1 > /proc/sys/kernel/printk")

    def __call__(self, line: str, *, limit_s: float = _LIMIT_S) -> tuple[int, str]:
        """Carries out a line; returns its exit code and what it printed."""
        self.send(line)
        return self.wait(limit_s)

    def send(self, line: str) -> None:
        """Begins to carry out a line."""
        assert self._process.stdin is not None
        self.text = b""
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def wait(self, limit_s: float = _LIMIT_S) -> tuple[int, str]:
        """Waits for the end of what was begun."""
        found = self.wait_for(rb"status=(\d+)=\r?\n", limit_s)
        return int(found[1]), self.text[: found.start()].decode(errors="replace").replace("\r", "")

    def ok(self, line: str) -> str:
        """Carries out a line that must succeed; returns what it printed."""
        code, text = self(line)
        assert code == 0, text
        return text

    def close(self) -> None:
        """Leaves the console."""
        self._process.terminate()
        self._process.communicate(timeout=10)

    def wait_for(self, pattern: bytes, limit_s: float = _LIMIT_S) -> "re.Match[bytes]":
        """Waits for something to be printed, since the last line was sent."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        while (found := re.search(pattern, self.text)) is None:
            left = deadline - time.monotonic()
            ready = select.select([self._process.stdout], [], [], max(0.0, left))[0]
            assert ready, f"no {pattern!r} in {self.text[-3000:].decode(errors='replace')}"
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, self.text[-3000:].decode(errors="replace")
            self.text += data
        return found


def image(path: Path, nr_mib: int) -> Path:
    """Returns a new, sparse image."""
    path.write_bytes(b"")
    os.truncate(path, nr_mib << 20)
    return path


def nr_cached_pages(path: Path) -> int:
    """Returns how many of a file's pages the host's page cache has."""
    nr_bytes = path.stat().st_size
    found = (ctypes.c_ubyte * (nr_bytes // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), nr_bytes) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        done = libc.mincore(ctypes.byref(start), ctypes.c_size_t(nr_bytes), found)
        del start  # it keeps the mapping open
        assert done == 0
    return sum(page & 1 for page in found)


def fsck(path: Path) -> None:
    """Fails for a file system that is not clean."""
    done = subprocess.run(["/sbin/e2fsck", "-f", "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout

"""A Debian image is made, boots to its login prompt from its disk, and reaches the network that the host gives it."""

import os
import re
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.command import Ring3

pytestmark = [
    pytest.mark.guest,
    pytest.mark.stock,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed"),
]


@pytest.fixture
def debian(ring3: Ring3, guest_cache: Path, tmp_path: Path) -> Iterator[Ring3]:
    """The command, with images of its own; what they are made of is kept."""
    ring3.environment.update(RING3_IMAGE_DIR=str(tmp_path), RING3_CACHE_DIR=str(guest_cache))
    yield ring3
    shutil.rmtree(tmp_path / "images", ignore_errors=True)


def make(ring3: Ring3) -> None:
    done = ring3("image", "debian", "box", timeout_s=1200)
    if done.exit_code != 0 and "mmdebstrap failed" in done.stderr:
        pytest.skip(f"no packages: {done.stderr[-300:]}")
    assert done.exit_code == 0, done.describe()


class Console:
    """A console at which somebody types."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._seen = b""

    def wait_for(self, pattern: str, limit_s: float) -> str:
        """Returns what came up to a pattern."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + limit_s
        while (found := re.search(pattern.encode(), self._seen)) is None:
            left = deadline - time.monotonic()
            assert left > 0 and select.select([self._process.stdout], [], [], left)[0], self._seen[-3000:]
            data = os.read(self._process.stdout.fileno(), 65536)
            assert data, self._seen[-3000:]
            self._seen += data
        text, self._seen = self._seen[: found.end()], self._seen[found.end() :]
        return text.decode(errors="replace")

    def type(self, line: str) -> None:
        """Types a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()


def test_debian_boots_to_a_login_with_disk_and_network(debian: Ring3, tmp_path: Path) -> None:
    make(debian)
    image = tmp_path / "images" / "box"
    assert debian("image", "list").stdout.split()[0] == "box"
    assert debian("image", "debian", "box").exit_code == 1, "the name is taken"
    process = debian.start("run", str(image / "config"))
    console = Console(process)
    console.wait_for("box login: ", 300)
    busy = debian("image", "rm", "box")
    assert busy.exit_code == 1 and "in use" in busy.stderr
    console.type("root")
    console.wait_for("# ", 60)
    console.type("PS1=; stty -echo; systemctl is-active multi-user.target; echo kept > /kept; sync; echo DO'NE'")
    assert "active" in console.wait_for("DONE", 60)
    # By the user network: an address, and a route to the host.
    console.type(
        "for i in $(seq 30); do ip -4 -br addr | grep -q ' UP.*/' && break; sleep 1; done; ip -br addr; echo END"
    )
    assert re.search(r"en\S+ +UP +\d", console.wait_for("END", 90))
    console.type("poweroff")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (output[-1000:], errors[-1000:])
    checked = subprocess.run(["/sbin/e2fsck", "-fn", image / "disk.img"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    found = subprocess.run(["/sbin/debugfs", "-R", "cat /kept", image / "disk.img"], capture_output=True, text=True)
    assert found.stdout == "kept\n"
    assert debian("image", "rm", "box").exit_code == 0
    assert debian("image", "list").stdout == ""


@pytest.mark.parametrize("words", [["Box"], ["a/b"], ["12"], ["x", "--size", "2"], ["x", "--suite", "a b"]])
def test_images_that_cannot_be_are_refused(debian: Ring3, tmp_path: Path, words: list[str]) -> None:
    done = debian("image", "debian", *words)
    assert done.exit_code == 1 and "ring3:" in done.stderr
    assert not (tmp_path / "images").exists() or not list((tmp_path / "images").iterdir())

"""A Debian image is made, boots to its login prompt from its disk, and reaches the network that the host gives it."""

import os
import pwd
import re
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ring3
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
    start = console.wait_for("box login: ", 300)
    assert "fsck.ext4 -a" in start, "a root that is checked when it is mounted makes the domain boot twice"
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


@pytest.fixture
def nobody(guest_cache: Path) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs `ring3` as a user without rights, whose images are made of the packages that are there."""
    user = pwd.getpwnam("nobody")
    python = "/usr/bin/python3"
    asked = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    if os.geteuid() != 0 or subprocess.run(asked, capture_output=True).returncode != 0:
        pytest.skip("needs root, to be another user, and a Python that this one may run")
    package = Path(ring3.__file__).parent.parent
    with tempfile.TemporaryDirectory(prefix="ring3-nobody-") as place:
        os.chown(place, user.pw_uid, user.pw_gid)
        cache = Path(place) / "cache"
        cache.mkdir()
        os.chown(cache, user.pw_uid, user.pw_gid)
        for archive in guest_cache.glob("debian-*.tar"):
            (cache / archive.name).symlink_to(archive.resolve())

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            environment = {"PATH": "/usr/bin:/bin", "HOME": place, "PYTHONPATH": str(package)}
            environment |= {"RING3_IMAGE_DIR": place, "RING3_CACHE_DIR": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
            command = [python, "-m", "ring3", *words]
            return subprocess.run(
                command,
                env=environment,
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                cwd=place,
                capture_output=True,
                text=True,
                timeout=1200,
            )

        if run("image", "list").returncode != 0:
            pytest.skip("that user cannot read the package")
        yield run


def test_image_needs_no_root(nobody: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    """Made as nobody; its files are root's all the same, and its file system is clean and has a journal."""
    done = nobody("image", "debian", "box")
    if done.returncode != 0 and ("mmdebstrap failed" in done.stderr or "without root" in done.stderr):
        pytest.skip(done.stderr[-300:])
    assert done.returncode == 0, done.stderr
    found = re.search(r"create (\S+)/config", done.stdout)
    assert found is not None, done.stdout
    disk = f"{found[1]}/disk.img"
    assert Path(disk).stat().st_uid == pwd.getpwnam("nobody").pw_uid
    checked = subprocess.run(["/sbin/e2fsck", "-fn", disk], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    shown = subprocess.run(["/sbin/debugfs", "-R", "stat /etc/shadow", disk], capture_output=True, text=True).stdout
    assert re.search(r"User: +0 +Group: +42", shown), shown
    assert "has_journal" in subprocess.run(["/sbin/dumpe2fs", "-h", disk], capture_output=True, text=True).stdout


@pytest.mark.parametrize("words", [["Box"], ["a/b"], ["12"], ["x", "--size", "2"], ["x", "--suite", "a b"]])
def test_images_that_cannot_be_are_refused(debian: Ring3, tmp_path: Path, words: list[str]) -> None:
    done = debian("image", "debian", *words)
    assert done.exit_code == 1 and "ring3:" in done.stderr
    assert not (tmp_path / "images").exists() or not list((tmp_path / "images").iterdir())

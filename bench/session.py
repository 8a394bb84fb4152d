"""`python bench/session.py [--output docs/session.md]`: one sitting with a Debian domain, written down as it happened.

An image is made, booted and logged in to; a file is written with fsync; something is fetched by HTTP from a server on
the host; a disk and a network device are attached live; each back end is killed, again and again, while the domain
works; in the end both disks are checked. What goes wrong ends the sitting with exit code 1.
"""

import argparse
import contextlib
import hashlib
import http.server
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from contest import ContestError, Run
from shell import RING3

REPOSITORY = Path(__file__).parent.parent
NR_KILLS = 20
_SERVICES = ("block", "net", "xenstored", "consoled", "dom0")
"""The last is the supervisor of the others."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")
_LOAD = (
    "(n=0; while [ ! -e /stop ]; do n=$((n+1)); dd if=/dev/urandom of=/mnt/$((n % 8)) bs=64k count=16 conv=fsync 2>&-; "
    "/usr/lib/apt/apt-helper -qq download-file {url} /root/again && cmp /root/file /root/again && echo $n > /rounds; "
    "done) > /root/load.log 2>&1 &"
)
_HEAD = """\
# A sitting

Written by `python bench/session.py`: commands on the host after `$`, lines typed at the domain's console after `#`.
"""


class Page:
    """What is written down. `names`: what stands for places of this machine."""

    def __init__(self, names: dict[str, str]) -> None:
        self._names = names
        self._lines = [_HEAD]

    def head(self, text: str) -> None:
        """Begins a section."""
        print(f"== {text}", file=sys.stderr, flush=True)
        self._lines.append(f"\n## {text}\n")

    def add(self, prompt: str, command: str, output: str) -> None:
        """Adds a command and what it printed."""
        text = f"{prompt} {command}\n{output}".strip()
        for name, stand_in in self._names.items():
            text = text.replace(name, stand_in)
        self._lines += ["```", text, "```"]

    @property
    def text(self) -> str:
        """The whole."""
        return "\n".join(self._lines) + "\n"


class Sitting:
    """The host's commands and the domain's console."""

    def __init__(self, page: Page) -> None:
        self._page = page
        self._run: Run | None = None

    def host(self, *words: str, show: bool = True) -> str:
        """Runs a command; returns what it printed. Raises ContestError if it fails."""
        command = [RING3 if word == "ring3" else word for word in words]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1500)
        if show:
            self._page.add("$", shlex.join(words), done.stdout)
        if done.returncode != 0:
            raise ContestError(f"{shlex.join(words)} ended with {done.returncode}: {done.stdout[-500:]}")
        return done.stdout

    def log_in(self) -> None:
        """Attaches to the console and logs in as root."""
        self._run = run = Run([RING3, "console", "box"])
        run.wait_for("box login: ")
        self._type("root")
        run.wait_for("# ")
        banner = _plain(run.text).splitlines()
        self._page.add("$", "ring3 console box", "\n".join(["...", *banner[-9:]]))
        run.text = b""
        # The first part of the mark is apart, so that the echo of the line is not taken for it.
        self._type("PS1=; TERM=dumb; stty -echo; echo rea'dy='")
        run.wait_for("ready=")
        run.text = b""

    def guest(self, line: str, *, show: bool = True) -> str:
        """Carries out a line in the domain. Raises ContestError if it fails."""
        run = self._console()
        run.text = b""
        self._type(f'{line}\necho "status=$?="')
        run.wait_for("status=")
        while not (found := re.search(rb"status=(\d+)=", run.text)):
            run.wait_for("=\r\n")
        output = _plain(run.text[: found.start()])
        if show:
            self._page.add("#", line, output)
        if found[1] != b"0":
            raise ContestError(f"{line} ended with {found[1].decode()} in the domain: {output[-500:]}")
        return output

    def shut_down(self) -> None:
        """Ends the domain from within."""
        self._type("poweroff")
        run = self._console()
        if run.process.wait(120) != 0:
            raise ContestError("the console did not end with its domain")
        self._page.add("#", "poweroff", "")

    def end(self) -> None:
        """Leaves the console."""
        if self._run is not None:
            self._run.end()

    def _console(self) -> Run:
        if self._run is None:
            raise ContestError("nobody is logged in")
        return self._run

    def _type(self, line: str) -> None:
        stdin = self._console().process.stdin
        if stdin is None:
            raise ContestError("no console")
        stdin.write(line.encode() + b"\n")
        stdin.flush()


def _plain(data: bytes) -> str:
    return _ESCAPES.sub("", data.decode(errors="replace")).strip("\n")


@contextlib.contextmanager
def http_server(directory: Path) -> Iterator[int]:
    """Serves a directory on the host's loopback; yields the port."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Says nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(directory))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


def kill(run_dir: Path, service: str) -> tuple[int, int]:
    """Kills a service; returns its process id and its successor's. Raises ContestError."""
    path = run_dir / f"{service}.pid"
    pid = int(path.read_text())
    os.kill(pid, 9)
    deadline = time.monotonic() + 30
    while (text := path.read_text().strip()) in (str(pid), ""):
        if time.monotonic() > deadline:
            raise ContestError(f"{service} does not come back")
        time.sleep(0.01)
    return pid, int(text)


def sit(page: Page, place: Path) -> None:
    """Does all of it. Raises ContestError, OSError, SubprocessError."""
    run_dir = place / "run"
    served = place / "served"
    served.mkdir()
    content = os.urandom(4 << 20)
    (served / "file").write_bytes(content)
    sitting = Sitting(page)
    with http_server(served) as port, contextlib.ExitStack() as stack:
        page.head("An image is made and booted")
        sitting.host("ring3", "image", "debian", "box")
        sitting.host("ring3", "up", "--memory", "640")
        stack.callback(subprocess.run, [RING3, "down"], capture_output=True)
        stack.callback(sitting.end)
        config = place / "images" / "images" / "box" / "config"
        sitting.host("ring3", "create", str(config))
        sitting.log_in()
        sitting.guest("dmesg -n 1", show=False)
        sitting.guest("uname -a; systemctl is-active multi-user.target")
        sitting.guest("findmnt -n -o SOURCE,FSTYPE /; nproc; head -1 /proc/meminfo")

        page.head("A file is written with fsync, and something is fetched by HTTP from the host")
        sitting.guest(
            "dd if=/dev/urandom of=/root/kept bs=1M count=16 conv=fsync; sha256sum /root/kept | tee /root/sum"
        )
        sitting.guest("for i in $(seq 60); do ip -4 route | grep -q ^default && break; sleep 1; done", show=False)
        gateway = sitting.guest("ip -4 route show default").split()[2]
        sitting.guest(
            f"/usr/lib/apt/apt-helper -qq download-file http://{gateway}:{port}/file /root/file; ls -l /root/file"
        )
        if hashlib.sha256(content).hexdigest() not in sitting.guest("sha256sum /root/file"):
            raise ContestError("what was fetched is not what was served")
        page.add("$", "sha256sum served/file", hashlib.sha256(content).hexdigest())

        page.head("A second disk and a second network device come while it runs")
        second = place / "second.img"
        sitting.host("truncate", "-s", "256M", str(second))
        sitting.host("ring3", "block-attach", "box", f"{second},raw,xvdb,rw")
        sitting.host("ring3", "network-attach", "box", "network=switch", "switch=lab", "mac=00:16:3e:00:00:09")
        sitting.guest("udevadm settle; lsblk /dev/xvdb; mkfs.ext4 -q /dev/xvdb && mount /dev/xvdb /mnt; df -h /mnt")
        sitting.guest("ip -br link show | grep 00:16:3e:00:00:09")
        sitting.host("ring3", "block-list", "box")
        sitting.host("ring3", "network-list", "box")

        page.head("Each back end is killed while the domain works")
        sitting.guest(_LOAD.format(url=f"http://{gateway}:{port}/file"))
        for service in _SERVICES:
            pids: list[str] = []
            for _number in range(NR_KILLS):
                time.sleep(0.5)
                victim, successor = map(str, kill(run_dir, service))
                pids += [successor] if pids[-1:] == [victim] else [victim, successor]
            page.add(
                "$",
                f"kill -9 $(cat {service}.pid), {NR_KILLS} times: process, and its successors",
                "\n".join(" -> ".join(pids[at : at + 11]) for at in range(0, len(pids), 11)),
            )
        before = int(sitting.guest("cat /rounds"))
        time.sleep(5)
        if int(sitting.guest("cat /rounds")) <= before:
            raise ContestError("the domain does not go on")
        sitting.guest(
            "touch /stop; wait; sync; rm /stop; sha256sum -c /root/sum; dmesg -l err,crit,alert,emerg | tail -5"
        )
        sitting.host("ring3", "network-detach", "box", "1")

        page.head("The disks are checked")
        sitting.guest("umount /mnt")
        sitting.shut_down()
        sitting.host("e2fsck", "-f", "-n", str(second))
        sitting.host("e2fsck", "-f", "-n", str(config.parent / "disk.img"))
        logs = {path.name: path.read_text() for path in run_dir.glob("*.log")}
        sitting.host("ring3", "down")
        for name, text in logs.items():
            if "Traceback" in text:
                raise ContestError(f"{name}: {text[text.index('Traceback') :][:3000]}")
        killed = re.compile("killed by signal 9|supervisor was killed")
        dom0 = [line for line in logs["dom0.log"].splitlines() if not killed.search(line)]
        page.add("$", "grep -v -E 'killed by signal 9|supervisor was killed' dom0.log", "\n".join(dom0))


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description="Writes a sitting with a Debian domain down.")
    parser.add_argument("--output", type=Path, help="default: standard output")
    options = parser.parse_args()
    cache = Path(os.environ.get("RING3_GUEST_CACHE", REPOSITORY / ".cache" / "guest"))
    with tempfile.TemporaryDirectory(prefix="ring3-sitting-") as name:
        place = Path(name)
        os.environ.update(RING3_RUN_DIR=f"{name}/run", RING3_IMAGE_DIR=f"{name}/images", RING3_CACHE_DIR=str(cache))
        page = Page({name: "$DIR", str(cache): "$CACHE"})
        failure = ""
        try:
            sit(page, place)
        except (ContestError, OSError, subprocess.SubprocessError) as error:
            failure = str(error)
            page.add("", "", f"FAILED: {failure}")
    if options.output is not None:
        options.output.write_text(page.text)
    else:
        print(page.text)
    if failure:
        print(failure, file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())

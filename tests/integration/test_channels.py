"""Consoles beyond the first, with Linux's own front end: as a socket and as a pseudo-terminal."""

import os
import re
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.dev import initramfs
from ring3.libs.xenstore import XenstoreClient
from ring3.tools import channels
from ring3.tools.channels import Channel
from support.bare_domain import BareDomain, bare_domain
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]

_SCRIPT = b"""
cat /sys/bus/xen/devices/console-1/nodename
for n in 1 2; do
    stty -F /dev/hvc$n raw -echo
    ( while read -r line; do echo "hvc$n heard $line"; [ "$line" = quit ] && break; done ) < /dev/hvc$n > /dev/hvc$n &
done
echo CHANNELS-READY
wait
"""


@pytest.fixture
def guest(ring3: Ring3, cloud_kernel: Path, guest_cache: Path, tmp_path: Path) -> Iterator[Ring3]:
    """A machine with a Linux domain that answers on two channels."""
    ramdisk = initramfs.build(guest_cache, "channels", {"test/script": _SCRIPT})
    assert ring3("up", "--memory", "320").exit_code == 0
    done = ring3(
        *("create", "--kernel", cloud_kernel, "--ramdisk", ramdisk, "--memory", "256", "--name", "guest"),
        *("--cmdline", "console=hvc0 quiet ring3.run=/test/script"),
        *("--channel", f"connection=socket,path={tmp_path / 'agent'},name=org.example.agent"),
        *("--channel", "connection=pty,name=second"),
    )
    assert done.exit_code == 0, done.describe()
    wait_for(ring3, "CHANNELS-READY")
    yield ring3


def wait_for(ring3: Ring3, text: str) -> None:
    deadline = time.monotonic() + 120
    while text not in (log := ring3("console", "guest", "--log").stdout):
        assert time.monotonic() < deadline, log[-3000:]
        time.sleep(0.2)


def ask(fd: int, line: str, answer: str) -> bytes:
    """Sends a line, reads until the answer has come, and returns what was read."""
    os.write(fd, f"{line}\n".encode())
    seen = b""
    deadline = time.monotonic() + 30
    while answer.encode() not in seen:
        assert select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0], seen
        data = os.read(fd, 4096)
        assert data, seen
        seen += data
    return seen


def test_channels_carry_bytes_both_ways_and_outlive_the_daemon(guest: Ring3, tmp_path: Path) -> None:
    run_dir = Path(guest.environment["RING3_RUN_DIR"])
    path = tmp_path / "agent"
    with socket.socket(socket.AF_UNIX) as agent:
        agent.connect(str(path))
        ask(agent.fileno(), "one", "hvc1 heard one")
    with socket.socket(socket.AF_UNIX) as agent:
        agent.connect(str(path))
        assert b"one" not in ask(agent.fileno(), "two", "hvc1 heard two"), "what was said before is not said again"
    device = guest("console", "guest", "--tty", "-n", "2").stdout.strip()
    terminal = os.open(device, os.O_RDWR | os.O_NOCTTY)
    ask(terminal, "three", "hvc2 heard three")
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        assert xenstore.read_text("/local/domain/1/device/console/1/name") == "org.example.agent"
        assert xenstore.read_text("/local/domain/0/backend/console/1/1/state") == "4"
        for service in ("consoled", "xenstored"):
            pid = int((run_dir / f"{service}.pid").read_text())
            os.kill(pid, 9)
            deadline = time.monotonic() + 30
            while not (text := (run_dir / f"{service}.pid").read_text().strip()) or int(text) == pid:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            ask(terminal, f"after {service}", f"hvc2 heard after {service}")
        reader = guest.start("console", "guest", "-n", "1")
        assert reader.stdin is not None
        reader.stdin.write(b"quit\n")
        reader.stdin.flush()
        ask(terminal, "quit", "hvc2 heard quit")
        output, _errors = reader.communicate(timeout=60)
        assert re.search(rb"hvc1 heard two.*hvc1 heard quit", output, re.DOTALL), output
        deadline = time.monotonic() + 30
        while path.is_symlink() or xenstore.read_optional("/local/domain/0/backend/console/1") is not None:
            assert time.monotonic() < deadline, "the domain has ended and left something behind"
            time.sleep(0.1)
    os.close(terminal)
    assert not list((run_dir / "console").glob("*.sock"))


def test_front_end_that_writes_nonsense_harms_itself_only(guest: Ring3) -> None:
    """What the domain could write, domain 0 writes in its place."""
    run_dir = Path(guest.environment["RING3_RUN_DIR"])
    front, back = "/local/domain/1/device/console/2", "/local/domain/0/backend/console/1/2"
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        pid = xenstore.read_text("/tool/consoled")
        for name, values in (
            ("state", ["", "x", "-1", "99", "6", "3", "7" * 300]),
            ("ring-ref", ["", "-1", "999999999999", "4294967295", "\xff"]),
            ("port", ["0", "65536", "none", "4294967295"]),
        ):
            for value in values:
                xenstore.write(f"{front}/{name}", value)
                for state in ("5", "6", "1", "3"):
                    xenstore.write(f"{front}/state", state)
        xenstore.rm(front)
        xenstore.rm(back)
        with socket.socket(socket.AF_UNIX) as agent:
            agent.connect(str(run_dir / "console" / "1-1.sock"))
            ask(agent.fileno(), "still here", "hvc1 heard still here")
        assert xenstore.read_text("/tool/consoled") == pid, "the daemon has not ended over it"


@pytest.mark.parametrize(
    "spec",
    ["", "name=x", "connection=pty", "connection=socket,name=x", "connection=pty,name=x,path=/p", "a=b", "name=/"],
)
def test_specs_that_say_nothing_are_refused(ring3: Ring3, cloud_kernel: Path, spec: str) -> None:
    done = ring3("run", "--kernel", cloud_kernel, "--channel", spec)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "channel" in done.stderr


def test_channel_is_found_though_the_domain_is_introduced_later(ring3: Ring3) -> None:
    """`create` writes its nodes first; on a busy host the console daemon looks at them before it may serve them."""
    assert ring3("up", "--memory", "64").exit_code == 0

    def write_nodes(domain: BareDomain) -> None:
        channel = Channel.parse("connection=pty,name=early")
        domain.xenstore.transaction(
            lambda tx_id: channels.write_nodes(domain.xenstore, domain.domid, (channel,), tx_id=tx_id)
        )
        time.sleep(0.5)

    with bare_domain(ring3, write_nodes) as domain:
        domain.wait_for_state(f"/local/domain/0/backend/console/{domain.domid}/1", "2")
        domain.xenstore.rm(f"/local/domain/0/backend/console/{domain.domid}")

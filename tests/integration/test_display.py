"""The kernel's framebuffer console in a picture, by VNC and by `ring3 screenshot`; what is typed reaches the guest."""

import os
import random
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from PIL import Image

from ring3.dev import initramfs
from ring3.libs.xenstore import XenstoreClient
from support import disks, screen_text
from support.command import Ring3
from support.vnc import VncClient, VncError

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]

NR_KILLS = 20
Connect = Callable[..., VncClient]
_SCRIPT = f"""
cat > /alphabet <<'END'
{screen_text.ALPHABET}
END
exec < /dev/tty1 > /dev/tty1 2>&1
printf '\\033[2J\\033[H'
cat /alphabet
echo The picture of a domain
while read -r line; do
    [ -n "$ticks" ] || echo "heard $line"
    echo "console heard $line" > /dev/hvc0
    [ "$line" = quit ] && break
    if [ "$line" = tick ]; then
        ticks=1; stty -echo  # nothing scrolls: the alphabet is to be seen
        while sleep 0.1; do n=$((n + 1)); printf '\\0337\\033[25;1Htick %d \\0338' $n; done &
    fi
done
""".encode()


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Connects VNC clients, which are closed in the end."""
    with ExitStack() as stack:

        def new(port: int, password: str = "") -> VncClient:
            client = VncClient(port, password)
            stack.callback(client.close)
            return client

        yield new


def boot(ring3: Ring3, kernel: Path, cache: Path, spec: str) -> Path:
    """Starts a guest with a framebuffer, and waits for its text; returns the state directory."""
    ramdisk = initramfs.build(cache, "display", {"test/script": _SCRIPT})
    assert ring3("up", "--memory", "320").exit_code == 0
    done = ring3(
        *("create", "--kernel", kernel, "--ramdisk", ramdisk, "--memory", "256", "--name", "guest"),
        *("--cmdline", "console=tty0 console=hvc0 quiet ring3.run=/test/script", "--vfb", spec),
    )
    assert done.exit_code == 0, done.describe()
    return Path(ring3.environment["RING3_RUN_DIR"])


def port_of(run_dir: Path) -> int:
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        return int(xenstore.read_text("/local/domain/1/console/vnc-port"))


def wait_for_text(client: VncClient, text: str) -> str:
    """Looks until the picture says something; returns all that it says."""
    deadline = time.monotonic() + 90
    picture = client.update(is_incremental=False)
    while text not in (found := screen_text.read(picture) or ""):
        assert time.monotonic() < deadline, found
        picture = client.update(is_incremental=True)
    return found


def wait_for_console(run_dir: Path, text: bytes) -> None:
    deadline = time.monotonic() + 60
    while text not in (run_dir / "console" / "1.log").read_bytes():
        assert time.monotonic() < deadline, (run_dir / "console" / "1.log").read_bytes()[-1000:]
        time.sleep(0.1)


def test_text_is_seen_and_keys_are_heard(
    ring3: Ring3, main_kernel: Path, guest_cache: Path, tmp_path: Path, connect: Connect
) -> None:
    run_dir = boot(ring3, main_kernel, guest_cache, "vnc=1,vncpasswd=secret")
    port = port_of(run_dir)
    with pytest.raises(VncError, match="wrong password"):
        connect(port, "wrong")
    client = connect(port, "secret")
    assert client.name == "guest"
    wait_for_text(client, "The picture of a domain")
    assert (client.width, client.height) == (800, 600)
    client.type('Hello, VNC! ~{}|:"<>? 0123456789\n')
    wait_for_text(client, 'heard Hello, VNC! ~{}|:"<>? 0123456789')
    wait_for_console(run_dir, b'console heard Hello, VNC! ~{}|:"<>? 0123456789')
    client.point(10, 20, 1)
    client.point(700, 500, 0)

    shot = tmp_path / "shot.png"
    done = ring3("screenshot", "guest", shot)
    assert done.exit_code == 0, done.describe()
    with Image.open(shot) as picture:
        assert picture.size == (800, 600)
        assert "The picture of a domain" in (screen_text.read(picture) or "")

    client.type("quit\n")
    wait_for_console(run_dir, b"console heard quit")


def test_guest_goes_on_while_the_service_is_killed(
    ring3: Ring3, main_kernel: Path, guest_cache: Path, connect: Connect
) -> None:
    """The guest draws without end, and a viewer types: viewers come back, and the picture and the keyboard go on."""
    run_dir = boot(ring3, main_kernel, guest_cache, "vnc=1")
    port = port_of(run_dir)
    client = connect(port)
    wait_for_text(client, "The picture of a domain")
    client.type("tick\n")
    wait_for_text(client, "tick 1")
    chance = random.Random(5)
    last = 0
    for number in range(NR_KILLS):
        client.type(f"lost {number}\n")  # it may come, or half of it
        time.sleep(chance.random() * 0.2)
        pid = int((run_dir / "displayd.pid").read_text())
        os.kill(pid, 9)
        deadline = time.monotonic() + 30
        while (run_dir / "displayd.pid").read_text().strip() in (str(pid), ""):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        client = connect(port)
        deadline = time.monotonic() + 60
        while True:
            client.type(f"\nagain {number}\n")
            log = (run_dir / "console" / "1.log").read_bytes()
            text = screen_text.read(client.update(is_incremental=False)) or ""
            ticks = [int(tick) for tick in re.findall(r"tick (\d+)", text)]
            if ticks and ticks[-1] > last and b"console heard again %d\r" % number in log:
                last = ticks[-1]
                break
            assert time.monotonic() < deadline, (number, last, text, log[-500:])
    client.type("\nquit\n")
    wait_for_console(run_dir, b"console heard quit")
    log = (run_dir / "displayd.log").read_text()
    assert "Traceback" not in log, log[-3000:]


def test_front_end_that_lies_shows_nothing_of_others(
    ring3: Ring3, main_kernel: Path, guest_cache: Path, connect: Connect
) -> None:
    """What the domain could write, domain 0 writes in its place."""
    run_dir = boot(ring3, main_kernel, guest_cache, "vnc=1")
    client = connect(port_of(run_dir))
    wait_for_text(client, "The picture of a domain")
    front = "/local/domain/1/device/vfb/0"
    pid = (run_dir / "displayd.pid").read_text()
    with XenstoreClient.connect(run_dir / "xenstore") as xenstore:
        page_ref = xenstore.read_text(f"{front}/page-ref")
        for name, values in (
            ("page-ref", ["0", "1", "7" * 15, str(int(page_ref) + (1 << 40)), "-1", "x", ""]),
            ("event-channel", ["0", "4294967295", "x"]),
            ("protocol", ["x86_32-abi"]),
        ):
            good = xenstore.read_text(f"{front}/{name}")
            for value in values:
                for state, text in (("1", value), ("3", value)):
                    xenstore.write(f"{front}/{name}", text)
                    xenstore.write(f"{front}/state", state)
                time.sleep(0.05)
            if name == "page-ref":
                xenstore.write(f"{front}/page-ref", "0")
                done = ring3("screenshot", "guest", run_dir / "none.png")
                assert done.exit_code == 1 and "not its own" in done.stderr, done.describe()
            xenstore.write(f"{front}/{name}", good)
    assert (run_dir / "displayd.pid").read_text() == pid, "the daemon has not ended over it"
    assert ring3("list").exit_code == 0


def test_shutdown_does_not_wait_for_the_back_ends(
    ring3: Ring3, main_kernel: Path, guest_cache: Path, tmp_path: Path
) -> None:
    """A kernel gives each device that is not closed in the right order five seconds."""
    script = b"for i in $(seq 100); do [ -e /dev/fb0 ] && break; sleep 0.1; done; sleep 0.5\n"
    ramdisk = initramfs.build(guest_cache, "shutdown", {"test/script": script})
    done = ring3(
        *("run", "--kernel", main_kernel, "--ramdisk", ramdisk, "--memory", "256", "--vfb", "vnc=1,vncunused=1"),
        *("--channel", "connection=pty,name=one", "--vif", "network=switch", "--p9", f"tag=t,path={tmp_path}"),
        *("--disk", f"{disks.image(tmp_path / 'image', 4)},raw,xvda,rw"),
        *("--cmdline", "console=hvc0 ring3.run=/test/script"),
        timeout_s=120,
    )
    assert done.exit_code == 0, done.describe()
    assert "timeout closing device" not in done.stdout, done.describe()


@pytest.mark.parametrize("spec", ["vnc=2", "sdl=1", "vnclisten=nowhere", "vncpasswd=muchtoolong", "keymap=xx", "x=y"])
def test_specs_that_cannot_be_are_refused(ring3: Ring3, main_kernel: Path, spec: str) -> None:
    done = ring3("run", "--kernel", main_kernel, "--vfb", spec)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "vfb" in done.stderr

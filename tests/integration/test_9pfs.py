"""A stock kernel's own client on a shared host directory: files of all kinds, locks, restarts, and no way out."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ring3.dev import initramfs, modules
from support import images
from support.command import Ring3

pytestmark = [pytest.mark.guest, pytest.mark.stock, pytest.mark.timeout(300)]

_MOUNT = b"mkdir -p /mnt && mount -t 9p -o trans=xen,version=9p2000.L share /mnt || echo MOUNT-FAILED\n"

Boot = Callable[..., str]
_SOURCES = Path(__file__).parent.parent / "support" / "c"
NR_KILLS = 20


@pytest.fixture
def boot(ring3: Ring3, main_kernel: Path, guest_cache: Path, tmp_path: Path) -> Boot:
    """Runs a script in a guest with a share of that directory; returns what it printed."""

    locks = images.compile_static(_SOURCES / "locks.c", tmp_path / "locks").read_bytes()

    def run(path: Path, script: bytes, options: str = "") -> str:
        files = modules.files(guest_cache, main_kernel, ["9pnet_xen", "9p"])
        ramdisk = initramfs.build(guest_cache, "p9", {**files, "test/script": _MOUNT + script, "test/locks": locks})
        done = ring3(
            *("run", "--kernel", main_kernel, "--ramdisk", ramdisk, "--memory", "256"),
            *("--cmdline", "console=hvc0 quiet ring3.run=/test/script", "--p9", f"tag=share,path={path}{options}"),
            timeout_s=200,
        )
        assert done.exit_code == 0, done.describe()
        assert "MOUNT-FAILED" not in done.stdout, done.describe()
        return done.stdout.replace("\r\n", "\n")

    return run


_EVERYTHING = rb"""
cd /mnt
echo hello > hello; cat hello from-host
mkdir -p a/b/c; cp hello a/b/c/copy; mv a/b/c/copy a/moved; ln a/moved a/hard; ln -s ../hello a/soft
cat a/soft a/hard; stat -c '%h %F' a/moved; readlink a/soft
chmod 751 a/moved; stat -c '%a' a/moved
touch -d '2001-02-03 04:05:06' a/moved; stat -c '%Y' a/moved
rm a/hard; rmdir a/b/c; find . | sort | tr '\n' ' '; echo
dd if=/dev/urandom of=/tmp/large bs=1M count=24 2>/dev/null
cp /tmp/large large; sync; dd if=large of=/tmp/back bs=1M 2>/dev/null; cmp /tmp/large /tmp/back && echo SAME
md5sum large
dd if=/dev/zero of=synced bs=4k count=8 conv=fsync 2>/dev/null && echo FSYNCED
truncate -s 100 large; stat -c '%s' large
i=0; while [ $i -lt 300 ]; do : > a/b/file$i; i=$((i + 1)); done; ls a/b | wc -l
mv a/b a/renamed && ls a/renamed | wc -l; rm -r a/renamed
/test/locks /mnt/lock
exec 8>gone; echo data >&8; rm gone; echo more >&8; exec 8>&-
ls gone 2>&1; df /mnt | tail -1 | wc -w
"""


def test_stock_kernel_uses_files_of_all_kinds(boot: Boot, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "from-host").write_text("from the host\n")
    output = boot(share, _EVERYTHING)
    lines = output[output.index(initramfs.MARKER) :].split("\n")
    assert lines[1:3] == ["hello", "from the host"], output
    assert lines[3:9] == ["hello", "hello", "2 regular file", "../hello", "751", "981173106"], output
    assert lines[9].split() == [".", "./a", "./a/b", "./a/moved", "./a/soft", "./from-host", "./hello"]
    assert lines[10] == "SAME"
    assert lines[12:16] == ["FSYNCED", "100", "300", "300"]
    assert lines[16:20] == ["BUSY", "OTHER-PART", "HOLDER 0..9", "GOT"]
    assert "No such file" in lines[20] and lines[21].strip() == "6"
    assert (share / "hello").read_text() == "hello\n"
    assert (share / "a" / "moved").stat().st_mode & 0o777 == 0o751
    assert (share / "large").stat().st_size == 100
    assert not (share / "gone").exists() and not (share / "a" / "renamed").exists()


def test_no_way_leads_out_of_the_directory(boot: Boot, tmp_path: Path) -> None:
    share, secret = tmp_path / "share", tmp_path / "secret"
    share.mkdir()
    secret.write_text("not for domains\n")
    (share / "absolute").symlink_to(secret)
    (share / "relative").symlink_to("../secret")
    (share / "up").symlink_to("..")
    os.mkfifo(share / "fifo")
    script = rb"""
cd /mnt
echo seen $(ls | sort)
cat absolute; cat relative; cat up/secret; ls ../mnt/../mnt/.. | grep -c secret
mknod null c 1 3 && echo MADE-DEVICE; mknod disk b 8 0 && echo MADE-DEVICE
ln absolute linked && readlink linked
( echo from the pipe > fifo & cat fifo )
"""
    output = boot(share, script)
    assert "seen absolute fifo relative up" in output
    assert "not for domains" not in output and "MADE-DEVICE" not in output, output
    assert str(secret) in output, "the link itself can be linked and read"
    assert "from the pipe" in output, "a pipe is the guest's own, and no channel to the host"
    assert not any(path.is_char_device() or path.is_block_device() for path in share.iterdir())


def test_share_for_reading_stays_as_it_is(boot: Boot, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    (share / "file").write_text("as it was\n")
    script = rb"""
cd /mnt; cat file
echo x > file; echo x > new; rm file; mkdir d; mv file g; chmod 777 file; ln -s file s; touch file
"""
    output = boot(share, script, ",readonly=1")
    assert "as it was" in output and output.count("Read-only file system") >= 7, output
    assert [path.name for path in share.iterdir()] == ["file"] and (share / "file").read_text() == "as it was\n"


def test_mapped_credentials_are_the_clients_own(boot: Boot, tmp_path: Path) -> None:
    share = tmp_path / "share"
    share.mkdir()
    script = rb"""
cd /mnt
echo x > file; chown 1234:567 file; chmod 4711 file; mknod null c 1 3; ln -s file soft; mkdir -m 700 d; chown 5:6 d
stat -c '%n %u %g %a %F' file null soft d; stat -c '%t %T' null; cat soft; ls -l | wc -l
"""
    output = boot(share, script, ",security_model=mapped")
    for line in (
        "file 1234 567 4711 regular file",
        "null 0 0 644 character special file",
        "soft 0 0 777 symbolic link",
        "d 5 6 700 directory",
        "1 3\nx\n",
    ):
        assert line in output, output
    assert (share / "file").stat().st_mode & 0o7777 == 0o600 and (share / "null").is_file()
    assert (share / "soft").read_text() == "file" and not (share / "soft").is_symlink()


_UNTIL_STOPPED = rb"""
cd /mnt; exec 7>open; i=0
while [ ! -e stop ]; do
    i=$((i + 1))
    echo data $i > f$((i % 7)) || echo WRONG write; grep -qx "data $i" f$((i % 7)) || echo WRONG data $i
    mkdir d || [ -d d ] || echo WRONG mkdir; mv d e || [ -d e ] || echo WRONG mv
    rmdir e || [ ! -e e ] || echo WRONG rmdir
    echo line $i >> log || echo WRONG log; echo open $i >&7 || echo WRONG open
    echo round $i
done
exec 7>&-
echo ROUNDS $i LINES $(wc -l < log) OPEN $(wc -l < open)
"""


def test_guest_goes_on_while_the_service_is_killed(
    ring3: Ring3, main_kernel: Path, guest_cache: Path, tmp_path: Path
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    files = modules.files(guest_cache, main_kernel, ["9pnet_xen", "9p"])
    ramdisk = initramfs.build(guest_cache, "p9", {**files, "test/script": _MOUNT + _UNTIL_STOPPED})
    assert ring3("up", "--memory", "320").exit_code == 0
    done = ring3(
        *("create", "--kernel", main_kernel, "--ramdisk", ramdisk, "--memory", "256", "--name", "guest"),
        *("--cmdline", "console=hvc0 quiet ring3.run=/test/script", "--p9", f"tag=share,path={share}"),
    )
    assert done.exit_code == 0, done.describe()
    run_dir = Path(ring3.environment["RING3_RUN_DIR"])
    log = run_dir / "console" / "1.log"
    for number in range(NR_KILLS):
        wait_for_round(log, 2 + number % 3)
        service = int((run_dir / "9pfsd.pid").read_text())
        if number % 4 == 0:
            os.kill(service, 9)
        else:
            os.kill(int(Path(f"/proc/{service}/task/{service}/children").read_text().split()[0]), 9)
    wait_for_round(log, 5)
    (share / "stop").touch()
    deadline = time.monotonic() + 60
    while not (found := re.search(rb"ROUNDS (\d+) LINES (\d+) OPEN (\d+)", log.read_bytes())):
        assert time.monotonic() < deadline, log.read_bytes()[-500:]
        time.sleep(0.1)
    text = log.read_text(errors="replace")
    assert "WRONG" not in text and "error" not in text, text[-3000:]
    rounds, lines, through_open = map(int, found.groups())
    assert rounds == lines == through_open


def wait_for_round(log: Path, nr_more: int) -> None:
    """Waits until the guest has gone on."""

    def current() -> int:
        found = re.findall(rb"^round (\d+)\r$", log.read_bytes()[-4096:], re.MULTILINE)
        return int(found[-1]) if found else 0

    wanted = current() + nr_more
    deadline = time.monotonic() + 90
    while current() < wanted:
        assert time.monotonic() < deadline, f"the guest has stopped: {log.read_bytes()[-800:]!r}"
        time.sleep(0.01)


@pytest.mark.parametrize(
    "spec",
    ["tag=x", "path=/tmp", "tag=a/b,path=/tmp", "tag=x,path=/none", "tag=x,path=/tmp,security_model=passthrough"],
)
def test_specs_that_cannot_be_are_refused(ring3: Ring3, main_kernel: Path, spec: str) -> None:
    done = ring3("run", "--kernel", main_kernel, "--p9", spec)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "p9" in done.stderr

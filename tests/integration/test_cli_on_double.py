"""The `ring3` command with all its processes, on the double of the core: what does not depend on a CPU.

The guest is a function of support/fake_core.py that obeys its command line; the kernel file is only built.
"""

import contextlib
import os
import pty
import re
import shutil
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.libs.xenstore import XenstoreClient
from support import guests

TESTS = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc builds the kernel file (apt install gcc)")


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kernel file that the builder takes."""
    return guests.build("hello", tmp_path_factory.mktemp("kernel"))


class Command:
    """The command with a state directory of its own."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.environment = {**os.environ, "PYTHONPATH": str(TESTS), "RING3_RUN_DIR": str(run_dir)}

    def start(self, *arguments: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "support.fake_core", *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
        )

    def __call__(self, *arguments: str | Path, stdin: bytes = b"", timeout_s: float = 30) -> tuple[int, str, str]:
        """Returns (exit code, standard output, standard error)."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(stdin, timeout_s)
        except subprocess.TimeoutExpired:
            process.terminate()
            out, err = process.communicate()
            raise AssertionError(f"{arguments} did not end: {out!r} {err!r}") from None
        return process.returncode, out.decode(), err.decode()

    def xenstore(self) -> XenstoreClient:
        return XenstoreClient.connect(self.run_dir / "xenstore")


@pytest.fixture
def ring3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    run_dir = tmp_path_factory.mktemp("r")
    run_dir.chmod(0o700)
    command = Command(run_dir)
    yield command
    command("down")


@pytest.fixture
def up(ring3: Command) -> Command:
    code, _out, err = ring3("up", "--memory", "128")
    assert code == 0, err
    return ring3


def wait_until(condition, limit_s: float = 10) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def resources(command: Command) -> list[str]:
    """Returns what `ring3 info` says, but for the threads: those of processes that end go a bit later."""
    return [line for line in command("info")[1].splitlines() if not line.startswith("threads")]


# -- run


@pytest.mark.parametrize(
    ("words", "options", "code", "output"),
    [
        ("print=hello poweroff", [], 0, "hello\r\n"),
        ("print=again reboot", ["--on-reboot", "destroy"], 0, "again\r\n"),
        ("print=oops crash", [], 3, "oops\r\n"),
        ("xenstore=data/x=1 xenstore=name=evil poweroff", [], 0, "xenstore:11:OK\r\nxenstore:16:EACCES\r\n"),
    ],
)
def test_run_ends_as_the_guest_did(
    ring3: Command, kernel: Path, words: str, options: list[str], code: int, output: str
) -> None:
    got, out, err = ring3("run", "--kernel", kernel, "--memory", "16", "--cmdline", words, *options)
    assert (got, out) == (code, output), err
    assert ("RIP" in err) == (code == 3)
    assert not list(ring3.run_dir.glob("run-*"))


def test_a_megabyte_of_last_words_is_not_lost(ring3: Command, kernel: Path) -> None:
    words = " ".join(["print=" + "x" * 98] * 9) + " poweroff"
    _code, out, _err = ring3("run", "--kernel", kernel, "--memory", "16", "--cmdline", words)
    assert out == ("x" * 98 + "\r\n") * 9


def test_run_passes_input(ring3: Command, kernel: Path) -> None:
    code, out, _err = ring3(
        "run", "--kernel", kernel, "--memory", "16", "--cmdline", "echo poweroff", stdin=b"one\ntwo\nquit\n"
    )
    assert (code, out) == (0, "echo:one\r\necho:two\r\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_run_with_closed_standard_descriptors(ring3: Command, kernel: Path, closed: str) -> None:
    command = f'"$0" -m support.fake_core run --kernel {kernel} --memory 16 --cmdline "print=hello poweroff" {closed}'
    done = subprocess.run(["sh", "-c", command, sys.executable], env=ring3.environment, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (b"" if ">&-" in closed.replace("2>&-", "") else b"hello\r\n")


def test_terminal_is_raw_while_the_guest_runs_and_ctrl_bracket_leaves(ring3: Command, kernel: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        arguments = ["run", "--kernel", str(kernel), "--memory", "16", "--cmdline", "print=ready echo poweroff"]
        os.execve(sys.executable, [sys.executable, "-m", "support.fake_core", *arguments], ring3.environment)  # noqa: S606
    before = termios.tcgetattr(terminal)
    seen = b""
    while b"ready" not in seen:
        seen += os.read(terminal, 1000)
    assert not termios.tcgetattr(terminal)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
    os.write(terminal, b"a\x03b\n")
    while b"echo:a\x03b" not in seen:
        seen += os.read(terminal, 1000)
    os.write(terminal, b"\x1d")
    with contextlib.suppress(OSError):  # a terminal whose last user is gone
        while os.read(terminal, 1000):
            pass
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
    assert termios.tcgetattr(terminal) == before
    os.close(terminal)


def test_reboot_builds_anew(ring3: Command, kernel: Path) -> None:
    process = ring3.start("run", "--kernel", kernel, "--memory", "16", "--cmdline", "print=boot sleep=0.1 reboot")
    assert process.stdout is not None
    assert [process.stdout.readline() for _boot in range(3)] == [b"boot\r\n"] * 3
    process.terminate()
    process.communicate(timeout=20)
    assert process.returncode == 4
    assert not list(ring3.run_dir.glob("run-*"))


def test_destroyed_from_outside_exits_4(ring3: Command, kernel: Path) -> None:
    process = ring3.start("run", "--kernel", kernel, "--memory", "16", "--cmdline", "print=up sleep=20")
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\r\n"
    (private,) = ring3.run_dir.glob("run-*")
    code, _out, err = Command(private)("destroy", "1")
    assert code == 0, err
    _out, errors = process.communicate(timeout=20)
    assert process.returncode == 4, errors


def test_killed_command_takes_its_processes_along(ring3: Command, kernel: Path) -> None:
    process = ring3.start("run", "--kernel", kernel, "--memory", "16", "--cmdline", "print=up sleep=60")
    assert process.stdout is not None
    process.stdout.readline()
    (private,) = ring3.run_dir.glob("run-*")
    pid = int((private / "ring3d.pid").read_text())
    process.kill()
    process.communicate()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_closed_output_ends_the_guest(ring3: Command, kernel: Path) -> None:
    process = ring3.start("run", "--kernel", kernel, "--memory", "16", "--cmdline", "forever")
    assert process.stdout is not None
    process.stdout.read(1000)
    process.stdout.close()
    assert process.wait(20) == 4
    for stream in (process.stdin, process.stderr):
        stream.close()  # type: ignore[union-attr]


# -- what cannot start


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel", "/none"], "/none"),
        (["--kernel", "KERNEL", "--ramdisk", "/none"], "/none"),
        (["--kernel", "KERNEL", "--memory", "1000000000"], "memory"),
        (["--kernel", "KERNEL", "--memory", "1"], "memory"),
        (["--kernel", "KERNEL", "--vcpus", "99"], "vcpus"),
        (["--kernel", "KERNEL", "--name", "a b"], "name"),
    ],
)
def test_run_that_cannot_start_says_why(ring3: Command, kernel: Path, arguments: list[str], words: str) -> None:
    code, out, err = ring3("run", *[str(kernel) if word == "KERNEL" else word for word in arguments])
    assert (code, out) == (1, "")
    assert words in err
    assert "Traceback" not in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["explode"],
        ["run"],
        ["run", "--kernel", "k", "--memory", "-1"],
        ["run", "--kernel", "k", "--vcpus", "0"],
        ["up", "x"],
    ],
)
def test_bad_usage_exits_2(ring3: Command, arguments: list[str]) -> None:
    code, out, _err = ring3(*arguments)
    assert (code, out) == (2, "")


@pytest.mark.parametrize("command", [["list"], ["down"], ["dmesg"], ["info"], ["console", "x"], ["destroy", "x"]])
def test_without_a_hypervisor_commands_say_so(ring3: Command, command: list[str]) -> None:
    code, out, err = ring3(*command)
    assert (code, out) == (1, "")
    assert "no hypervisor is running" in err


# -- up and down


def test_second_up_is_refused_and_down_cleans(up: Command) -> None:
    code, _out, err = up("up", "--memory", "64")
    assert code == 1
    assert "already" in err
    assert up("down")[0] == 0
    assert not {"control", "xenstore", "ring3d.pid"} & {path.name for path in up.run_dir.iterdir()}
    assert up("up", "--memory", "64")[0] == 0


def test_leftovers_of_a_killed_hypervisor_do_not_matter(up: Command) -> None:
    pid = int((up.run_dir / "ring3d.pid").read_text())
    os.kill(pid, 9)
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    assert (up.run_dir / "control").exists()
    assert up("list")[0] == 1
    code, _out, err = up("up", "--memory", "64")
    assert code == 0, err
    assert up("list")[0] == 0


def test_domains_in_the_background(up: Command, kernel: Path) -> None:
    create = ["create", "--kernel", kernel, "--memory", "16"]
    assert up(*create, "--name", "one", "--cmdline", "print=hi echo poweroff")[0] == 0
    assert up(*create, "--name", "two", "--cmdline", "forever")[0] == 0
    code, _out, err = up(*create, "--name", "one")
    assert (code, "exists already" in err) == (1, True)
    lines = up("list")[1].splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["Domain-0", "0", "0"], ["one", "1", "16"], ["two", "2", "16"]]
    with up.xenstore() as xenstore:
        assert xenstore.read_text("/local/domain/1/name") == "one"
        assert xenstore.read_text("/local/domain/1/memory/target") == "16384"
        assert xenstore.get_perms("/local/domain/1") == ["n0", "r1"]
        assert xenstore.get_perms("/local/domain/1/control/shutdown") == ["n1"]
    code, out, _err = up("console", "one", stdin=b"ping\nquit\n")
    assert (code, out) == (0, "hi\r\necho:ping\r\n"), "the backlog first, then what follows, to the end"
    wait_until(lambda: "one" not in up("list")[1])
    assert up("destroy", "two")[0] == 0
    assert "two" not in up("list")[1]
    with up.xenstore() as xenstore:
        assert xenstore.directory("/local/domain") == ["0"]
        assert xenstore.directory("/vm") == []
    assert not list((up.run_dir / "console").glob("*.sock"))


def test_rebooting_domain_is_built_anew(up: Command, kernel: Path) -> None:
    create = ["create", "--kernel", kernel, "--memory", "16", "--name"]
    assert up(*create, "phoenix", "--cmdline", "sleep=0.3 reboot")[0] == 0
    wait_until(lambda: any(re.match(r"phoenix +[3-9]", line) for line in up("list")[1].splitlines()))
    assert up(*create, "mortal", "--cmdline", "reboot", "--on-reboot", "destroy")[0] == 0
    wait_until(lambda: "mortal" not in up("list")[1])
    wait_until(lambda: up("destroy", "phoenix")[0] == 0)


def test_domains_leave_nothing_behind(up: Command, kernel: Path) -> None:
    def once() -> None:
        assert up("create", "--kernel", kernel, "--memory", "16", "--name", "d", "--cmdline", "sleep=60")[0] == 0
        assert up("destroy", "d")[0] == 0

    once()
    before = resources(up)
    for _again in range(5):
        once()
    wait_until(lambda: resources(up) == before)


def test_failed_create_leaves_nothing_behind(up: Command, kernel: Path) -> None:
    before = resources(up)
    code, _out, err = up("create", "--kernel", kernel, "--memory", "128")
    assert code == 1
    assert "page" in err or "memory" in err
    wait_until(lambda: resources(up) == before)


def test_hypercall_table_and_messages(up: Command) -> None:
    lines = up("info", "--hypercalls")[1].splitlines()
    assert any(line.split()[:4] == ["36.1", "0", "partial", "domctl/createdomain"] for line in lines)
    assert "Ring3: 128 MiB" in up("dmesg")[1]
    assert "Ring3: 128 MiB" in up("dmesg", "--clear")[1]
    assert up("dmesg")[1] == ""


def test_domain_0_cannot_be_destroyed(up: Command) -> None:
    code, _out, err = up("destroy", "0")
    assert (code, "domain 0" in err) == (1, True)

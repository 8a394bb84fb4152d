"""The xenstore tools beside Debian's own (package xenstore-utils): the same store, the same words, the same answers."""

import os
import pty
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ring3.libs.xenstore import XenstoreClient
from support.command import Finished, Ring3

pytestmark = pytest.mark.guest
STOCK = shutil.which("xenstore-ls") is not None
needs_stock = pytest.mark.skipif(not STOCK, reason="Debian's tools are missing (apt install xenstore-utils)")

SAME = [
    "ls /t",
    "ls -f /t",
    "ls -p /t",
    "ls -fp /t",
    "ls -s /t/b",
    "ls /t/b /t/a",
    "ls /none",
    "ls -q /t/b",
    "ls --frob /t/b",
    "ls -h",
    "ls",
    "list /t",
    "list -p /t /t/b",
    "list /none",
    "list",
    "read /t/a /t/b/c",
    "read -p /t/a /t/bin",
    "read /t/a -p",
    "read -R /t/bin",
    "read -pR /t/a",
    "read /none",
    "read /t/a /none /t/b",
    "read",
    "read --help",
    "exists /t/a",
    "exists /none",
    "exists /t/a /none",
    "exists -p /t/a",
    "exists",
    "chmod /t/a n0 r5 b7",
    "chmod -r /t/b n0 r7",
    "chmod -u /t/b/c b0",
    "chmod /t/a r5x w",
    "chmod /none n0",
    "chmod /t/a zz",
    "chmod /t/a r-1",
    "chmod /t/a",
    "chmod",
    "write /t/x 1 /t/y/z 2",
    r"write /t/x a\08b\0c\12d\1234e\x1f2g\xzz\8\7\t\n\"\q\\",
    "write /t/x end\\",
    r"write -R /t/x a\x09b",
    "write /t/x",
    "write",
    "write bad.path 1",
    "rm /t/a /t/b",
    "rm /none",
    "rm /none/x",
    "rm -t /d/e/f/g",
    "rm -t /d/h",
    "rm",
    "watch",
    "watch -n 0 /t",
    "watch -n x /t",
    "watch -n 2 /t/a /t/b",
    "watch -n1 /t/a",
]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ring3]:
    run_dir = tmp_path_factory.mktemp("run")
    run_dir.chmod(0o700)
    ring3 = Ring3(run_dir)
    ring3.environment["XENSTORED_PATH"] = str(run_dir / "xenstore")
    assert ring3("up", "--memory", "64").exit_code == 0
    yield ring3
    ring3("down")


@pytest.fixture
def store(machine: Ring3) -> Iterator[XenstoreClient]:
    """The store, with the nodes that the commands are about and no others."""
    with XenstoreClient.connect(machine.environment["XENSTORED_PATH"]) as xenstore:
        fill(xenstore)
        yield xenstore


def fill(xenstore: XenstoreClient) -> None:
    for top in ("/t", "/d"):
        xenstore.rm(top)
    xenstore.write("/t/a", "1")
    xenstore.write("/t/b/c", "two words")
    xenstore.write("/t/empty", "")
    xenstore.write("/t/bin", bytes(range(256)))
    for length in (50, 60, 68, 70, 200):
        xenstore.write(f"/t/k{length}", "x" * length)
    xenstore.write("/t/" + "long-name" * 12 + "/below/it", "y" * 90)
    xenstore.write("/d/e/f/g", "1")
    xenstore.write("/d/h", "1")
    xenstore.set_perms("/t/b", ["n0", "r1", "b2", "w3"])


def run(machine: Ring3, command: list[str]) -> Finished:
    done = subprocess.run(
        command, env=machine.environment, capture_output=True, timeout=20, stdin=subprocess.DEVNULL, check=False
    )
    return Finished(done.returncode, done.stdout.decode(errors="surrogateescape"), done.stderr.decode())


def stock(machine: Ring3, mode: str, *words: str) -> Finished:
    return run(machine, [f"xenstore-{mode}", *words])


def ours(machine: Ring3, mode: str, *words: str) -> Finished:
    return run(machine, [machine.path, f"xenstore-{mode}", *words])


def snapshot(xenstore: XenstoreClient) -> dict[str, tuple[bytes, list[str]]]:
    """Returns all nodes but those of the machine itself."""
    found, pending = {}, [f"/{name}" for name in xenstore.directory("/") if name not in ("tool", "local")]
    while pending:
        path = pending.pop()
        found[path] = (xenstore.read(path), xenstore.get_perms(path))
        pending += [f"{path}/{name}" for name in xenstore.directory(path)]
    return found


@needs_stock
@pytest.mark.parametrize("line", SAME)
def test_answers_are_the_same_as_of_xens_tools(machine: Ring3, store: XenstoreClient, line: str) -> None:
    mode, *words = line.split(" ")
    got = ours(machine, mode, *words)
    left = snapshot(store)
    fill(store)
    expected = stock(machine, mode, *words)
    assert got == expected
    assert left == snapshot(store)


@needs_stock
def test_lines_fit_a_terminal_as_those_of_xens_tool(machine: Ring3, store: XenstoreClient) -> None:
    assert store.read_text("/t/a") == "1"
    for columns in (40, 120):
        seen = []
        for command in (["xenstore-ls", "-p", "/t"], [machine.path, "xenstore-ls", "-p", "/t"]):
            pid, terminal = pty.fork()
            if pid == 0:
                os.execvpe("sh", ["sh", "-c", f'stty cols {columns}; exec "$@"', "sh", *command], machine.environment)  # noqa: S606
            output = b""
            while True:
                try:
                    data = os.read(terminal, 4096)
                except OSError:
                    break
                if not data:
                    break
                output += data
            os.close(terminal)
            os.waitpid(pid, 0)
            seen.append(output)
        assert seen[0] == seen[1]


@needs_stock
def test_xens_tools_work_against_the_socket(machine: Ring3, store: XenstoreClient) -> None:
    assert stock(machine, "write", "/t/new", "1", "/t/deep/er", "two words").exit_code == 0
    assert store.read_text("/t/deep/er") == "two words"
    assert stock(machine, "read", "/t/deep/er").stdout == "two words\n"
    assert stock(machine, "list", "/t/deep").stdout == "er\n"
    assert stock(machine, "chmod", "/t/new", "n0", "r3").exit_code == 0
    assert store.get_perms("/t/new") == ["n0", "r3"]
    assert re.search(r'new = "1" .*\(n0,r3\)', stock(machine, "ls", "-p", "/t").stdout)
    assert stock(machine, "exists", "/t/new").exit_code == 0
    assert stock(machine, "rm", "/t/new").exit_code == 0
    assert stock(machine, "exists", "/t/new").exit_code == 1
    _check_watch(["xenstore-watch"], machine, store)


def _check_watch(command: list[str], machine: Ring3, store: XenstoreClient) -> None:
    words = [*command, "-n", "3", "/t/w"]
    with subprocess.Popen(words, env=machine.environment, stdout=subprocess.PIPE, text=True) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline() == "/t/w\n"
        store.write("/t/w/x", "1")
        assert watch.stdout.readline() == "/t/w/x\n"
        store.rm("/t/w")
        assert watch.stdout.readline() == "/t/w\n"
        assert watch.wait(10) == 0


def test_watch_prints_what_changes(machine: Ring3, store: XenstoreClient) -> None:
    _check_watch([machine.path, "xenstore-watch"], machine, store)


def test_one_command_for_all_and_without_a_path_in_the_environment(machine: Ring3, store: XenstoreClient) -> None:
    store.write("/t/a", "5")
    environment = {name: value for name, value in machine.environment.items() if name != "XENSTORED_PATH"}
    for words, expected in (
        (["xenstore", "read", "/t/a"], (0, "5\n", "")),
        (["xenstore", "control", "check"], (0, "OK\n", "")),
        (["xenstore-control", "explode"], (1, "", "xenstore-control: explode: Invalid argument\n")),
        (["xenstore"], (1, "", "xenstore: Usage: xenstore <mode> [-h] [...]\n")),
        (["xenstore", "frob"], (1, "", "xenstore: unknown mode frob\n")),
    ):
        done = subprocess.run([machine.path, *words], env=environment, capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout, done.stderr) == expected


def test_no_daemon_is_said(machine: Ring3, tmp_path: Path) -> None:
    environment = {**machine.environment, "XENSTORED_PATH": str(tmp_path / "none")}
    done = subprocess.run([machine.path, "xenstore-read", "/a"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "xenstore-read: xs_open: No such file or directory\n"

"""A confined service: what fails in it, and what goes on. Each in a process of its own."""

import subprocess
import sys
from pathlib import Path

_PROLOGUE = """
import os, socket, sys, threading
from pathlib import Path
from ring3.dom0.confine import confine
here = Path(sys.argv[1])
confine([here])

def refused(call):
    try:
        call()
    except PermissionError:
        return True
    return False
"""


def run(directory: Path, body: str) -> None:
    """Runs `body` in a process that is confined to `directory`; its assertions are the test's."""
    done = subprocess.run([sys.executable, "-c", _PROLOGUE + body, str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_programs_and_networks_are_out_of_reach(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
assert refused(os.fork)
assert refused(lambda: os.execv("/bin/true", ["true"]))
assert refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
assert refused(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
assert refused(lambda: os.posix_spawn("/bin/true", ["true"], {}))
""",
    )


def test_files_elsewhere_are_out_of_reach(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret").write_text("x")
    run(
        inside,
        """
outside = here.parent / "outside"
if refused(lambda: (outside / "secret").read_text()):  # else: a kernel without Landlock
    assert refused(lambda: (outside / "new").write_text(""))
    assert refused(lambda: (outside / "secret").unlink())
    assert refused(lambda: open("/etc/passwd"))
""",
    )


def test_its_own_directory_its_sockets_and_threads_work(tmp_path: Path) -> None:
    run(
        tmp_path,
        """
(here / "log").write_text("x")
(here / "log").replace(here / "log.1")
(here / "log.1").unlink()
listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
listener.bind(str(here / "socket"))
listener.listen()
client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
client.connect(str(here / "socket"))
thread = threading.Thread(target=lambda: None)
thread.start()
thread.join()
import xmlrpc.client  # something that was not imported before
""",
    )

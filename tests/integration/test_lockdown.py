"""The walls around the hypervisor's process: what a guest that had taken it over could still do."""

import contextlib
import errno
import re
import socket
from pathlib import Path

import pytest

from support import guests
from support.command import Ring3
from support.inject import InjectError, stopped

pytestmark = pytest.mark.guest

GETPID, SOCKET, CONNECT, CLONE, FORK, EXECVE, UNLINK, PTRACE, OPENAT = 39, 41, 42, 56, 57, 59, 87, 101, 257
MMAP, MPROTECT, PROCESS_VM_READV, IO_URING_SETUP, OPEN, OPENAT2 = 9, 10, 310, 425, 2, 437
AT_FDCWD = -100
SIGCHLD = 17
RWX, MAP_PRIVATE_ANONYMOUS = 7, 0x22

REFUSED: dict[str, tuple[int | bytes, ...]] = {
    "open": (OPEN, b"/etc/passwd", 0),
    "openat": (OPENAT, AT_FDCWD, b"/etc/passwd", 0),
    "openat2": (OPENAT2, AT_FDCWD, b"/etc/passwd", b"\0" * 24, 24),
    "unlink": (UNLINK, b"/tmp/ring3-test-lockdown"),
    "execve": (EXECVE, b"/bin/true", 0, 0),
    "fork": (FORK,),
    "clone, a process": (CLONE, SIGCHLD, 0, 0, 0, 0),
    "TCP socket": (SOCKET, socket.AF_INET, socket.SOCK_STREAM, 0),
    "Unix socket": (SOCKET, socket.AF_UNIX, socket.SOCK_STREAM, 0),
    "netlink socket": (SOCKET, socket.AF_NETLINK, socket.SOCK_RAW, 0),
    "connect": (CONNECT, 3, b"\x01\0/tmp/x", 9),
    "ptrace": (PTRACE, 16, 1, 0, 0),
    "process_vm_readv": (PROCESS_VM_READV, 1, 0, 0, 0, 0, 0),
    "io_uring_setup": (IO_URING_SETUP, 8, b"\0" * 120),
    "memory to write and execute": (MMAP, 0, 4096, RWX, MAP_PRIVATE_ANONYMOUS, -1, 0),
    "memory made executable": (MPROTECT, 0x10000, 4096, 5),
}


@pytest.fixture
def ring3d(ring3: Ring3, tmp_path: Path) -> int:
    """The process id of a hypervisor that runs a guest."""
    assert ring3("up", "--memory", "128").exit_code == 0
    image = guests.build("endless", tmp_path)
    done = ring3("create", "--kernel", str(image), "--memory", "16", "--name", "one")
    assert done.exit_code == 0, done.describe()
    return int((Path(ring3.environment["RING3_RUN_DIR"]) / "ring3d.pid").read_text())


def threads(pid: int) -> dict[str, list[int]]:
    """Returns the threads of a process by name."""
    named: dict[str, list[int]] = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        named.setdefault((task / "comm").read_text().strip(), []).append(int(task.name))
    return named


def test_every_thread_of_ring3d_is_filtered_and_gains_no_privilege(ring3d: int) -> None:
    for task in Path(f"/proc/{ring3d}/task").iterdir():
        status = (task / "status").read_text()
        assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE), status
        assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE), status


@pytest.mark.usefixtures("ring3d")
def test_the_services_of_domain_0_are_filtered_and_gain_no_privilege(ring3: Ring3) -> None:
    ours = f"RING3_RUN_DIR={ring3.environment['RING3_RUN_DIR']}".encode()
    services: dict[str, str] = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # another user's, or just gone
            if ours in (path / "environ").read_bytes().split(b"\0"):
                services[path.name] = (path / "comm").read_text().strip()
    assert {"xenstored", "consoled"} <= set(services.values())
    for pid, name in services.items():
        if name in ("xenstored", "consoled"):
            for status in (path.read_text() for path in Path("/proc", pid, "task").glob("*/status")):
                assert re.search(r"^Seccomp:\s*2$", status, re.MULTILINE), status
                assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE), status


def test_ring3d_has_limits(ring3d: int) -> None:
    limits = Path(f"/proc/{ring3d}/limits").read_text()
    assert re.search(r"^Max core file size\s+0\s+0 ", limits, re.MULTILINE), limits
    assert not re.search(r"^Max data size\s+unlimited", limits, re.MULTILINE), limits
    assert re.search(r"^Max open files\s+(\d+)\s+\1 ", limits, re.MULTILINE), limits


@pytest.mark.parametrize("name", ["ring3d", "timers"])
def test_open_exec_and_socket_fail_in_ring3d(ring3d: int, name: str, ring3: Ring3) -> None:
    [tid] = threads(ring3d)[name]
    try:
        with stopped(ring3d, tid) as thread:
            assert thread.syscall(GETPID) == ring3d, "the test itself"
            results = {what: thread.syscall(*call) for what, call in REFUSED.items()}  # type: ignore[arg-type]
    except (InjectError, PermissionError) as error:
        pytest.skip(f"this host does not let us trace: {error}")
    assert results == dict.fromkeys(REFUSED, -errno.EPERM)
    assert "one" in ring3("list").stdout, "and the machine goes on"

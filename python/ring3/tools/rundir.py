"""The state directory: where the sockets, logs and process id of one Ring3 are.

`RING3_RUN_DIR`, else `$XDG_RUNTIME_DIR/ring3`, else `/tmp/ring3-$UID`. A lock on a file there, held by ring3d for its
life, says whether one is running; whatever else lies about is left over from one that died.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path
from typing import Final, NamedTuple

from ring3.errors import ConfigError

_SOCKET_PATH_BYTES_MAX: Final = 107
"""Source: sockaddr_un, sun_path."""


class RunDir(NamedTuple):
    """The places within a state directory."""

    path: Path

    @property
    def control(self) -> Path:
        """The hypervisor's control socket."""
        return self.path / "control"

    @property
    def xenstore(self) -> Path:
        """xenstored's socket."""
        return self.path / "xenstore"

    @property
    def requests(self) -> Path:
        """Where the supervisor of domain 0's services takes requests."""
        return self.path / "dom0"

    @property
    def console_dir(self) -> Path:
        """Console sockets and logs."""
        return self.path / "console"

    @property
    def net_dir(self) -> Path:
        """Sockets of the network back end and its helpers, and which frames it has."""
        return self.path / "net"

    @property
    def scripts(self) -> Path:
        """Is there once a block script has made something that is to be undone."""
        return self.path / "scripts"

    @property
    def pid_file(self) -> Path:
        """Process id of ring3d."""
        return self.path / "ring3d.pid"

    @property
    def log(self) -> Path:
        """ring3d's log."""
        return self.path / "ring3d.log"

    @property
    def lock(self) -> Path:
        """The file that a running ring3d holds locked."""
        return self.path / "lock"

    def console(self, domid: int, number: int = 0) -> Path:
        """The socket to attach to a domain's console: recent output and what follows; input the other way."""
        return self._console(domid, number, "sock")

    def console_stream(self, domid: int, number: int = 0) -> Path:
        """The same for who may come back: both sides begin with an offset in the output, a little-endian u64."""
        return self._console(domid, number, "stream")

    def console_log(self, domid: int, number: int = 0) -> Path:
        """What a domain has printed."""
        return self._console(domid, number, "log")

    def _console(self, domid: int, number: int, suffix: str) -> Path:
        return self.console_dir / (f"{domid}.{suffix}" if number == 0 else f"{domid}-{number}.{suffix}")

    def read_pid(self, service: str) -> int | None:
        """Returns the pid of a service of domain 0 ("xenstored", "consoled") or of their supervisor ("dom0")."""
        try:
            return int((self.path / f"{service}.pid").read_text())
        except (OSError, ValueError):
            return None

    def create(self) -> None:
        """Makes the directory, for this user alone. Raises ConfigError if that cannot be."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.path.lstat()
        except OSError as error:
            raise ConfigError(f"the state directory cannot be made: {error.strerror}", file=self.path) from error
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ConfigError("the state directory is not a directory that only this user can write", file=self.path)
        if not os.access(self.path, os.W_OK | os.X_OK):
            raise ConfigError("no write access to the state directory", file=self.path)
        if len(str(self.console_stream(32751, 9)).encode()) + len(".new") > _SOCKET_PATH_BYTES_MAX:
            raise ConfigError(
                "the path is too long for Unix sockets; RING3_RUN_DIR can name a shorter one", file=self.path
            )

    def take_lock(self) -> int:
        """Returns the descriptor of the locked lock file; who holds a copy of it holds the lock. Raises ConfigError."""
        try:
            fd = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ConfigError(f"no write access to the state directory: {error.strerror}", file=self.path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            raise ConfigError("a hypervisor is running here already (`ring3 down` ends it)", file=self.path) from error
        return fd

    def is_running(self) -> bool:
        """Returns whether a ring3d holds the lock."""
        try:
            fd = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(fd)
        return False

    def remove_sockets(self) -> None:
        """Removes what a dead machine has left, the state of its services too. The lock must be held, or nobody run."""
        left = (
            self.control,
            self.xenstore,
            self.requests,
            self.scripts,
            *self.path.glob("*.pid"),
            *self.path.glob("xenstored.state*"),
        )
        consoles = (self.console_dir.glob(f"*.{kind}") for kind in ("sock", "stream", "state", "owner"))
        left += (*self.net_dir.glob("*"),)
        for path in (*left, *(path for found in consoles for path in found)):
            path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the directory with all in it."""
        import shutil  # half as large as the rest of what a start imports

        shutil.rmtree(self.path, ignore_errors=True)


def default() -> RunDir:
    """Returns this user's state directory, whether it exists or not."""
    setting = os.environ.get("RING3_RUN_DIR")
    if setting:
        return RunDir(Path(setting).absolute())
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and runtime.startswith("/"):
        return RunDir(Path(runtime) / "ring3")
    return RunDir(Path(f"/tmp/ring3-{os.getuid()}"))


def private() -> RunDir:
    """Returns a new directory for one `ring3 run`, below this user's. RING3_RUN_DIR=it lets other commands reach it."""
    base = default()
    base.create()
    _remove_leftovers(base)
    rundir = RunDir(base.path / f"run-{os.getpid()}")
    rundir.create()
    return rundir


def _remove_leftovers(base: RunDir) -> None:
    """Removes the directories of foreground machines that were killed."""
    for path in base.path.glob("run-*"):
        pid = path.name.removeprefix("run-")
        if pid.isdigit() and not Path("/proc", pid).exists() and not RunDir(path).is_running():
            RunDir(path).remove()

"""Every exception that Ring3 raises for reasons outside its own code. Our own bugs stay standard exceptions.

The class says who is to blame: `GuestError` a guest or another peer (log it, close that device, go on), `ConfigError`
what a person wrote or named, `HypercallError` the hypervisor's refusal, `DomainError` the state of a domain.
"""

import errno as _errno
from pathlib import Path


class Error(Exception):
    """Anything that Ring3 reports to its caller."""


class GuestError(Error):
    """A guest or another untrusted peer broke a protocol. Closes that device or connection, nothing more."""

    def __init__(self, domid: int, message: str) -> None:
        super().__init__(f"domain {domid}: {message}")
        self.domid = domid


class RingError(GuestError):
    """Indices or contents of a shared ring make no sense."""


class GrantError(GuestError):
    """A grant cannot be used: `status` is the GNTST_* of the hypervisor. The granter is to blame."""

    def __init__(self, domid: int, gref: int, status: int) -> None:
        super().__init__(domid, f"grant {gref:#x} cannot be used: status {status}")
        self.gref = gref
        self.status = status


class XenstoreRequestError(GuestError):
    """A xenstore request is refused; `errno_name` goes onto the wire as it is ("ENOENT", "EACCES", ...)."""

    def __init__(self, domid: int, errno_name: str, message: str = "") -> None:
        super().__init__(domid, f"{errno_name}: {message}" if message else errno_name)
        self.errno_name = errno_name


class HypercallError(Error):
    """A hypercall is refused. Cold handlers raise it (`errno` suffices); clients get it from their Connection."""

    def __init__(self, errno: int, op: int | str | None = None, subop: int | str | None = None) -> None:
        name = _errno.errorcode.get(errno, str(errno))
        what = "hypercall" if op is None else f"hypercall {op}" + ("" if subop is None else f" sub-op {subop}")
        super().__init__(f"{what}: -{name}")
        self.errno = errno
        self.op = op
        self.subop = subop


class ConnectionLostError(Error):
    """The hypervisor closed the control socket, or there is none to connect to."""


class DomainError(Error):
    """The state of a domain does not allow what was asked."""

    def __init__(self, domid: int | str, message: str) -> None:
        super().__init__(message)
        self.domid = domid


class DomainNotFound(DomainError, KeyError):  # noqa: N818
    """No such domain."""

    def __init__(self, domid: int | str) -> None:
        super().__init__(domid, f"domain {domid} does not exist")

    def __str__(self) -> str:
        return str(self.args[0])  # KeyError would print the repr


class DomainExists(DomainError):  # noqa: N818
    """A domain of that id or name exists already."""

    def __init__(self, domid: int | str) -> None:
        super().__init__(domid, f"domain {domid} exists already")


class DomainNotRunning(DomainError):  # noqa: N818
    """The domain is paused, shut down or dying."""

    def __init__(self, domid: int | str) -> None:
        super().__init__(domid, f"domain {domid} is not running")


class NoMemory(DomainError):  # noqa: N818
    """The machine, or the domain's own limit, has too few free frames."""


class ConfigError(Error, ValueError):
    """What a person gave (a file, an option, a line of a configuration) cannot be used."""

    def __init__(
        self, message: str, *, file: str | Path | None = None, line: int | None = None, key: str | None = None
    ) -> None:
        place = ":".join(str(part) for part in (file, line) if part is not None)
        prefix = f"{place}: " if place else ""
        super().__init__(f"{prefix}{key}: {message}" if key else f"{prefix}{message}")
        self.file = file
        self.line = line
        self.key = key


class BuildError(Error):
    """The domain builder cannot make a domain of these files and sizes. `file` is the one to blame, if one is."""

    def __init__(self, message: str, *, file: str | Path | None = None) -> None:
        super().__init__(message if file is None else f"{file}: {message}")
        self.file = file


class StreamError(Error):
    """A migration or save stream is malformed at `offset`."""

    def __init__(self, offset: int, record: str, message: str) -> None:
        super().__init__(f"stream offset {offset:#x}, record {record}: {message}")
        self.offset = offset
        self.record = record


class EngineUnavailable(Error):  # noqa: N818
    """This machine cannot run the engine asked for."""

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(f"engine {engine} is unavailable: {reason}")
        self.engine = engine
        self.reason = reason

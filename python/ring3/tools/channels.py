"""Channels: consoles beyond the first, named, for programs rather than people (xl.cfg(5), channel=).

In the domain each is a device `console/N`, with its name beside it; Linux makes hvcN of it. The console daemon serves
it at a socket of the state directory, to which a link leads from where the user wants it, or as a pseudo-terminal.
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError
from ring3.libs import device as device_paths
from ring3.libs.device import Device

if TYPE_CHECKING:
    from ring3.libs.xenstore import XenstoreClient
    from ring3.tools.rundir import RunDir

_KIND: Final = "console"
_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,63}")
_LIMIT_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Channel:
    """One channel. With a path it is a socket, otherwise a pseudo-terminal."""

    name: str
    path: Path | None = None

    @classmethod
    def parse(cls, spec: str) -> Channel:
        """Returns the channel of `connection=socket,path=PATH,name=NAME` or `connection=pty,name=NAME`.

        Raises ConfigError.
        """
        given = {}
        for part in spec.split(","):
            key, equals, value = part.strip().partition("=")
            if not equals or key not in ("connection", "path", "name") or key in given:
                raise ConfigError(f"{part.strip()!r} is not part of a channel", key="channel")
            given[key] = value.strip()
        if not _NAME.fullmatch(given.get("name", "")):
            raise ConfigError("a channel has a name= of letters, digits, _ . -", key="channel")
        match given.get("connection"), given.get("path"):
            case "pty", None:
                return cls(given["name"])
            case "socket", str(path) if path:
                return cls(given["name"], Path(path).absolute())
        raise ConfigError("a channel has connection=pty, or connection=socket and path=", key="channel")


def write_nodes(xenstore: XenstoreClient, domid: int, channels: tuple[Channel, ...], *, tx_id: int) -> None:
    """Writes both halves of each channel's device."""
    for number, channel in enumerate(channels, 1):
        device = Device(_KIND, domid, number)
        front, back = device.front, device.back
        halves = {
            front: {
                "backend": back,
                "backend-id": "0",
                "limit": str(_LIMIT_BYTES),
                "type": "xenconsoled",
                "output": "pty",
                "name": channel.name,
                "tty": "",
                "state": "1",
            },
            back: {
                "frontend": front,
                "frontend-id": str(domid),
                "online": "1",
                "protocol": "vt100",
                "name": channel.name,
                "connection": "pty" if channel.path is None else "socket",
                **({} if channel.path is None else {"path": str(channel.path)}),
                "state": "1",
            },
        }
        for (top, nodes), perms in zip(halves.items(), ([f"n{domid}", "r0"], ["n0", f"r{domid}"]), strict=True):
            xenstore.mkdir(top, tx_id=tx_id)
            xenstore.set_perms(top, perms, tx_id=tx_id)
            for name, value in nodes.items():
                xenstore.write(f"{top}/{name}", value, tx_id=tx_id)


def make_links(rundir: RunDir, domid: int, channels: tuple[Channel, ...]) -> None:
    """Makes the sockets reachable where the user wants them. Raises ConfigError for a place that is taken."""
    for number, channel in enumerate(channels, 1):
        if channel.path is None:
            continue
        try:
            if channel.path.is_symlink() and not channel.path.exists():
                channel.path.unlink()  # of a domain that is no more
            channel.path.symlink_to(rundir.console(domid, number))
        except OSError as error:
            raise ConfigError(f"{channel.path}: {error.strerror}", key="channel") from error


def remove_links(xenstore: XenstoreClient, rundir: RunDir, domid: int) -> None:
    """Removes the links of a domain that ends. Its nodes must be there still."""
    number = 1
    while (connection := xenstore.read_optional(f"{Device(_KIND, domid, number).back}/connection")) is not None:
        path = xenstore.read_optional(f"{Device(_KIND, domid, number).back}/path")
        if connection == "socket" and path:
            with contextlib.suppress(OSError):
                if Path(path).readlink() == rundir.console(domid, number):
                    Path(path).unlink()
        number += 1


def is_there(xenstore: XenstoreClient, domid: int, number: int) -> bool:
    """Returns whether a domain has the channel of a number."""
    return xenstore.read_optional(f"{Device(_KIND, domid, number).back}/state") is not None


def back_directory(domid: int) -> str:
    """Returns the node of all back ends of a domain's channels."""
    return f"{device_paths.back_directory(_KIND)}/{domid}"

"""Where a device is in xenstore, and what its files and helpers are called: what toolstack and back ends agree on.

Source: docs/misc/xenstore-paths.pandoc of Xen; xen/include/public/io/xenbus.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

_BACKENDS: Final = "/local/domain/0/backend"


@dataclass(frozen=True, slots=True)
class Device:
    """A device of a domain, whose back end is domain 0's."""

    kind: str
    domid: int
    number: int

    @classmethod
    def from_path(cls, path: str) -> Self | None:
        """Returns the device that a path at or below the node of either half belongs to, None if it belongs to none."""
        match path.split("/"):
            case ["", "local", "domain", "0", "backend", kind, domid, number, *_]:
                pass
            case ["", "local", "domain", domid, "device", kind, number, *_]:
                pass
            case _:
                return None
        if not (domid.isdecimal() and number.isdecimal()):
            return None
        return cls(kind, int(domid), int(number))

    @property
    def back(self) -> str:
        """The back end's node, which is domain 0's."""
        return f"{back_directory(self.kind)}/{self.domid}/{self.number}"

    @property
    def front(self) -> str:
        """The front end's node, which is the domain's."""
        return f"{home(self.domid)}/device/{self.kind}/{self.number}"

    @property
    def libxl(self) -> str:
        """The toolstack's own node, which the domain cannot change."""
        return f"{libxl_directory(self.domid, self.kind)}/{self.number}"

    @property
    def error(self) -> str:
        """Where a back end says what is wrong."""
        return f"/local/domain/0/error/backend/{self.kind}/{self.domid}/{self.number}/error"

    @property
    def name(self) -> str:
        """What the supervisor keeps descriptors and runs helpers by."""
        return f"{self.kind}/{self.domid}/{self.number}"


def home(domid: int) -> str:
    """Returns a domain's own node."""
    return f"/local/domain/{domid}"


def back_directory(kind: str) -> str:
    """Returns the node below which domain 0 has its back ends of a kind, by domain."""
    return f"{_BACKENDS}/{kind}"


def libxl_directory(domid: int, kind: str) -> str:
    """Returns the node below which the toolstack has a domain's devices of a kind."""
    return f"/libxl/{domid}/device/{kind}"

"""Host directories shared with a domain (xl.cfg(5), p9=).

`tag=TAG,path=PATH,security_model=none`; `security_model=mapped` and `readonly=1` are ours. In the domain:
`mount -t 9p -o trans=xen,version=9p2000.L TAG /mnt`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ring3.errors import ConfigError
from ring3.tools.devices.bus import DeviceNodes

if TYPE_CHECKING:
    from ring3.tools.services import Services

KIND: Final = "9pfs"
_TAG: Final = re.compile(r"[A-Za-z0-9_.:-]{1,31}")
_MODELS: Final = ("none", "mapped")
_YES_NO: Final = {"0": False, "no": False, "false": False, "1": True, "yes": True, "true": True}


@dataclass(frozen=True, slots=True)
class P9:
    """One share."""

    tag: str
    path: Path
    security_model: str = "none"
    is_read_only: bool = False
    number: int = 0
    service: str = field(default="9pfsd", init=False)
    has_hotplug: bool = field(default=True, init=False)

    @classmethod
    def parse(cls, spec: str, number: int = 0) -> P9:
        """Returns the share of a specification. Raises ConfigError."""
        given: dict[str, str] = {}
        for part in spec.split(","):
            key, equals, value = part.strip().partition("=")
            if not equals or key not in ("tag", "path", "security_model", "readonly", "backend") or key in given:
                raise ConfigError(f"{part.strip()!r} is not part of a share", key="p9")
            given[key] = value.strip()
        tag, path = given.get("tag", ""), given.get("path", "")
        if not _TAG.fullmatch(tag):
            raise ConfigError("a share has a tag= of letters, digits, _ . : -, at most 31", key="p9")
        if not path:
            raise ConfigError(f"share {tag} has no path=", key="p9")
        model = given.get("security_model", "none")
        if model not in _MODELS:
            raise ConfigError(f"share {tag}: security_model is one of {', '.join(_MODELS)}", key="p9")
        if given.get("readonly", "0") not in _YES_NO:
            raise ConfigError(f"share {tag}: readonly is 0 or 1", key="p9")
        if given.get("backend", "0") not in ("0", "Domain-0"):
            raise ConfigError(f"share {tag}: back ends are in domain 0", key="p9")
        return cls(tag, Path(path).absolute(), model, _YES_NO[given.get("readonly", "0")], number)

    def nodes(self, _domid: int) -> DeviceNodes:
        """Returns its nodes."""
        back = {"path": str(self.path), "security_model": self.security_model}
        if self.is_read_only:
            back["readonly"] = "1"
        return DeviceNodes(KIND, self.number, {"tag": self.tag}, back)

    def prepare(self, _domid: int, _services: Services) -> None:
        """Hands nothing over: the back end's process opens the directory, and can reach nothing else then."""
        if not self.path.is_dir():
            raise ConfigError(f"share {self.tag}: {self.path} is not a directory", key="p9")


def parse_all(specs: Sequence[str]) -> tuple[P9, ...]:
    """Returns the shares of a domain. Raises ConfigError."""
    shares = tuple(P9.parse(spec, number) for number, spec in enumerate(specs))
    if len({share.tag for share in shares}) < len(shares):
        raise ConfigError("two shares have the same tag", key="p9")
    return shares

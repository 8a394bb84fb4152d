"""XEN_SYSCTL_debug_keys: what `xl debug-keys` sends. The answers go to the hypervisor's console, as Xen's do.

Keys are this hypervisor's own: Xen promises none of its.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from ring3.abi.sysctl import XEN_SYSCTL_debug_keys, xen_sysctl
from ring3.hypervisor.registry import Coverage
from ring3.hypervisor.sysctl import SYSCTL

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

_log = logging.getLogger(__name__)
_NR_KEYS_MAX: Final = 64
_NR_LINES_MAX: Final = 50


@SYSCTL.subop(XEN_SYSCTL_debug_keys, "debug_keys", Coverage.PARTIAL, "keys of our own: h lists them")
def debug_keys(xen: Xen, ctx: HypercallContext, op: xen_sysctl) -> bool:
    """Carries out each key; one that means nothing is passed over."""
    argument = op.u.debug_keys
    for key in ctx.read(argument.keys, min(argument.nr_keys, _NR_KEYS_MAX)).decode("latin-1"):
        if key in _KEYS:
            _KEYS[key][1](xen)
    return False


def _help(_xen: Xen) -> None:
    for key, (what, _handler) in _KEYS.items():
        _log.info("debug key %s: %s", key, what)


def _check(xen: Xen) -> None:
    """Stops every domain for a moment and checks the machine against itself."""
    wrong = xen.core.audit()
    for line in wrong[:_NR_LINES_MAX]:
        _log.error("audit: %s", line)
    _log.info("audit: %s", f"{len(wrong)} faults" if wrong else "all references are explained")


def _counters(xen: Xen) -> None:
    for name, value in xen.core.engine_counters():
        _log.info("engine: %s: %d", name, value)


def _give_back(xen: Xen) -> None:
    """Does at once what is done for a domain that goes idle."""
    _log.info("%d uniform frames went back to the host, %d others are packed", *xen.core.give_back())


_KEYS: Final[dict[str, tuple[str, Callable[[Xen], None]]]] = {
    "h": ("list the keys", _help),
    "k": ("check frames, ports and grants against who holds them", _check),
    "p": ("print the engine's performance counters", _counters),
    "z": ("give frames of domains back to the host that hold one byte all over, and pack others", _give_back),
}

"""How a domain ended."""

from __future__ import annotations

from enum import StrEnum
from typing import Final

from ring3.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot, SHUTDOWN_suspend, SHUTDOWN_watchdog
from ring3.errors import DomainNotFound
from ring3.libs import domctl
from ring3.libs.connection import Connection


class Ending(StrEnum):
    """Why a domain runs no more."""

    POWEROFF = "poweroff"
    REBOOT = "reboot"
    SUSPEND = "suspend"
    CRASH = "crash"
    WATCHDOG = "watchdog"
    UNKNOWN = "unknown"
    """A shutdown reason that Xen does not define, or soft_reset, which nobody carries out."""
    DESTROYED = "destroyed"
    """By somebody else: it is gone."""


_REASONS: Final = {
    SHUTDOWN_poweroff: Ending.POWEROFF,
    SHUTDOWN_reboot: Ending.REBOOT,
    SHUTDOWN_suspend: Ending.SUSPEND,
    SHUTDOWN_crash: Ending.CRASH,
    SHUTDOWN_watchdog: Ending.WATCHDOG,
}


def ending_of(conn: Connection, domid: int, handle: bytes) -> Ending | None:
    """Returns how a domain ended, None while it lives. The handle tells it from a later one of the same domid."""
    try:
        info = domctl.getdomaininfo(conn, domid)
    except DomainNotFound:
        return Ending.DESTROYED
    if info.handle != handle or info.is_dying:
        return Ending.DESTROYED
    if not info.is_shutdown:
        return None
    return _REASONS.get(info.shutdown_reason or 0, Ending.UNKNOWN)

"""The report of a crashed domain, from the hypervisor's console ring, where Xen prints it too."""

from __future__ import annotations

from typing import Final

from ring3.libs import sysctl
from ring3.libs.connection import Connection
from ring3.tools.ending import Ending

_REASONS: Final = {
    Ending.CRASH: "crashed",
    Ending.WATCHDOG: "was ended by its watchdog",
    Ending.UNKNOWN: "ended for a reason that Xen does not define",
}


def crash_report(conn: Connection, domid: int, ending: Ending) -> str:
    """Returns what the hypervisor said about a domain's end, a headline first; whole lines."""
    lines = sysctl.readconsole(conn).splitlines()
    begin = f"(XEN) domain {domid} crashed"
    starts = [number for number, line in enumerate(lines) if line.lower().startswith(begin.lower())]
    report = lines[starts[-1] :] if starts else [line for line in lines[-40:] if f"d{domid}" in line]
    return "\n".join([f"ring3: domain {domid} {_REASONS[ending]}", *report]) + "\n"

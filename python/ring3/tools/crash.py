"""The report of a crashed domain, from the hypervisor's console ring, where Xen prints it too."""

from __future__ import annotations

from typing import Final

from ring3.errors import DomainError, HypercallError
from ring3.libs import domctl, sysctl
from ring3.libs.connection import Connection
from ring3.tools.ending import Ending

_REASONS: Final = {
    Ending.CRASH: "crashed",
    Ending.WATCHDOG: "was ended by its watchdog",
    Ending.UNKNOWN: "ended for a reason that Xen does not define",
}


# Source: xen/include/public/arch-x86/xen-x86_64.h, struct cpu_user_regs: offsets of 64-bit fields within it.
_USER_REGS_OFFSET: Final = 0x208
_REGISTERS: Final = {
    "rip": 128,
    "rflags": 144,
    "rsp": 152,
    "rax": 80,
    "rbx": 40,
    "rcx": 88,
    "rdx": 96,
    "rsi": 104,
    "rdi": 112,
    "rbp": 32,
    "r8": 72,
    "r9": 64,
    "r10": 56,
    "r11": 48,
    "r12": 24,
    "r13": 16,
    "r14": 8,
    "r15": 0,
}
_PER_LINE: Final = 3


def crash_report(conn: Connection, domid: int, ending: Ending) -> str:
    """Returns a headline and what the hypervisor said about a domain's end, else the first vCPU's registers."""
    lines = hypervisor_report(sysctl.readconsole(conn), domid)
    if not lines:
        try:
            lines = _registers(domctl.getvcpucontext(conn, domid, 0))
        except (HypercallError, DomainError) as error:
            lines = [f"no registers: {error}"]
    return "\n".join([f"ring3: domain {domid} {_REASONS[ending]}", *lines]) + "\n"


def hypervisor_report(dmesg: str, domid: int) -> list[str]:
    """Returns the lines of the last report about a domain: from its headline to the next message of another kind."""
    lines = dmesg.splitlines()
    headline = f"domain {domid} crashed"
    starts = [number for number, line in enumerate(lines) if line.removeprefix("(XEN) ").startswith(headline)]
    if not starts:
        return []
    report = [lines[starts[-1]]]
    for line in lines[starts[-1] + 1 :]:
        if line.startswith("(d") or line.removeprefix("(XEN) ").startswith(("domain ", "Ring3: ")):
            break
        report.append(line)
    return [line.removeprefix("(XEN) ") for line in report]


def _registers(context: bytes) -> list[str]:
    values = [
        f"{name:<6} {int.from_bytes(context[_USER_REGS_OFFSET + offset :][:8], 'little'):016x}"
        for name, offset in _REGISTERS.items()
    ]
    return ["  ".join(values[start : start + _PER_LINE]) for start in range(0, len(values), _PER_LINE)]

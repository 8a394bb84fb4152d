"""`ring3 list`, `dmesg` and `info`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from ring3.errors import HypercallError
from ring3.libs import sysctl
from ring3.libs.domctl import DomainInfo
from ring3.libs.evtchn import EventChannels
from ring3.tools import perf_counters, rundir
from ring3.tools.toolstack import Toolstack

_NR_PORTS: Final = 4096
_SHUTDOWN_CRASH: Final = 3


def list_domains() -> int:
    """Prints a line for each domain, as `xl list` does."""
    with Toolstack(rundir.default()) as toolstack:
        domains = toolstack.domains()
    print(f"{'Name':<40} {'ID':>5} {'Mem':>5} {'VCPUs':>5}  {'State':<6} {'Time(s)':>9}")
    for listed in domains:
        info = listed.info
        print(
            f"{listed.name:<40} {info.domid:>5} {info.nr_pages >> 8:>5} {info.nr_online_vcpus:>5}  "
            f"{state_letters(info):<6} {info.cpu_time_ns / 1e9:>9.1f}"
        )
    return 0


def state_letters(info: DomainInfo) -> str:
    """Returns xl's six letters: running, blocked, paused, shut down, crashed, dying."""
    is_crashed = info.shutdown_reason == _SHUTDOWN_CRASH
    flags = [
        ("r", info.is_running),
        ("b", info.is_blocked),
        ("p", info.is_paused),
        ("s", info.is_shutdown and not is_crashed),
        ("c", is_crashed),
        ("d", info.is_dying),
    ]
    return "".join(letter if is_set else "-" for letter, is_set in flags)


def dmesg(*, clear: bool) -> int:
    """Prints the hypervisor's console ring."""
    with Toolstack(rundir.default()) as toolstack:
        sys.stdout.write(sysctl.readconsole(toolstack.conn, clear=clear))
    return 0


def debug_keys(keys: str) -> int:
    """Sends debug keys; the answers are in the console ring."""
    with Toolstack(rundir.default()) as toolstack:
        sysctl.debug_keys(toolstack.conn, keys)
    return 0


def info(*, hypercalls: bool) -> int:
    """Prints what the machine is and has, or the hypercall table with its counters."""
    place = rundir.default()
    with Toolstack(place) as toolstack:
        if hypercalls:
            _print_hypercalls(toolstack)
            return 0
        phys = sysctl.physinfo(toolstack.conn)
        nr_domains = len(toolstack.domains())
        nr_ports = _nr_ports(toolstack.events)
    rows: dict[str, object] = {
        "state directory": place.path,
        "pcpus": phys.nr_cpus,
        "cpu_khz": phys.cpu_khz,
        "total memory MiB": phys.total_pages >> 8,
        "free memory MiB": phys.free_pages >> 8,
        "total frames": phys.total_pages,
        "free frames": phys.free_pages,
        "domains": nr_domains,
        "ports of domain 0": nr_ports,
        "threads": _nr_threads(place),
    }
    for key, value in rows.items():
        print(f"{key:<20}: {value}")
    return 0


def _nr_ports(events: EventChannels) -> int:
    nr_bound = 0
    for port in range(1, _NR_PORTS):
        try:
            nr_bound += events.status(port).status != 0
        except HypercallError:
            break
    return nr_bound


def _nr_threads(place: rundir.RunDir) -> int:
    """Returns the threads of ring3d, 0 where /proc does not say."""
    try:
        pid = int(place.pid_file.read_text())
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    except (OSError, ValueError):
        return 0


def _print_hypercalls(toolstack: Toolstack) -> None:
    rows = perf_counters.hypercalls(toolstack.conn)
    print(f"{'number':>8}  {'calls':>10}  {'coverage':<8}  name")
    for row in sorted(rows, key=lambda row: row.sort_key()):
        note = f"  ({row.note})" if row.note else ""
        print(f"{row.number:>8}  {row.nr_calls:>10}  {row.coverage:<8}  {row.name}{note}")

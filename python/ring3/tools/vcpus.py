"""`ring3 vcpu-list` and `vcpu-set`: what a domain's vCPUs do, and how many it should use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ring3.errors import ConfigError
from ring3.libs import domctl
from ring3.tools import rundir, store_nodes
from ring3.tools.toolstack import Toolstack

if TYPE_CHECKING:
    from ring3.libs.domctl import VcpuInfo


def list_vcpus(names: list[str]) -> int:
    """Prints a line for each vCPU of the named domains, of all if none is named, as `xl vcpu-list` does."""
    print(f"{'Name':<32} {'ID':>5} {'VCPU':>5} {'CPU':>4} {'State':<5} {'Time(s)':>9}  Affinity (Hard / Soft)")
    with Toolstack(rundir.default()) as toolstack:
        wanted = {toolstack.find(name).domid for name in names}
        for listed in toolstack.domains():
            domid = listed.info.domid
            if domid == 0 or (names and domid not in wanted):
                continue  # domain 0 is processes, not vCPUs
            for number in range(listed.info.max_vcpu_id + 1):
                vcpu = domctl.getvcpuinfo(toolstack.conn, domid, number)
                pcpu = str(vcpu.cpu) if vcpu.online else "-"
                print(
                    f"{listed.name:<32} {domid:>5} {number:>5} {pcpu:>4} {state_letters(vcpu):<5} "
                    f"{vcpu.cpu_time_ns / 1e9:>9.1f}  all / all"
                )
    return 0


def state_letters(vcpu: VcpuInfo) -> str:
    """Returns xl's three letters: running, blocked; or that it is paused: off."""
    if not vcpu.online:
        return "--p"
    return ("r" if vcpu.running else "-") + ("b" if vcpu.blocked else "-") + "-"


def set_vcpus(name: str, nr_vcpus: int) -> int:
    """Asks a domain to use its first `nr_vcpus` vCPUs, in its own time. Raises ConfigError, DomainNotFound."""
    with Toolstack(rundir.default()) as toolstack:
        domain = toolstack.find(name)
        if domain.domid == 0:
            raise ConfigError("domain 0 is the host, which has no vCPUs here", key="domain")
        nr_max = domctl.getdomaininfo(toolstack.conn, domain.domid).max_vcpu_id + 1
        if nr_vcpus > nr_max:
            raise ConfigError(f"{domain.name} has at most {nr_max} vCPUs", key="vcpus")
        nodes = store_nodes.availability(nr_vcpus, nr_max)

        def write_all(tx_id: int) -> None:
            for path, value in nodes.items():
                toolstack.xenstore.write(f"{store_nodes.home(domain.domid)}/{path}", value, tx_id=tx_id)

        toolstack.xenstore.transaction(write_all)
    return 0

"""All cold hypercalls. Importing this module registers them."""

from ring3.hypervisor import (
    absent,
    debug_keys,
    domctl_cpu,
    domctl_domain,
    domctl_info,
    domctl_tsc,
    domctl_vcpu,
    platform_op,
    sysctl,
    sysctl_cpu,
    sysctl_machine,
)

__all__ = [
    "absent",
    "debug_keys",
    "domctl_cpu",
    "domctl_domain",
    "domctl_tsc",
    "domctl_vcpu",
    "platform_op",
    "sysctl_cpu",
    "sysctl_machine",
]

domctl_info.list_absent()
sysctl.list_absent()

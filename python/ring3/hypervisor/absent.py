"""Hypercalls that nobody answers: a Xen built without them says the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ring3.abi import xen as numbers
from ring3.abi.errno import ENOSYS
from ring3.hypervisor.registry import Coverage, Handler, hypercall

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

_ANSWERS: Final = {
    "xsm_op": (ENOSYS, Coverage.REFUSED, "-ENOSYS: no security module"),
    "kexec_op": (
        ENOSYS,
        Coverage.REFUSED,
        "-EPERM for a domU; -ENOSYS for domain 0: there is no other hypervisor to start",
    ),
    "tmem_op": (ENOSYS, Coverage.REFUSED, "-ENOSYS: gone from Xen since 4.13"),
    "argo_op": (ENOSYS, Coverage.REFUSED, "-ENOSYS: as without CONFIG_ARGO"),
    "xenoprof_op": (ENOSYS, Coverage.REFUSED, "-ENOSYS: as without CONFIG_XENOPROF"),
    "hypfs_op": (ENOSYS, Coverage.ABSENT, "a domU: -EPERM; domain 0: -ENOSYS"),
    "mca": (ENOSYS, Coverage.ABSENT, "a domU: -EPERM; domain 0: -ENOSYS"),
}


def _refusal(errno: int) -> Handler:
    def refuse(_xen: Xen, _ctx: HypercallContext, _a1: int, _a2: int, _a3: int, _a4: int, _a5: int, /) -> int:
        return -errno

    return refuse


for _name, (_errno, _coverage, _note) in _ANSWERS.items():
    hypercall(getattr(numbers, f"__HYPERVISOR_{_name}"), _name, _coverage, _note)(_refusal(_errno))

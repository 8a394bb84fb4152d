"""The table of cold hypercalls: who answers, and how much of Xen's behaviour is there.

    @hypercall(__HYPERVISOR_xsm_op, "xsm_op", Coverage.REFUSED, "no security module")
    def xsm_op(xen: Xen, ctx: HypercallContext, a1: int, ...) -> int: ...

A hypercall with sub-ops is a `SubopTable`. Every row, implemented or not, goes into the core's table, which counts
calls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from ring3._core import CoreError, GuestFault
from ring3.abi.errno import EFAULT, EINVAL
from ring3.errors import HypercallError

if TYPE_CHECKING:
    from ring3._core import HypercallContext, Hypervisor
    from ring3.hypervisor.state import Xen

_log = logging.getLogger(__name__)
NO_SUBOP: Final = -1


class Coverage(StrEnum):
    """How much of Xen's behaviour a hypercall has."""

    FULL = "full"
    PARTIAL = "partial"
    """The note says what is missing."""
    REFUSED = "refused"
    """On purpose; the note says the errno."""
    ABSENT = "absent"
    """-ENOSYS, and counted."""


class Handler(Protocol):
    """A cold hypercall. Raises GuestFault, CoreError or HypercallError to fail."""

    def __call__(self, xen: Xen, ctx: HypercallContext, a1: int, a2: int, a3: int, a4: int, a5: int, /) -> int:
        """Returns the hypercall's result."""
        ...


class Row(NamedTuple):
    """One line of the coverage table."""

    op: int
    subop: int
    name: str
    coverage: Coverage
    note: str = ""


_handlers: dict[int, Handler] = {}
_rows: list[Row] = []


def hypercall(op: int, name: str, coverage: Coverage, note: str = "") -> Callable[[Handler], Handler]:
    """Registers the handler of one hypercall number."""

    def register(handler: Handler) -> Handler:
        if op in _handlers:
            raise ValueError(f"hypercall {op} has two handlers")
        _handlers[op] = handler
        add_row(Row(op, NO_SUBOP, name, coverage, note))
        return handler

    return register


def add_row(row: Row) -> None:
    """Adds a line to the coverage table."""
    _rows.append(row)


def rows() -> list[Row]:
    """Returns the lines of every cold hypercall that has been imported."""
    return list(_rows)


def guarded(xen: Xen, op: int, handler: Handler) -> Callable[..., int]:
    """Returns the function that the core calls: every failure becomes a negative error code, none reaches the core."""

    def call(ctx: HypercallContext, a1: int, a2: int, a3: int, a4: int, a5: int) -> int:
        try:
            return handler(xen, ctx, a1, a2, a3, a4, a5)
        except GuestFault:
            return -EFAULT
        except HypercallError as error:
            return -error.errno
        except CoreError as error:
            number = error.args[0] if error.args else EINVAL
            return -abs(number) if isinstance(number, int) and number else -EINVAL
        except Exception:
            _log.exception("hypercall %d from domain %d failed in ring3d", op, ctx.domid)
            return -EINVAL

    return call


def install(xen: Xen, core: Hypervisor) -> None:
    """Hands every registered handler and row to the core."""
    for op, handler in _handlers.items():
        core.register_cold(op, guarded(xen, op, handler))
    core.add_rows([(row.op, row.subop, row.name, str(row.coverage), row.note) for row in _rows])

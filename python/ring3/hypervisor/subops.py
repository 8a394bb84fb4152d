"""Hypercalls that are one structure with a command number: sub-op tables of domctl and sysctl."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Generic, TypeVar

from ring3.abi.errno import ENOSYS, EPERM
from ring3.errors import HypercallError
from ring3.hypervisor.registry import Coverage, Row, add_row

if TYPE_CHECKING:
    from ring3._core import HypercallContext
    from ring3.hypervisor.state import Xen

ArgT = TypeVar("ArgT")
SubopHandler = Callable[["Xen", "HypercallContext", ArgT], bool]
"""Returns whether the argument structure has results to copy back to the caller. Raises to fail."""


class RefusedWithResultsError(HypercallError):
    """A sub-op fails, and its argument structure says more about that: it is copied back."""


class SubopTable(Generic[ArgT]):
    """The sub-ops of one hypercall."""

    def __init__(self, op: int, name: str) -> None:
        self._op = op
        self._name = name
        self._handlers: dict[int, SubopHandler[ArgT]] = {}

    def subop(
        self, number: int, name: str, coverage: Coverage, note: str = ""
    ) -> Callable[[SubopHandler[ArgT]], SubopHandler[ArgT]]:
        """Registers the handler of one sub-op."""

        def register(handler: SubopHandler[ArgT]) -> SubopHandler[ArgT]:
            if number in self._handlers:
                raise ValueError(f"{self._name} sub-op {number} has two handlers")
            self._handlers[number] = handler
            add_row(Row(self._op, number, f"{self._name}/{name}", coverage, note))
            return handler

        return register

    def absent(self, names: Mapping[int, str], note: str = "-ENOSYS") -> None:
        """Lists sub-ops of Xen's that nobody answers here yet."""
        for number, name in names.items():
            if number not in self._handlers:
                add_row(Row(self._op, number, f"{self._name}/{name}", Coverage.ABSENT, note))

    def call(self, xen: Xen, ctx: HypercallContext, number: int, argument: ArgT) -> bool:
        """Counts and runs a sub-op. Raises HypercallError(ENOSYS) for one that is not there."""
        xen.core.count_call(self._op, number)
        handler = self._handlers.get(number)
        if handler is None:
            raise HypercallError(ENOSYS, self._name, number)
        return handler(xen, ctx, argument)


def require_privilege(ctx: HypercallContext) -> None:
    """Raises HypercallError(EPERM) unless domain 0 calls."""
    if not ctx.is_privileged:
        raise HypercallError(EPERM)

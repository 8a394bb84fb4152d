"""What reaches the core when a handler fails."""

import logging
from typing import Any

import pytest

from ring3.abi.errno import EBUSY, EFAULT, EINVAL, ENOMEM, ENOSYS
from ring3.errors import HypercallError
from support import fake_core


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (HypercallError(EBUSY), -EBUSY),
        (fake_core.GuestFault(), -EFAULT),
        (fake_core.CoreError(ENOMEM, "no frames"), -ENOMEM),
        (fake_core.CoreError(), -EINVAL),
        (ZeroDivisionError(), -EINVAL),
        (RecursionError(), -EINVAL),
    ],
)
def test_failures_become_negative_numbers(
    xen: Any, caller: Any, error: Exception, result: int, caplog: pytest.LogCaptureFixture
) -> None:
    from ring3.hypervisor.registry import guarded

    def handler(_xen: object, _ctx: object, *_args: int) -> int:
        raise error

    with caplog.at_level(logging.ERROR):
        assert guarded(xen, 36, handler)(caller, 1, 2, 3, 4, 5) == result
    assert bool(caplog.records) == isinstance(error, ArithmeticError | RecursionError), "only our own bugs are logged"


def test_two_handlers_for_one_number_are_our_bug() -> None:
    from ring3.hypervisor.registry import Coverage, hypercall

    with pytest.raises(ValueError, match="36"):
        hypercall(36, "again", Coverage.FULL)(lambda *_args: 0)


def test_rows_are_unique_and_name_their_errno() -> None:
    from ring3.hypervisor import registry, table

    assert table
    rows = registry.rows()
    assert len({(row.op, row.subop) for row in rows}) == len(rows)
    for row in rows:
        assert row.coverage != registry.Coverage.REFUSED or row.note.startswith("-E"), row
        assert row.coverage != registry.Coverage.PARTIAL or row.note, row


@pytest.mark.parametrize("op", [27, 31, 37, 38, 39, 42])
def test_hypercalls_that_nobody_answers(xen: Any, caller: Any, op: int) -> None:
    assert xen.core._cold[op](caller, 1, 2, 3, 4, 5) == -ENOSYS

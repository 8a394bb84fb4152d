"""The hypercall table and its counters, as XEN_SYSCTL_perfc_op gives them.

Source: sysctl.h, struct xen_sysctl_perfc_op.
"""

from __future__ import annotations

from dataclasses import dataclass
from struct import Struct
from typing import Final

from ring3.abi.sysctl import XEN_SYSCTL_INTERFACE_VERSION, XEN_SYSCTL_perfc_op, xen_sysctl
from ring3.abi.xen import __HYPERVISOR_sysctl as SYSCTL
from ring3.libs.connection import Connection

_PERFCOP_query: Final = 2
_OP: Final = Struct("<III4xQQ")
_DESC: Final = Struct("<80sI")


@dataclass(frozen=True, slots=True)
class HypercallRow:
    """One hypercall or sub-op: `number` is "36" or "36.1"."""

    number: str
    name: str
    coverage: str
    note: str
    nr_calls: int

    def sort_key(self) -> tuple[int, ...]:
        """Orders by number, then sub-op."""
        return tuple(int(part) for part in self.number.split("."))


def hypercalls(conn: Connection) -> list[HypercallRow]:
    """Returns every row of the table."""
    nr_rows, _names, _values = _query(conn, 0)
    nr_rows, names, values = _query(conn, nr_rows)
    rows = []
    for index in range(nr_rows):
        text, _nr_vals = _DESC.unpack_from(names, index * _DESC.size)
        number, coverage, rest = text.rstrip(b"\0").decode("ascii", "replace").split(" ", 2)
        name, _colon, note = rest.partition(": ")
        rows.append(
            HypercallRow(number, name, coverage, note, int.from_bytes(values[4 * index : 4 * index + 4], "little"))
        )
    return rows


def _query(conn: Connection, nr_rows: int) -> tuple[int, bytes, bytes]:
    op = xen_sysctl(cmd=XEN_SYSCTL_perfc_op, interface_version=XEN_SYSCTL_INTERFACE_VERSION)
    with conn.arena() as arena:
        names = arena.alloc(nr_rows * _DESC.size) if nr_rows else None
        values = arena.alloc(nr_rows * 4) if nr_rows else None
        handles = (names.handle, values.handle) if names and values else (0, 0)
        _OP.pack_into(op.u.pad, 0, _PERFCOP_query, 0, 0, *handles)
        conn.call(SYSCTL, None, op, subop=op.cmd)
        nr_counters = _OP.unpack_from(op.u.pad)[1]
        return nr_counters, names.bytes() if names else b"", values.bytes() if values else b""

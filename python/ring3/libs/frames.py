"""Frames of domain 0: what its back ends copy to and from by GNTTABOP_copy, which names one's own frames by number.

A process that dies leaves its frames with domain 0. So their numbers are kept in a file, and its successor takes them.
"""

from __future__ import annotations

from array import array
from pathlib import Path

from ring3.abi.xen import DOMID_SELF
from ring3.libs import domctl, memory
from ring3.libs.connection import Connection
from ring3.libs.window import Window


class OwnFrames:
    """Frames of domain 0, next to each other in `view`; `mfns` has their numbers. Kept until the process ends."""

    def __init__(self, conn: Connection, nr_frames: int, record: Path) -> None:
        """Takes those that `record` lists, and more if need be. Raises NoMemory, HypercallError, OSError."""
        self.mfns = _recorded(record)[:nr_frames]
        nr_more = nr_frames - len(self.mfns)
        if nr_more > 0:
            nr_before = memory.current_reservation(conn, DOMID_SELF)
            domctl.max_mem(conn, 0, nr_before + nr_more << 2)
            self.mfns += memory.populate_physmap(conn, DOMID_SELF, range(nr_before, nr_before + nr_more))
            partial = record.with_suffix(".part")
            partial.write_bytes(self.mfns.tobytes())
            partial.replace(record)
        self._window = Window(nr_frames)
        self._window.show_all(conn.memfd, self.mfns, writable=True)
        self.view = self._window.view


def _recorded(record: Path) -> array[int]:
    mfns = array("Q")
    try:
        data = record.read_bytes()
    except FileNotFoundError:
        return mfns
    mfns.frombytes(data[: len(data) - len(data) % mfns.itemsize])
    return mfns

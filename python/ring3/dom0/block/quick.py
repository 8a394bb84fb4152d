"""The part of the data path that is too slow in Python: reads and writes of pages that are held, in the page cache.

It serves a ring that has no unanswered requests until it meets one that is for Python: anything else, or what would
have to wait. See crates/blkif.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from mmap import mmap
from typing import Final

from ring3._core import BlockRing
from ring3.abi.blkif import Protocol
from ring3.dom0.block.image import RawImage
from ring3.dom0.block.journal import Journal
from ring3.dom0.block.requests import MAX_INDIRECT_SEGMENTS
from ring3.dom0.block.ring import BackRing

_LOOK_MAX_NS: Final = 200_000
"""How long an empty ring is looked at before sleeping, at most."""


@dataclass(frozen=True, slots=True)
class RingEvents:
    """What a ring's requests are announced by, in the loop of its service."""

    shared_info: mmap
    bells_at: int
    upcall_fd: int
    poller_fd: int
    port: int
    take_ports: Callable[[Iterable[int]], None]


class QuickPath:
    """The quick path of a ring. `notice` is what raises the front end's event: a socket, and packets for it, of
    which the second may wait while the front end's vCPU is busy.

    `events`, if it may wait for requests itself: what it waits for, and who is told of ports of others.
    """

    def __init__(
        self,
        machine: memoryview,
        page: memoryview,
        journal: Journal,
        protocol: Protocol,
        image: RawImage,
        notice: tuple[int, bytes, bytes] | None,
        events: RingEvents | None = None,
    ) -> None:
        self._image = image
        self._events = events
        waits_for = None
        if events is not None:
            waits_for = events.shared_info, events.upcall_fd, events.poller_fd, events.port, events.bells_at
        memory = machine, page, journal.view
        self._core = BlockRing(
            *(memory, protocol.slot_bytes, MAX_INDIRECT_SEGMENTS, image.fileno()), notice, waits_for, _LOOK_MAX_NS
        )

    def hold(self, gref: int, address: int) -> None:
        """Says where the page of a grant is that is held to the end of the connection."""
        self._core.hold(gref, address)

    def serve(self, ring: BackRing, nr_sectors: int, *, is_read_only: bool, idle_ms: int) -> tuple[bool, bool | None]:
        """Serves what it can. For `idle_ms` there is nothing else to do: it may look at the empty ring for a while, and
        wait for requests.

        Returns whether the front end is still to be told, and whether there may be more; None if the next request, if
        there is one, is not for here.
        """
        may_write = not is_read_only and self._image.is_write_quick()
        index, is_untold, end, waited_ns, ports = self._core.serve(ring.index, nr_sectors, may_write, idle_ms)
        ring.skip(index)
        if ports and self._events is not None:
            self._events.take_ports(ports)
        if waited_ns:
            self._image.avoid_writes(waited_ns)
        return is_untold, {"empty": False, "other": None}.get(end, True)

    def close(self) -> None:
        """Lets go of the memory."""
        self._core.close()

"""A disk of a domain: requests of its queues, carried out on its image."""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Final

from ring3.abi.blkif import (
    BLKIF_OP_DISCARD,
    BLKIF_OP_FLUSH_DISKCACHE,
    BLKIF_OP_READ,
    BLKIF_OP_WRITE_BARRIER,
    BLKIF_RSP_EOPNOTSUPP,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
    SECTOR_BYTES,
    SEGMENT,
    Protocol,
)
from ring3.abi.xen import PAGE_SIZE
from ring3.dom0.block.grants import GrantPool
from ring3.dom0.block.image import Image
from ring3.dom0.block.journal import Journal
from ring3.dom0.block.pool import Pool
from ring3.dom0.block.quick import QuickPath
from ring3.dom0.block.requests import OPERATIONS, Request, parse, set_segments
from ring3.dom0.block.ring import BackRing
from ring3.libs.gnttab import GrantMapping

_log = logging.getLogger(__name__)
_BATCH: Final = 64
_WHOLE_PAGE: Final = (0, PAGE_SIZE // SECTOR_BYTES - 1)
_NR_WARNINGS_MAX: Final = 20
"""A guest that asks for nonsense fills no log."""


@dataclass(slots=True, eq=False)
class Queue:
    """A ring, its pages and its event channel."""

    ring: BackRing
    pages: GrantMapping
    journal: Journal
    port: int
    quick: QuickPath | None = None
    """Serves what needs no Python, if the image is one that it can."""
    has_news: bool = False
    """Whether there are answers that the front end has not been told of."""


class Vbd:
    """A connected disk. `machine` is the machine's whole memory."""

    def __init__(
        self,
        name: str,
        image: Image,
        nr_sectors: int,
        protocol: Protocol,
        grants: GrantPool,
        machine: memoryview,
        pool: Pool,
        *,
        came_back: Callable[[Queue], None],
        is_read_only: bool,
        has_discard: bool,
    ) -> None:
        """`came_back` is called when a queue has an answer that it did not have when it was served."""
        self.name = name
        self.image = image
        self.nr_sectors = nr_sectors
        self.queues: list[Queue] = []
        self._protocol = protocol
        self._grants = grants
        self._machine = machine
        self._pool = pool
        self._came_back = came_back
        self._is_read_only = is_read_only
        self._has_discard = has_discard
        self._nr_in_pool = 0
        self._held: deque[tuple[Callable[[], None], bool]] = deque()
        self._has_barrier = False
        self._nr_warnings = 0

    # -- requests

    def serve(self, queue: Queue, *, idle_ms: int = 0) -> bool:
        """Takes requests and answers those that are done. Returns whether there may be more. Raises RingError.

        For `idle_ms` there is nothing else to do, so it may wait for requests.
        """
        if queue.has_news:
            idle_ms = 0  # to tell of it comes first
        if queue.quick is not None and queue.ring.is_settled and not self._held and not self._has_barrier:
            is_untold, has_more = queue.quick.serve(
                queue.ring, self.nr_sectors, is_read_only=self._is_read_only, idle_ms=idle_ms
            )
            queue.has_news |= is_untold
            if has_more is not None:
                return has_more
        taken = [] if self._held else queue.ring.take(_BATCH)
        if taken:
            self._begin(queue, taken)
        self.publish(queue)
        return not self._held and queue.ring.has_more()

    def publish(self, queue: Queue) -> None:
        """Gives back the grants of what is done, then tells the front end."""
        self._grants.flush()
        queue.has_news |= queue.ring.publish()

    def _begin(self, queue: Queue, taken: list[tuple[int, bytes]]) -> None:
        requests: list[tuple[int, Request]] = []
        for index, raw in taken:
            request, fault = parse(raw, self._protocol)
            if fault is None:
                fault = self._check(request)
            if fault is not None:
                self._refuse(queue, index, request, fault)
            else:
                requests.append((index, request))
        indirect = [(index, request) for index, request in requests if request.indirect_grefs]
        if indirect:
            refused = self._read_segments(queue, indirect)
            requests = [(index, request) for index, request in requests if index not in refused]
        self._grants.acquire(
            (gref, request.operation == BLKIF_OP_READ)
            for _index, request in requests
            if self._grants.pages(request.grefs) is None
            for gref in request.grefs
        )
        for index, request in requests:
            self._execute(queue, index, request)

    def _check(self, request: Request) -> str | None:
        """Returns why a request cannot be carried out, if it cannot."""
        if request.operation == BLKIF_OP_FLUSH_DISKCACHE and not request.nr_sectors:
            return None
        if request.sector + request.nr_sectors > self.nr_sectors:
            return f"sectors {request.sector} + {request.nr_sectors} of {self.nr_sectors}"
        if self._is_read_only and request.operation != BLKIF_OP_READ:
            return "the disk is read-only"
        return None

    def _read_segments(self, queue: Queue, requests: list[tuple[int, Request]]) -> set[int]:
        """Copies the segments of indirect requests out of their pages; returns those that are refused."""
        refused = set()
        self._grants.acquire((gref, False) for _index, request in requests for gref in request.indirect_grefs)
        for index, request in requests:
            table = b""
            for gref in request.indirect_grefs:
                address = self._grants.use(gref, writable=False)
                if address is not None:
                    table += self._machine[address : address + PAGE_SIZE].tobytes()
                    self._grants.leave(gref, writable=False)
            nr_bytes = request.nr_indirect_segments * SEGMENT.size
            fault = "an indirect page that is not granted"
            if len(table) >= nr_bytes:
                fault = set_segments(request, table[:nr_bytes]) or self._check(request) or ""
            if fault:
                refused.add(index)
                self._refuse(queue, index, request, fault)
        return refused

    def _execute(self, queue: Queue, index: int, request: Request) -> None:
        operation = request.operation
        offset, nr_bytes = request.sector * SECTOR_BYTES, request.nr_sectors * SECTOR_BYTES
        if operation == BLKIF_OP_DISCARD:
            if not self._has_discard:
                self._answer(queue, index, request, BLKIF_RSP_EOPNOTSUPP)
            elif not nr_bytes:
                self._answer(queue, index, request, BLKIF_RSP_OKAY)
            else:
                job = partial(self.image.discard, offset, nr_bytes)
                self._start_in_order(partial(self._submit, queue, index, request, [], job))
            return
        buffers = self._buffers(request)
        if buffers is None:
            self._refuse(queue, index, request, "a page that is not granted")
        elif operation in (BLKIF_OP_WRITE_BARRIER, BLKIF_OP_FLUSH_DISKCACHE):
            job = partial(self._write_and_flush, buffers, offset, nr_bytes)
            start = partial(self._submit, queue, index, request, buffers, job)
            self._start_in_order(start, is_barrier=operation == BLKIF_OP_WRITE_BARRIER)
        else:
            self._start_in_order(partial(self._move, queue, index, request, buffers, offset, nr_bytes))

    def _move(
        self, queue: Queue, index: int, request: Request, buffers: list[memoryview], offset: int, nr_bytes: int
    ) -> None:
        """Reads or writes: at once if that is quick, else in a thread."""
        image, is_read = self.image, request.operation == BLKIF_OP_READ
        try:
            at_once = image.read_cached if is_read else image.write_quickly
            if at_once(buffers, offset, nr_bytes):
                self._finish(queue, index, request, buffers, None)
                return
        except OSError as error:
            self._finish(queue, index, request, buffers, error)
            return
        job = partial(image.read if is_read else image.write, buffers, offset, nr_bytes)
        self._submit(queue, index, request, buffers, job)

    def _write_and_flush(self, buffers: list[memoryview], offset: int, nr_bytes: int) -> None:
        if buffers:
            self.image.write(buffers, offset, nr_bytes)
        self.image.flush()

    def _buffers(self, request: Request) -> list[memoryview] | None:
        """Returns the request's memory; None, with no grant in use, where a page cannot be had."""
        machine, grants = self._machine, self._grants
        if request.ranges is None:
            pages = grants.pages(request.grefs)
            if pages is not None:
                return pages
        writable = request.operation == BLKIF_OP_READ
        buffers: list[memoryview] = []
        for gref, (first, last) in zip(request.grefs, request.ranges or repeat(_WHOLE_PAGE), strict=False):
            address = grants.use(gref, writable=writable)
            if address is None:
                for used in request.grefs[: len(buffers)]:
                    grants.leave(used, writable=writable)
                return None
            buffers.append(machine[address + first * SECTOR_BYTES : address + (last + 1) * SECTOR_BYTES])
        request.leaves_grants = True
        return buffers

    # -- order

    def _start_in_order(self, start: Callable[[], None], *, is_barrier: bool = False) -> None:
        """Starts what a request asks for; a barrier after all before it, and what comes after a barrier after that."""
        if self._held or self._has_barrier or (is_barrier and self._nr_in_pool):
            self._held.append((start, is_barrier))
            return
        self._has_barrier = is_barrier
        start()

    def _start_held(self) -> None:
        if not self._nr_in_pool:
            self._has_barrier = False
        while self._held and not self._has_barrier:
            start, is_barrier = self._held[0]
            if is_barrier and self._nr_in_pool:
                return
            self._held.popleft()
            self._has_barrier = is_barrier
            start()

    # -- what takes long

    def _submit(
        self, queue: Queue, index: int, request: Request, buffers: list[memoryview], job: Callable[[], None]
    ) -> None:
        self._nr_in_pool += 1
        self._pool.submit(job, partial(self._come_back, queue, index, request, buffers))

    def _come_back(
        self, queue: Queue, index: int, request: Request, buffers: list[memoryview], error: OSError | None
    ) -> None:
        self._nr_in_pool -= 1
        self._finish(queue, index, request, buffers, error)
        self._start_held()
        for each in self.queues:  # one that had to stop for a barrier of another may go on, too
            self._came_back(each)

    def _finish(
        self, queue: Queue, index: int, request: Request, buffers: list[memoryview], error: OSError | None
    ) -> None:
        if request.leaves_grants:
            writable = request.operation == BLKIF_OP_READ
            for buffer in buffers:
                buffer.release()
            for gref in request.grefs:
                self._grants.leave(gref, writable=writable)
        status = BLKIF_RSP_OKAY
        if error is not None:
            status = BLKIF_RSP_EOPNOTSUPP if error.errno == errno.EOPNOTSUPP else BLKIF_RSP_ERROR
            self._warn(f"operation {request.operation} at sector {request.sector}: {error.strerror or error}")
        self._answer(queue, index, request, status)

    def _refuse(self, queue: Queue, index: int, request: Request, fault: str) -> None:
        self._warn(f"domain asks for {fault}")
        is_known = request.operation in OPERATIONS
        self._answer(queue, index, request, BLKIF_RSP_ERROR if is_known else BLKIF_RSP_EOPNOTSUPP)

    def _answer(self, queue: Queue, index: int, request: Request, status: int) -> None:
        queue.ring.answer(index, self._protocol.response.pack(request.id, request.operation, status))

    def _warn(self, text: str) -> None:
        self._nr_warnings += 1
        if self._nr_warnings <= _NR_WARNINGS_MAX:
            _log.warning("%s: %s", self.name, text)

    # -- ending

    @property
    def is_idle(self) -> bool:
        """Whether no thread uses the guest's memory."""
        return not self._nr_in_pool

    def close(self, *, keep_journals: bool) -> list[int]:
        """Lets go of pages and grants, once it is idle; returns the ports, which are the caller's to close."""
        self._held.clear()
        for queue in self.queues:
            if queue.quick is not None:
                queue.quick.close()
            queue.ring.release()
            queue.pages.close()
            queue.journal.close(keep=keep_journals)
        self._grants.close()
        return [queue.port for queue in self.queues]

"""Threads for I/O that takes long: a read from the disk, a flush. What is in the page cache does not come here."""

from __future__ import annotations

import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

NR_THREADS: Final = 8

Job: TypeAlias = Callable[[], None]
"""Does I/O in a thread. Raises OSError."""
Done: TypeAlias = Callable[[OSError | None], None]
"""Goes on in the loop with what became of it."""


class Pool:
    """Starts its threads when there is work for them."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Job, Done] | None] = queue.SimpleQueue()
        self._finished: deque[tuple[Done, OSError | None]] = deque()
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads: list[threading.Thread] = []
        self._nr_waiting = 0

    def fileno(self) -> int:
        """Returns the descriptor that is readable when finish() has something to do."""
        return self._eventfd

    def submit(self, job: Job, done: Done) -> None:
        """Has a job done."""
        self._nr_waiting += 1
        if len(self._threads) < min(NR_THREADS, self._nr_waiting):
            thread = threading.Thread(target=self._work, name="block-io", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._jobs.put((job, done))

    def finish(self) -> None:
        """Goes on with the jobs that are done."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._eventfd)
        while self._finished:
            done, error = self._finished.popleft()
            self._nr_waiting -= 1
            done(error)

    def close(self) -> None:
        """Ends the threads, after what they have begun."""
        for _thread in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            job, done = task
            error = None
            try:
                job()
            except OSError as failure:
                error = failure
            except Exception as failure:  # our bug: the guest gets an error, not a hang
                error = OSError(str(failure))
            self._finished.append((done, error))
            os.eventfd_write(self._eventfd, 1)

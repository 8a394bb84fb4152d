"""What the loop of a service waits for."""

from __future__ import annotations

import contextlib
import select
from collections.abc import Callable
from typing import TypeAlias

Handler: TypeAlias = Callable[[int], None]
"""Is told which events came."""


class Poller:
    """What the daemon waits for, by descriptor."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def fileno(self) -> int:
        """Returns an epoll set, by the numbers of its descriptors, that is readable when wait() has something to do."""
        return self._poll.fileno()

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Waits for other events of a descriptor, for the first time or from now on; for none, if they are 0."""
        is_known = fd in self._handlers
        if not events:
            self.forget(fd)
            return
        self._handlers[fd] = handler
        (self._poll.modify if is_known else self._poll.register)(fd, events)

    def forget(self, fd: int) -> None:
        """Waits for nothing of a descriptor any more."""
        if self._handlers.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._poll.unregister(fd)

    def wait(self, timeout_s: float | None) -> None:
        """Waits, and calls the handlers of what is ready."""
        for fd, events in self._poll.poll(timeout_s):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)

    def close(self) -> None:
        """Stops."""
        self._poll.close()

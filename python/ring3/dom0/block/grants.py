"""The guest's pages that requests name: grants, held once for all (persistent), or for as long as a request takes.

The service maps the whole machine memory; a grant that is held says where in it a page is, and that the page stays the
guest's meanwhile. So nothing is mapped for a request, and nothing copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from ring3.abi.xen import PAGE_SIZE
from ring3.libs.gnttab import Grants

NR_PERSISTENT_MAX: Final = 4096
"""16 MiB; with more, grants are held for single requests. Linux's back end stops at 1056 for each queue."""


class GrantPool:
    """The grants of one domain that are held for one disk."""

    def __init__(self, grants: Grants, domid: int, machine: memoryview, *, is_persistent: bool) -> None:
        self._grants = grants
        self._machine = machine
        self._pages: dict[int, memoryview] = {}
        """The pages of persistent grants."""
        self._domid = domid
        self._is_persistent = is_persistent
        self._held: dict[int, tuple[int, int]] = {}
        """gref to (handle, machine address)."""
        self._used: dict[tuple[int, bool], list[int]] = {}
        """(gref, writable) of a grant that is not persistent: handle, address, number of users."""
        self.listeners: list[Callable[[int, int], None]] = []
        """Are told of each persistent grant and the machine address of its page."""

    def pages(self, grefs: Iterable[int]) -> list[memoryview] | None:
        """Returns the pages of persistent grants, which need no leave(); None if one of them is not held."""
        try:
            return [self._pages[gref] for gref in grefs]
        except KeyError:
            return None

    def acquire(self, wanted: Iterable[tuple[int, bool]]) -> None:
        """Holds grants, each (gref, writable), that are not held yet; with one call for all."""
        missing = dict.fromkeys(
            (gref, writable or self._is_persistent)
            for gref, writable in wanted
            if gref not in self._held and (gref, writable or self._is_persistent) not in self._used
        )
        if not missing:
            return
        answers = self._grants.hold(self._domid, list(missing))
        for (gref, writable), held in zip(missing, answers, strict=True):
            if held is None:
                continue
            if self._is_persistent and len(self._held) < NR_PERSISTENT_MAX:
                self._held[gref] = held
                self._pages[gref] = self._machine[held[1] : held[1] + PAGE_SIZE]
                for listener in self.listeners:
                    listener(gref, held[1])
            else:
                self._used[gref, writable] = [*held, 0]

    def use(self, gref: int, *, writable: bool) -> int | None:
        """Returns the machine address of a granted page; None if it could not be had."""
        held = self._held.get(gref)
        if held is not None:
            return held[1]
        used = self._used.get((gref, writable or self._is_persistent))
        if used is None:
            return None
        used[2] += 1
        return used[1]

    def leave(self, gref: int, *, writable: bool) -> None:
        """Ends a use: the grant goes back with the next flush(), unless it is persistent or in use elsewhere."""
        used = self._used.get((gref, writable or self._is_persistent))
        if gref not in self._held and used is not None:
            used[2] -= 1

    def flush(self) -> None:
        """Gives back what is not used any more. Call before the front end learns that its requests are done."""
        idle = [key for key, used in self._used.items() if used[2] <= 0]
        if idle:
            self._give_back([self._used.pop(key) for key in idle])

    def _give_back(self, held: Iterable[Sequence[int]]) -> None:
        self._grants.unmap([(handle, address) for handle, address, *_users in held])

    def close(self) -> None:
        """Gives back all. Nobody may use an address any more."""
        held = [*self._held.values(), *self._used.values()]
        self._held.clear()
        self._pages.clear()
        self._used.clear()
        self._give_back(held)

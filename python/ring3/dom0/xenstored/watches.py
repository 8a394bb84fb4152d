"""Watches: who is told about which change. Plain values, no I/O."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from ring3.dom0.xenstored.paths import parent_of

if TYPE_CHECKING:
    from ring3.dom0.xenstored.clients import Client

KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True, eq=False)
class Watch:
    """One registered watch.

    `spelt` is the path as the client gave it, `path` what it means, `prefix` what events leave out: the client's home
    and "/", for a relative path. `depth` limits how many levels below the path a change may be (None: any).
    """

    client: Client
    spelt: bytes
    path: bytes
    token: bytes
    prefix: bytes
    depth: int | None = None

    def event_path(self, changed: bytes) -> bytes:
        """Returns the changed path as this client spells it."""
        return changed.removeprefix(self.prefix) if self.prefix else changed

    @property
    def nr_bytes(self) -> int:
        """What it makes the daemon hold."""
        return len(self.path) + len(self.token)


class Watches:
    """The register of watches, by path: the cost of a change is its depth, not the number of watches."""

    def __init__(self) -> None:
        self._by_path: dict[bytes, list[Watch]] = {}
        self._by_client: dict[Client, list[Watch]] = {}

    def add(self, watch: Watch) -> bool:
        """Registers a watch; False if the client has one with the same path and token."""
        mine = self._by_client.setdefault(watch.client, [])
        if any(other.path == watch.path and other.token == watch.token for other in mine):
            return False
        mine.append(watch)
        self._by_path.setdefault(watch.path, []).append(watch)
        return True

    def remove(self, client: Client, path: bytes, token: bytes) -> Watch | None:
        """Drops one watch and returns it; None if there is none such."""
        for watch in self._by_client.get(client, []):
            if watch.path == path and watch.token == token:
                self._drop(watch)
                return watch
        return None

    def remove_client(self, client: Client) -> None:
        """Drops every watch of a client."""
        for watch in list(self._by_client.get(client, [])):
            self._drop(watch)

    def of(self, client: Client) -> list[Watch]:
        """Returns the watches that a client holds."""
        return self._by_client.get(client, [])

    def affected(self, changed: bytes, *, exact: bool = False) -> Iterator[Watch]:
        """Yields the watches that a change concerns: on the path and, unless `exact`, on every ancestor of it."""
        yield from self._by_path.get(changed, ())
        if exact or not changed.startswith(b"/"):
            return
        path, distance = changed, 0
        while path != b"/":
            path = parent_of(path)
            distance += 1
            for watch in self._by_path.get(path, ()):
                if watch.depth is None or distance <= watch.depth:
                    yield watch

    def _drop(self, watch: Watch) -> None:
        _drop_from(self._by_path, watch.path, watch)
        _drop_from(self._by_client, watch.client, watch)


def _drop_from(table: dict[KeyT, list[Watch]], key: KeyT, watch: Watch) -> None:
    rest = [other for other in table[key] if other is not watch]
    if rest:
        table[key] = rest
    else:
        del table[key]

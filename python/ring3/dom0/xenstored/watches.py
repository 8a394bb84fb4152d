"""Watches: who is told about which change. Plain values, no I/O."""

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from ring3.dom0.xenstored.store import parent_of

ClientT = TypeVar("ClientT", bound=Hashable)
KeyT = TypeVar("KeyT", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Watch(Generic[ClientT]):
    """One registered watch. `prefix` is what events leave out: the client's home and "/", for a relative path."""

    client: ClientT
    path: bytes
    token: bytes
    prefix: bytes

    def event_path(self, changed: bytes) -> bytes:
        """Returns the changed path as this client spells it."""
        return changed.removeprefix(self.prefix) if self.prefix else changed


class Watches(Generic[ClientT]):
    """The register of watches, by path: the cost of a change is its depth, not the number of watches."""

    def __init__(self) -> None:
        self._by_path: dict[bytes, list[Watch[ClientT]]] = {}
        self._by_client: dict[ClientT, list[Watch[ClientT]]] = {}

    def add(self, watch: Watch[ClientT]) -> bool:
        """Registers a watch; False if the client has one with the same path and token."""
        mine = self._by_client.setdefault(watch.client, [])
        if any(other.path == watch.path and other.token == watch.token for other in mine):
            return False
        mine.append(watch)
        self._by_path.setdefault(watch.path, []).append(watch)
        return True

    def remove(self, client: ClientT, path: bytes, token: bytes) -> bool:
        """Drops one watch; False if there is none such."""
        for watch in self._by_client.get(client, []):
            if watch.path == path and watch.token == token:
                self._drop(watch)
                return True
        return False

    def remove_client(self, client: ClientT) -> None:
        """Drops every watch of a client."""
        for watch in list(self._by_client.get(client, [])):
            self._drop(watch)

    def count(self, client: ClientT) -> int:
        """Returns the number of watches that a client holds."""
        return len(self._by_client.get(client, []))

    def affected(self, changed: bytes, *, exact: bool = False) -> Iterator[Watch[ClientT]]:
        """Yields the watches that a change concerns: on the path and, unless `exact`, on every ancestor of it."""
        yield from self._by_path.get(changed, ())
        if exact or not changed.startswith(b"/"):
            return
        path = changed
        while path != b"/":
            path = parent_of(path)
            yield from self._by_path.get(path, ())

    def _drop(self, watch: Watch[ClientT]) -> None:
        _drop_from(self._by_path, watch.path, watch)
        _drop_from(self._by_client, watch.client, watch)


def _drop_from(table: dict[KeyT, list[Watch[ClientT]]], key: KeyT, watch: Watch[ClientT]) -> None:
    rest = [other for other in table[key] if other is not watch]
    if rest:
        table[key] = rest
    else:
        del table[key]

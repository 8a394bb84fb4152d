"""The fids of a session: the client's numbers for files. No I/O.

A fid stands for a path, as names below the shared directory. Each use of it looks the path up again, so a fid never
holds on to what was removed; one that is open has a descriptor (`tree`), which does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from errno import EBADF, EMFILE, ENFILE
from typing import Final, TypeAlias

Names: TypeAlias = tuple[bytes, ...]
NR_FIDS_MAX: Final = 1 << 16
NR_OPEN_MAX: Final = 2048


@dataclass(slots=True)
class XattrValue:
    """An extended attribute that a fid reads (whole), or writes: then it is set when the fid is let go."""

    name: bytes
    data: bytearray
    flags: int | None = None
    """How to set it; None for one that is read."""
    size: int = 0


@dataclass(slots=True)
class Fid:
    """One fid."""

    number: int
    names: Names
    uid: int
    fd: int | None = None
    """Open: the descriptor of its file."""
    open_flags: int | None = None
    """How it was opened, if it was."""
    is_dir: bool = False
    xattr: XattrValue | None = None
    locks: list[tuple[int, int, int]] = field(default_factory=list)
    """Type, start and length of each lock asked for, in order."""

    @property
    def is_open(self) -> bool:
        """Whether it can be read or written."""
        return self.fd is not None


class Fids:
    """All fids of a session. Raises OSError as the host would for a file too many."""

    def __init__(self) -> None:
        self._fids: dict[int, Fid] = {}

    def __iter__(self) -> Iterator[Fid]:
        return iter(self._fids.values())

    def __len__(self) -> int:
        return len(self._fids)

    def get(self, number: int) -> Fid:
        """Returns a fid. Raises OSError for a number that stands for nothing."""
        try:
            return self._fids[number]
        except KeyError:
            raise OSError(EBADF, f"fid {number:#x}") from None

    def add(self, fid: Fid) -> Fid:
        """Takes a fid in. Raises OSError for a number in use, or one too many."""
        if fid.number in self._fids:
            raise OSError(EBADF, f"fid {fid.number:#x} is in use")
        if len(self._fids) >= NR_FIDS_MAX:
            raise OSError(ENFILE, "too many fids")
        self._fids[fid.number] = fid
        return fid

    def drop(self, number: int) -> Fid:
        """Forgets a fid and returns it. Raises OSError."""
        fid = self.get(number)
        del self._fids[number]
        return fid

    def check_room_to_open(self) -> None:
        """Raises OSError if as many are open as may be."""
        if sum(fid.is_open for fid in self._fids.values()) >= NR_OPEN_MAX:
            raise OSError(EMFILE, "too many open files")

    def renamed(self, old: Names, new: Names) -> list[Fid]:
        """Gives fids at or below a path that was renamed their new one; returns them."""
        changed = []
        for fid in self._fids.values():
            if fid.names[: len(old)] == old:
                fid.names = new + fid.names[len(old) :]
                changed.append(fid)
        return changed

"""A packet on its way: where its bytes are, and what offloads say about it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from ring3.abi.netif import XEN_NETIF_GSO_TYPE_NONE

if TYPE_CHECKING:
    from collections.abc import Callable

HEADER_BYTES: Final = 256
"""So much of a packet is copied before it is looked at: Ethernet, IP with options, TCP with options."""
HEADER_BYTES_USUAL: Final = 58
"""Ethernet, IPv4 and TCP, or IPv6 and TCP's ports: where the first part has as much, the second is left alone."""

Part = tuple[int, int, int, int]
"""Grant reference (or frame of domain 0), domid (DOMID_SELF for a frame), offset in the page, bytes."""


@dataclass(slots=True, eq=False)
class Packet:
    """A frame of Ethernet. `parts` are its bytes in order; who uses them counts in `nr_users`."""

    parts: list[Part]
    nr_bytes: int
    is_blank: bool = False
    """The checksum of TCP or UDP is that of the pseudo header only."""
    is_validated: bool = False
    """Nobody need check the checksum of TCP or UDP."""
    gso_type: int = XEN_NETIF_GSO_TYPE_NONE
    gso_size: int = 0
    header: bytes = b""
    """The first HEADER_BYTES, as they will be delivered."""
    header_at: tuple[int, int] = (0, 0)
    """Where in the sender's area the header is, and its bytes, if only that is there."""
    views: list[memoryview] = field(default_factory=list, repr=False)
    """All its bytes, if they are in this process's memory."""
    nr_users: int = 0
    is_dead: bool = False
    """Its bytes are gone, with the domain that they were in."""
    is_failed: bool = False
    release: Callable[[], None] | None = field(default=None, repr=False)
    """Gives back the buffers that hold it; called when there is no user any more."""

    def drop_user(self) -> None:
        """One user fewer."""
        self.nr_users -= 1
        if self.nr_users <= 0 and self.release is not None:
            release, self.release = self.release, None
            release()

    @property
    def destination(self) -> bytes:
        """MAC address."""
        return self.header[:6]

    @property
    def source(self) -> bytes:
        """MAC address."""
        return self.header[6:12]

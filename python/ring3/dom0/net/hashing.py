"""The hash that a front end orders by its control ring: which queue a packet goes to, and what it is told of it.

No I/O. Source: xen/include/public/io/netif.h, "Hash types", "Hash algorithms".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from ring3.abi import netif

KEY_BYTES_MAX: Final = 40
"""What the longest input (36 bytes) needs. Source: Linux, XEN_NETBK_MAX_HASH_KEY_SIZE."""
MAPPING_SIZE_MAX: Final = 128
"""Source: Linux, XEN_NETBK_MAX_HASH_MAPPING_SIZE."""
ALL_TYPES: Final = (
    netif.XEN_NETIF_CTRL_HASH_TYPE_IPV4
    | netif.XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP
    | netif.XEN_NETIF_CTRL_HASH_TYPE_IPV6
    | netif.XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP
)
_NR_INPUT_BYTES_MAX: Final = 36
_ETH: Final = 14
_IPV4, _IPV6, _VLAN = b"\x08\x00", b"\x86\xdd", b"\x81\x00"
_TCP: Final = 6


class PacketHash(NamedTuple):
    """The hash of one packet."""

    kind: int
    """One of _XEN_NETIF_CTRL_HASH_TYPE_*, the number of its bit."""
    value: int


@dataclass(slots=True)
class Hashing:
    """What a front end has ordered. The defaults are those of one that orders nothing."""

    algorithm: int = netif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
    types: int = 0
    key: bytes = b""
    mapping: list[int] = field(default_factory=list)
    """Numbers of queues; empty: the hash modulo the number of queues."""
    _tables: list[list[int]] = field(default_factory=list, repr=False)
    """By place and value of an input byte, what it adds to the hash."""

    @property
    def is_on(self) -> bool:
        """Whether packets are hashed."""
        return self.algorithm != netif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE and self.types != 0

    def set_key(self, key: bytes) -> None:
        """Takes a new key, of at most KEY_BYTES_MAX bytes; what is missing is zero."""
        self.key = key
        self._tables = []

    def packet_hash(self, header: bytes) -> PacketHash | None:
        """Returns the hash of a packet that begins so; None if it is of no kind that was ordered."""
        found = _input(header, self.types)
        if found is None:
            return None
        kind, data = found
        tables = self._tables = self._tables or _tables(self.key)
        value = 0
        for table, byte in zip(tables, data, strict=False):
            value ^= table[byte]
        return PacketHash(kind, value)

    def queue(self, found: PacketHash | None, nr_queues: int) -> int:
        """Returns the queue for a packet."""
        value = found.value if found is not None else 0
        queue = self.mapping[value % len(self.mapping)] if self.mapping else value
        return queue % nr_queues  # a successor may find fewer than there were when the table was checked

    def state(self) -> dict[str, Any]:
        """Returns what a successor needs, as JSON has it."""
        return {"algorithm": self.algorithm, "types": self.types, "key": self.key.hex(), "mapping": self.mapping}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Hashing:
        """Returns it from what state() said."""
        return cls(state["algorithm"], state["types"], bytes.fromhex(state["key"]), list(state["mapping"]))


def _tables(key: bytes) -> list[list[int]]:
    """Toeplitz: each bit of the input that is set adds the 32 bits of the key that begin at its place."""
    bits = int.from_bytes(key.ljust(KEY_BYTES_MAX, b"\0"), "big")
    nr_bits = KEY_BYTES_MAX * 8
    tables = []
    for place in range(_NR_INPUT_BYTES_MAX):
        windows = [bits >> (nr_bits - 32 - place * 8 - bit) & 0xFFFFFFFF for bit in range(8)]
        table = [0] * 256
        for value in range(1, 256):
            lowest = value & -value
            table[value] = table[value ^ lowest] ^ windows[8 - lowest.bit_length()]
        tables.append(table)
    return tables


def _input(header: bytes, types: int) -> tuple[int, bytes] | None:
    """Returns the kind of hash, the one that says most, and the bytes that it is of."""
    at = _ETH + 4 if header[12:14] == _VLAN else _ETH
    kind = header[at - 2 : at]
    if kind == _IPV4 and len(header) >= at + 20:
        ports_at = at + (header[at] & 15) * 4
        is_tcp = header[at + 9] == _TCP and not (header[at + 6] & 0x3F | header[at + 7])
        addresses, first = header[at + 12 : at + 20], 0
    elif kind == _IPV6 and len(header) >= at + 40:
        ports_at = at + 40
        is_tcp = header[at + 6] == _TCP
        addresses, first = header[at + 8 : at + 40], 2
    else:
        return None
    ports = header[ports_at : ports_at + 4]
    if is_tcp and types & 2 << first and len(ports) == 4:
        return first + 1, addresses + ports
    return (first, addresses) if types & 1 << first else None

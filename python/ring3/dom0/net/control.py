"""The control ring of a vif: the front end orders a hash by its key, and which queue a hash leads to.

Source: xen/include/public/io/netif.h, "Control messages". Static grants are answered NOT_SUPPORTED, as Linux' back end
answers them.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from ring3.abi import netif
from ring3.abi.netif import (
    NETIF_CTRL_REQUEST,
    NETIF_CTRL_RESPONSE,
    XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW,
    XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER,
    XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED,
    XEN_NETIF_CTRL_STATUS_SUCCESS,
)
from ring3.dom0.net.hashing import ALL_TYPES, KEY_BYTES_MAX, MAPPING_SIZE_MAX, Hashing
from ring3.dom0.shared_ring import SharedRing

_ALGORITHMS: Final = (
    netif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE,
    netif.XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ,
)
_NR_PER_TURN: Final = 16
"""Each may map a page: others have their turn in between."""
_Answer = tuple[int, int]
"""Status, data."""
_SUCCESS: Final[_Answer] = (XEN_NETIF_CTRL_STATUS_SUCCESS, 0)
_NOT_SUPPORTED: Final[_Answer] = (XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED, 0)
_INVALID: Final[_Answer] = (XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER, 0)
_OVERFLOW: Final[_Answer] = (XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW, 0)


class ControlRing:
    """One control ring, whose orders change `hashing`."""

    def __init__(
        self,
        page: memoryview,
        domid: int,
        hashing: Hashing,
        nr_queues: int,
        fetch: Callable[[int, int], bytes | None],
    ) -> None:
        """`fetch` returns so many bytes from the start of a granted page; None if they cannot be had."""
        self.ring = SharedRing(page, domid, NETIF_CTRL_REQUEST, netif.NR_CTRL_ENTRIES)
        self._hashing = hashing
        self._nr_queues = nr_queues
        self._fetch = fetch
        self.is_pending = True

    def serve(self, keep: Callable[[], None]) -> bool:
        """Carries out what is ordered, and calls keep() before the front end is told. Returns whether to notify it.

        Raises RingError.
        """
        ring = self.ring
        nr = min(ring.nr_requests(), _NR_PER_TURN)
        for number, kind, *data in ring.peek(nr):
            status, answer = self._carry_out(kind, *data)
            ring.put(NETIF_CTRL_RESPONSE.pack(number, kind, status, answer))
        ring.advance(nr)
        if nr:
            keep()
        self.is_pending = ring.arm()
        return ring.push()

    def _carry_out(self, kind: int, first: int, second: int, third: int) -> _Answer:
        hashing = self._hashing
        is_off = hashing.algorithm == netif.XEN_NETIF_CTRL_HASH_ALGORITHM_NONE
        match kind:
            case netif.XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM:
                if first not in _ALGORITHMS:
                    return _INVALID
                hashing.algorithm = first
                return _SUCCESS
            case netif.XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS:
                return _NOT_SUPPORTED if is_off else (XEN_NETIF_CTRL_STATUS_SUCCESS, ALL_TYPES)
            case netif.XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS:
                if first & ~ALL_TYPES:
                    return _INVALID
                if is_off:
                    return _NOT_SUPPORTED
                hashing.types = first
                return _SUCCESS
            case netif.XEN_NETIF_CTRL_TYPE_SET_HASH_KEY:
                return self._set_key(first, second)
            case netif.XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE:
                return XEN_NETIF_CTRL_STATUS_SUCCESS, MAPPING_SIZE_MAX
            case netif.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE:
                if first > MAPPING_SIZE_MAX:
                    return _INVALID
                hashing.mapping = [0] * first
                return _SUCCESS
            case netif.XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING:
                return self._set_mapping(first, second, third)
        return _NOT_SUPPORTED

    def _set_key(self, gref: int, nr_bytes: int) -> _Answer:
        if nr_bytes > KEY_BYTES_MAX:
            return _OVERFLOW
        key = self._fetch(gref, nr_bytes) if nr_bytes else b""
        if key is None:
            return _INVALID
        self._hashing.set_key(key)
        return _SUCCESS

    def _set_mapping(self, gref: int, nr_entries: int, offset: int) -> _Answer:
        mapping = self._hashing.mapping
        if nr_entries > MAPPING_SIZE_MAX:
            return _OVERFLOW
        if offset + nr_entries > len(mapping):
            return _INVALID
        data = self._fetch(gref, nr_entries * 4) if nr_entries else b""
        if data is None:
            return _INVALID
        queues = struct.unpack(f"<{nr_entries}I", data)
        if any(queue >= self._nr_queues for queue in queues):
            return _INVALID
        mapping[offset : offset + nr_entries] = queues
        return _SUCCESS

"""Which IP addresses a domain may send from: the `ip=` of its vif, as the firewall rules of Xen's scripts have it.

Source: xl-network-configuration(5), `ip`: "to allow only the specified IP address to be used by the guest (blocking all
others)". Beyond those rules ARP is looked at, and what is neither IP nor ARP is dropped: either could carry another's
address past them.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final, Self

_ETH: Final = 14
_IPV4, _ARP, _IPV6 = b"\x08\x00", b"\x08\x06", b"\x86\xdd"
_NOBODY_V4, _NOBODY_V6 = bytes(4), bytes(16)
"""What asks for an address, or whether it is free, has none yet."""
_ARP_OF_IPV4: Final = b"\x00\x01\x08\x00\x06\x04"
_UDP: Final = 17
_DHCP_PORTS: Final = b"\x00\x44\x00\x43"


@dataclass(frozen=True, slots=True)
class IpGuard:
    """The addresses: those alone, and (as numbers) networks with their masks."""

    addresses: frozenset[bytes]
    networks: tuple[tuple[int, int, int], ...]
    """Bytes of an address, mask, network."""
    has_v6: bool

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Reads the node `ip`: addresses and networks with blanks between. None if there is none. Raises ValueError."""
        found = [ipaddress.ip_network(word, strict=False) for word in text.split()]
        if not found:
            return None
        return cls(
            frozenset(net.network_address.packed for net in found if net.num_addresses == 1),
            tuple(
                (len(net.network_address.packed), int(net.netmask), int(net.network_address))
                for net in found
                if net.num_addresses > 1
            ),
            any(net.version == 6 for net in found),
        )

    def allows(self, header: bytes) -> bool:
        """Returns whether a domain may send a frame that begins so."""
        kind = header[12:14]
        if kind == _IPV4:
            source = header[26:30]
            return self._is_ours(source, 4) or (source == _NOBODY_V4 and _is_dhcp(header))
        if kind == _IPV6:
            source = header[22:38]
            # Without link-local addresses no neighbour is found.
            return self.has_v6 and (self._is_ours(source, 16) or source == _NOBODY_V6 or _is_link_local(source))
        if kind == _ARP:
            source = header[28:32]
            is_known_kind = header[_ETH : _ETH + 6] == _ARP_OF_IPV4 and header[22:28] == header[6:12]
            return is_known_kind and (self._is_ours(source, 4) or source == _NOBODY_V4)
        return False

    def _is_ours(self, source: bytes, nr_bytes: int) -> bool:
        if source in self.addresses:
            return True
        if not self.networks or len(source) != nr_bytes:
            return False
        number = int.from_bytes(source, "big")
        return any(size == nr_bytes and number & mask == net for size, mask, net in self.networks)


def _is_dhcp(header: bytes) -> bool:
    at = _ETH + (header[_ETH] & 15) * 4
    is_first = not (header[20] & 0x1F | header[21])
    return header[23] == _UDP and is_first and header[at : at + 4] == _DHCP_PORTS


def _is_link_local(source: bytes) -> bool:
    return len(source) == 16 and source[0] == 0xFE and source[1] & 0xC0 == 0x80

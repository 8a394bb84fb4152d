"""Network devices. Source: xen/include/public/io/netif.h and io/ring.h."""

from struct import Struct
from typing import Final

NETTXF_csum_blank: Final = 1
NETTXF_data_validated: Final = 2
NETTXF_more_data: Final = 4
NETTXF_extra_info: Final = 8

NETRXF_data_validated: Final = 1
NETRXF_csum_blank: Final = 2
NETRXF_more_data: Final = 4
NETRXF_extra_info: Final = 8

XEN_NETIF_EXTRA_TYPE_GSO: Final = 1
XEN_NETIF_EXTRA_TYPE_MCAST_ADD: Final = 2
XEN_NETIF_EXTRA_TYPE_MCAST_DEL: Final = 3
XEN_NETIF_EXTRA_TYPE_HASH: Final = 4
XEN_NETIF_EXTRA_TYPE_MAX: Final = 5
XEN_NETIF_EXTRA_FLAG_MORE: Final = 1

XEN_NETIF_GSO_TYPE_NONE: Final = 0
XEN_NETIF_GSO_TYPE_TCPV4: Final = 1
XEN_NETIF_GSO_TYPE_TCPV6: Final = 2

NETIF_RSP_DROPPED: Final = -2
NETIF_RSP_ERROR: Final = -1
NETIF_RSP_OKAY: Final = 0
NETIF_RSP_NULL: Final = 1

XEN_NETIF_NR_SLOTS_MIN: Final = 18
"""Slots of a packet that every side must take."""
XEN_NETIF_MAX_TX_SIZE: Final = 0xFFFF

NETIF_TX_REQUEST: Final = Struct("<IHHHH")
"""gref, offset, flags, id, size; 12 bytes, a slot of the transmit ring."""
NETIF_TX_RESPONSE: Final = Struct("<Hh")
"""id, status; at the start of a slot of the transmit ring."""
NETIF_RX_REQUEST: Final = Struct("<HHI")
"""id, pad, gref; 8 bytes, a slot of the receive ring."""
NETIF_RX_RESPONSE: Final = Struct("<HHHh")
"""id, offset, flags, status (bytes of this slot, or NETIF_RSP_*)."""
NETIF_EXTRA_GSO: Final = Struct("<BBHBBH")
"""type, flags, size of a segment, kind of GSO, pad, features; 8 bytes."""

XEN_NETIF_CTRL_HASH_TYPE_IPV4: Final = 1 << 0
XEN_NETIF_CTRL_HASH_TYPE_IPV4_TCP: Final = 1 << 1
XEN_NETIF_CTRL_HASH_TYPE_IPV6: Final = 1 << 2
XEN_NETIF_CTRL_HASH_TYPE_IPV6_TCP: Final = 1 << 3
"""In an extra info the number of the bit, not the bit, says which."""
XEN_NETIF_CTRL_HASH_ALGORITHM_NONE: Final = 0
XEN_NETIF_CTRL_HASH_ALGORITHM_TOEPLITZ: Final = 1

XEN_NETIF_CTRL_TYPE_GET_HASH_FLAGS: Final = 1
XEN_NETIF_CTRL_TYPE_SET_HASH_FLAGS: Final = 2
XEN_NETIF_CTRL_TYPE_SET_HASH_KEY: Final = 3
XEN_NETIF_CTRL_TYPE_GET_HASH_MAPPING_SIZE: Final = 4
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING_SIZE: Final = 5
XEN_NETIF_CTRL_TYPE_SET_HASH_MAPPING: Final = 6
XEN_NETIF_CTRL_TYPE_SET_HASH_ALGORITHM: Final = 7
XEN_NETIF_CTRL_TYPE_GET_GREF_MAPPING_SIZE: Final = 8
XEN_NETIF_CTRL_TYPE_ADD_GREF_MAPPING: Final = 9
XEN_NETIF_CTRL_TYPE_DEL_GREF_MAPPING: Final = 10

XEN_NETIF_CTRL_STATUS_SUCCESS: Final = 0
XEN_NETIF_CTRL_STATUS_NOT_SUPPORTED: Final = 1
XEN_NETIF_CTRL_STATUS_INVALID_PARAMETER: Final = 2
XEN_NETIF_CTRL_STATUS_BUFFER_OVERFLOW: Final = 3

NETIF_CTRL_REQUEST: Final = Struct("<HHIII")
"""id, type, data[3]; 16 bytes, a slot of the control ring."""
NETIF_CTRL_RESPONSE: Final = Struct("<HHII")
"""id, type, status, data; at the start of a slot."""
NETIF_EXTRA_HASH: Final = Struct("<BBBBI")
"""type, flags, kind of hash, algorithm, value; 8 bytes."""

RING_ENTRIES_OFFSET: Final = 64
"""Before it, four u32: req_prod, req_event, rsp_prod, rsp_event."""
NR_TX_ENTRIES: Final = 256
NR_RX_ENTRIES: Final = 256
NR_CTRL_ENTRIES: Final = 128
"""A power of two that fits the page."""

"""The block interface. Source: xen/include/public/io/blkif.h, io/ring.h, io/protocols.h."""

from struct import Struct
from typing import Final, NamedTuple

BLKIF_OP_READ: Final = 0
BLKIF_OP_WRITE: Final = 1
BLKIF_OP_WRITE_BARRIER: Final = 2
BLKIF_OP_FLUSH_DISKCACHE: Final = 3
BLKIF_OP_DISCARD: Final = 5
BLKIF_OP_INDIRECT: Final = 6
BLKIF_MAX_SEGMENTS_PER_REQUEST: Final = 11
BLKIF_MAX_INDIRECT_PAGES_PER_REQUEST: Final = 8
BLKIF_DISCARD_SECURE: Final = 1
BLKIF_RSP_EOPNOTSUPP: Final = -2
BLKIF_RSP_ERROR: Final = -1
BLKIF_RSP_OKAY: Final = 0
VDISK_CDROM: Final = 1
VDISK_REMOVABLE: Final = 2
VDISK_READONLY: Final = 4
SECTOR_BYTES: Final = 512
SEGMENT: Final = Struct("<IBBxx")
"""struct blkif_request_segment: gref, first_sect, last_sect; 8 bytes."""
RING_HEADER_BYTES: Final = 64
"""req_prod, req_event, rsp_prod, rsp_event: 32 bits each, from offset 0; the ring entries come after it."""
XEN_IO_PROTO_ABI_X86_32: Final = "x86_32-abi"
XEN_IO_PROTO_ABI_X86_64: Final = "x86_64-abi"


class Protocol(NamedTuple):
    """How a front end's compiler lays the structures out."""

    slot_bytes: int
    """sizeof(union blkif_sring_entry)."""
    request: Struct
    """struct blkif_request up to seg[]: operation, nr_segments, handle, id, sector_number."""
    discard: Struct
    """struct blkif_request_discard: operation, flag, handle, id, sector_number, nr_sectors."""
    indirect: Struct
    """struct blkif_request_indirect: operation, indirect_op, nr_segments, id, sector_number, handle, then 8 grefs."""
    response: Struct
    """struct blkif_response: id, operation, status."""


PROTOCOLS: Final = {
    XEN_IO_PROTO_ABI_X86_64: Protocol(
        112, Struct("<BBH4xQQ"), Struct("<BBH4xQQQ"), Struct("<BBH4xQQHxx8I"), Struct("<QBxh4x")
    ),
    XEN_IO_PROTO_ABI_X86_32: Protocol(108, Struct("<BBHQQ"), Struct("<BBHQQQ"), Struct("<BBHQQHxx8I"), Struct("<QBxh")),
}

"""memory_op sub-operations and their arguments. Source: xen/include/public/memory.h."""

import ctypes
import struct
from typing import ClassVar

XENMEM_increase_reservation = 0
XENMEM_decrease_reservation = 1
XENMEM_maximum_ram_page = 2
XENMEM_current_reservation = 3
XENMEM_maximum_reservation = 4
XENMEM_machphys_mfn_list = 5
XENMEM_populate_physmap = 6
XENMEM_add_to_physmap = 7
XENMEM_memory_map = 9
XENMEM_machine_memory_map = 10
XENMEM_exchange = 11
XENMEM_machphys_mapping = 12
XENMEM_set_memory_map = 13
XENMEM_maximum_gpfn = 14
XENMEM_remove_from_physmap = 15
XENMEM_set_pod_target = 16
XENMEM_get_pod_target = 17
XENMEM_get_sharing_freed_pages = 18
XENMEM_get_sharing_shared_pages = 19
XENMEM_paging_op = 20
XENMEM_access_op = 21
XENMEM_sharing_op = 22
XENMEM_add_to_physmap_batch = 23
XENMEM_claim_pages = 24
XENMEM_machphys_compat_mfn_list = 25
XENMEM_get_vnumainfo = 26
XENMEM_reserved_device_memory_map = 27
XENMEM_acquire_resource = 28

XENMAPSPACE_shared_info = 0
XENMAPSPACE_grant_table = 1


class xen_memory_reservation(ctypes.LittleEndianStructure):
    """32 bytes. extent_start is a handle to xen_pfn_t[nr_extents]. Source: memory.h, struct xen_memory_reservation."""

    _fields_: ClassVar = [
        ("extent_start", ctypes.c_uint64),
        ("nr_extents", ctypes.c_uint64),
        ("extent_order", ctypes.c_uint32),
        ("mem_flags", ctypes.c_uint32),
        ("domid", ctypes.c_uint16),
        ("_pad", ctypes.c_uint16 * 3),
    ]
    extent_start: int
    nr_extents: int
    extent_order: int
    mem_flags: int
    domid: int


class xen_machphys_mapping(ctypes.LittleEndianStructure):
    """24 bytes. Source: memory.h, struct xen_machphys_mapping."""

    _fields_: ClassVar = [
        ("v_start", ctypes.c_uint64),
        ("v_end", ctypes.c_uint64),
        ("max_mfn", ctypes.c_uint64),
    ]
    v_start: int
    v_end: int
    max_mfn: int


class xen_memory_domain(ctypes.LittleEndianStructure):
    """2 bytes: argument of maximum_reservation, current_reservation and maximum_gpfn."""

    _fields_: ClassVar = [("domid", ctypes.c_uint16)]
    domid: int


class xen_memory_map(ctypes.LittleEndianStructure):
    """16 bytes: `buffer` is a handle of `nr_entries` e820entry."""

    _fields_: ClassVar = [("nr_entries", ctypes.c_uint32), ("_pad", ctypes.c_uint32), ("buffer", ctypes.c_uint64)]
    nr_entries: int
    buffer: int


class xen_foreign_memory_map(ctypes.LittleEndianStructure):
    """24 bytes: argument of set_memory_map."""

    _fields_: ClassVar = [("domid", ctypes.c_uint16), ("_pad", ctypes.c_uint16 * 3), ("map", xen_memory_map)]
    domid: int
    map: xen_memory_map


E820_ENTRY = struct.Struct("<QQI")
"""Address, bytes, type: the entry of the BIOS call E820, which memory.h names as the format of a memory map."""
E820_RAM = 1

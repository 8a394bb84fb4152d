"""Grant tables: sub-operations, flags, statuses and their arguments. Source: xen/include/public/grant_table.h."""

import ctypes
from typing import ClassVar

GNTTABOP_map_grant_ref = 0
GNTTABOP_unmap_grant_ref = 1
GNTTABOP_setup_table = 2
GNTTABOP_dump_table = 3
GNTTABOP_transfer = 4
GNTTABOP_copy = 5
GNTTABOP_query_size = 6
GNTTABOP_unmap_and_replace = 7
GNTTABOP_set_version = 8
GNTTABOP_get_status_frames = 9
GNTTABOP_get_version = 10
GNTTABOP_swap_grant_ref = 11
GNTTABOP_cache_flush = 12

GTF_invalid = 0
GTF_permit_access = 1
GTF_accept_transfer = 2
GTF_transitive = 3
GTF_type_mask = 3
GTF_readonly = 4
GTF_reading = 8
GTF_writing = 16
GTF_sub_page = 256

GNTMAP_device_map = 1
GNTMAP_host_map = 2
GNTMAP_readonly = 4
GNTMAP_application_map = 8
GNTMAP_contains_pte = 16

GNTCOPY_source_gref = 1
GNTCOPY_dest_gref = 2

GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_bad_handle = -4
GNTST_bad_virt_addr = -5
GNTST_bad_dev_addr = -6
GNTST_no_device_space = -7
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_bad_copy_arg = -10
GNTST_address_too_big = -11
GNTST_eagain = -12
GNTST_no_space = -13

GNTTAB_RESERVED_CONSOLE = 0
GNTTAB_RESERVED_XENSTORE = 1
GNTTAB_NR_RESERVED_ENTRIES = 8


class grant_entry_v1(ctypes.LittleEndianStructure):
    """8 bytes: what the guest grants, and whether it is in use (GTF_reading, GTF_writing: the hypervisor's)."""

    _fields_: ClassVar = [("flags", ctypes.c_uint16), ("domid", ctypes.c_uint16), ("frame", ctypes.c_uint32)]
    flags: int
    domid: int
    frame: int


class gnttab_map_grant_ref(ctypes.LittleEndianStructure):
    """32 bytes. In: host_addr, flags, ref, dom; out: the rest."""

    _fields_: ClassVar = [
        ("host_addr", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("ref", ctypes.c_uint32),
        ("dom", ctypes.c_uint16),
        ("status", ctypes.c_int16),
        ("handle", ctypes.c_uint32),
        ("dev_bus_addr", ctypes.c_uint64),
    ]
    host_addr: int
    flags: int
    ref: int
    dom: int
    status: int
    handle: int
    dev_bus_addr: int


class gnttab_unmap_grant_ref(ctypes.LittleEndianStructure):
    """24 bytes. In: host_addr, dev_bus_addr (0: not that one), handle; out: status."""

    _fields_: ClassVar = [
        ("host_addr", ctypes.c_uint64),
        ("dev_bus_addr", ctypes.c_uint64),
        ("handle", ctypes.c_uint32),
        ("status", ctypes.c_int16),
    ]
    host_addr: int
    dev_bus_addr: int
    handle: int
    status: int


class gnttab_setup_table(ctypes.LittleEndianStructure):
    """24 bytes. In: dom, nr_frames, frame_list; out: status. frame_list is a handle to xen_pfn_t[nr_frames]."""

    _fields_: ClassVar = [
        ("dom", ctypes.c_uint16),
        ("nr_frames", ctypes.c_uint32),
        ("status", ctypes.c_int16),
        ("frame_list", ctypes.c_uint64),
    ]
    dom: int
    nr_frames: int
    status: int
    frame_list: int


class gnttab_query_size(ctypes.LittleEndianStructure):
    """16 bytes. In: dom; out: the rest."""

    _fields_: ClassVar = [
        ("dom", ctypes.c_uint16),
        ("nr_frames", ctypes.c_uint32),
        ("max_nr_frames", ctypes.c_uint32),
        ("status", ctypes.c_int16),
    ]
    dom: int
    nr_frames: int
    max_nr_frames: int
    status: int


class gnttab_copy_ptr(ctypes.LittleEndianStructure):
    """16 bytes: a side of a copy; `u` is a grant reference or a frame of DOMID_SELF, by the flags of the copy."""

    _fields_: ClassVar = [("u", ctypes.c_uint64), ("domid", ctypes.c_uint16), ("offset", ctypes.c_uint16)]
    u: int
    domid: int
    offset: int


class gnttab_copy(ctypes.LittleEndianStructure):
    """40 bytes. In: both sides, len, flags; out: status."""

    _fields_: ClassVar = [
        ("source", gnttab_copy_ptr),
        ("dest", gnttab_copy_ptr),
        ("len", ctypes.c_uint16),
        ("flags", ctypes.c_uint16),
        ("status", ctypes.c_int16),
    ]
    source: gnttab_copy_ptr
    dest: gnttab_copy_ptr
    len: int
    flags: int
    status: int

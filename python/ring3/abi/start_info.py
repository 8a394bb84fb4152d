"""The start-of-day page of a PV domain. Source: xen/include/public/xen.h, struct start_info (1168 bytes)."""

import ctypes
from typing import ClassVar

START_INFO_MAGIC = b"xen-3.0-x86_64"
"""Xen's own toolstack writes this for every version since 3.0; kernels compare the first characters."""

SIF_PRIVILEGED = 1
SIF_INITDOMAIN = 2
SIF_MULTIBOOT_MOD = 4
SIF_MOD_START_PFN = 8
SIF_VIRT_P2M_4TOOLS = 16

MAX_GUEST_CMDLINE = 1024
"""Bytes, the terminating NUL included."""


class start_info(ctypes.LittleEndianStructure):
    """1168 bytes; domU form of the console union."""

    _fields_: ClassVar = [
        ("magic", ctypes.c_char * 32),
        ("nr_pages", ctypes.c_uint64),
        ("shared_info", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("_pad0", ctypes.c_uint32),
        ("store_mfn", ctypes.c_uint64),
        ("store_evtchn", ctypes.c_uint32),
        ("_pad1", ctypes.c_uint32),
        ("console_mfn", ctypes.c_uint64),
        ("console_evtchn", ctypes.c_uint32),
        ("_pad2", ctypes.c_uint32),
        ("pt_base", ctypes.c_uint64),
        ("nr_pt_frames", ctypes.c_uint64),
        ("mfn_list", ctypes.c_uint64),
        ("mod_start", ctypes.c_uint64),
        ("mod_len", ctypes.c_uint64),
        ("cmd_line", ctypes.c_char * MAX_GUEST_CMDLINE),
        ("first_p2m_pfn", ctypes.c_uint64),
        ("nr_p2m_frames", ctypes.c_uint64),
    ]
    magic: bytes
    nr_pages: int
    shared_info: int
    """Machine address."""
    flags: int
    store_mfn: int
    store_evtchn: int
    console_mfn: int
    console_evtchn: int
    pt_base: int
    nr_pt_frames: int
    mfn_list: int
    mod_start: int
    mod_len: int
    cmd_line: bytes
    first_p2m_pfn: int
    nr_p2m_frames: int

"""Hypercall numbers, reserved domids, MMU operations, VIRQs and shared_info. Source: xen/include/public/xen.h."""

import ctypes
from typing import ClassVar

# -- hypercall numbers
__HYPERVISOR_set_trap_table = 0
__HYPERVISOR_mmu_update = 1
__HYPERVISOR_set_gdt = 2
__HYPERVISOR_stack_switch = 3
__HYPERVISOR_set_callbacks = 4
__HYPERVISOR_fpu_taskswitch = 5
__HYPERVISOR_sched_op_compat = 6
__HYPERVISOR_platform_op = 7
__HYPERVISOR_set_debugreg = 8
__HYPERVISOR_get_debugreg = 9
__HYPERVISOR_update_descriptor = 10
__HYPERVISOR_memory_op = 12
__HYPERVISOR_multicall = 13
__HYPERVISOR_update_va_mapping = 14
__HYPERVISOR_set_timer_op = 15
__HYPERVISOR_event_channel_op_compat = 16
__HYPERVISOR_xen_version = 17
__HYPERVISOR_console_io = 18
__HYPERVISOR_physdev_op_compat = 19
__HYPERVISOR_grant_table_op = 20
__HYPERVISOR_vm_assist = 21
__HYPERVISOR_update_va_mapping_otherdomain = 22
__HYPERVISOR_iret = 23
__HYPERVISOR_vcpu_op = 24
__HYPERVISOR_set_segment_base = 25
__HYPERVISOR_mmuext_op = 26
__HYPERVISOR_xsm_op = 27
__HYPERVISOR_nmi_op = 28
__HYPERVISOR_sched_op = 29
__HYPERVISOR_callback_op = 30
__HYPERVISOR_xenoprof_op = 31
__HYPERVISOR_event_channel_op = 32
__HYPERVISOR_physdev_op = 33
__HYPERVISOR_hvm_op = 34
__HYPERVISOR_sysctl = 35
__HYPERVISOR_domctl = 36
__HYPERVISOR_kexec_op = 37
__HYPERVISOR_tmem_op = 38
__HYPERVISOR_argo_op = 39
__HYPERVISOR_xenpmu_op = 40
__HYPERVISOR_dm_op = 41
__HYPERVISOR_hypfs_op = 42
__HYPERVISOR_mca = 48
__HYPERVISOR_paging_domctl_cont = 49
NR_HYPERCALLS = 64

# -- domids
DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0
DOMID_IO = 0x7FF1
DOMID_XEN = 0x7FF2
DOMID_COW = 0x7FF3
DOMID_INVALID = 0x7FF4
DOMID_IDLE = 0x7FFF
DOMID_MASK = 0x7FFF

# -- virtual interrupts
VIRQ_TIMER = 0
VIRQ_DEBUG = 1
VIRQ_CONSOLE = 2
VIRQ_DOM_EXC = 3
VIRQ_TBUF = 4
VIRQ_DEBUGGER = 6
VIRQ_XENOPROF = 7
VIRQ_CON_RING = 8
VIRQ_PCPU_STATE = 9
VIRQ_MEM_EVENT = 10
VIRQ_ARGO = 11
VIRQ_ENOMEM = 12
VIRQ_XENPMU = 13
VIRQ_MCA = 16
NR_VIRQS = 24

# -- mmu_update: the two low bits of ptr
MMU_NORMAL_PT_UPDATE = 0
MMU_MACHPHYS_UPDATE = 1
MMU_PT_UPDATE_PRESERVE_AD = 2
MMU_PT_UPDATE_NO_TRANSLATE = 3

# -- mmuext_op
MMUEXT_PIN_L1_TABLE = 0
MMUEXT_PIN_L2_TABLE = 1
MMUEXT_PIN_L3_TABLE = 2
MMUEXT_PIN_L4_TABLE = 3
MMUEXT_UNPIN_TABLE = 4
MMUEXT_NEW_BASEPTR = 5
MMUEXT_TLB_FLUSH_LOCAL = 6
MMUEXT_INVLPG_LOCAL = 7
MMUEXT_TLB_FLUSH_MULTI = 8
MMUEXT_INVLPG_MULTI = 9
MMUEXT_TLB_FLUSH_ALL = 10
MMUEXT_INVLPG_ALL = 11
MMUEXT_FLUSH_CACHE = 12
MMUEXT_SET_LDT = 13
MMUEXT_NEW_USER_BASEPTR = 15
MMUEXT_CLEAR_PAGE = 16
MMUEXT_COPY_PAGE = 17
MMUEXT_FLUSH_CACHE_GLOBAL = 18
MMUEXT_MARK_SUPER = 19
MMUEXT_UNMARK_SUPER = 20

# -- update_va_mapping
UVMF_NONE = 0
UVMF_TLB_FLUSH = 1
UVMF_INVLPG = 2
UVMF_FLUSHTYPE_MASK = 3
UVMF_MULTI = 0
UVMF_LOCAL = 0
UVMF_ALL = 4

# -- console_io
CONSOLEIO_write = 0
CONSOLEIO_read = 1

# -- vm_assist
VMASST_CMD_enable = 0
VMASST_CMD_disable = 1
VMASST_TYPE_4gb_segments = 0
VMASST_TYPE_4gb_segments_notify = 1
VMASST_TYPE_writable_pagetables = 2
VMASST_TYPE_pae_extended_cr3 = 3
VMASST_TYPE_architectural_iopl = 4
VMASST_TYPE_runstate_update_flag = 5
VMASST_TYPE_m2p_strict = 32

# -- frames
PAGE_SHIFT = 12
PAGE_SIZE = 4096
INVALID_MFN = (1 << 64) - 1
"""M2P entry of a frame that no domain maps (INVALID_M2P_ENTRY)."""

XEN_LEGACY_MAX_VCPUS = 32
"""vcpu_info slots inside shared_info."""


class mmu_update(ctypes.LittleEndianStructure):
    """16 bytes. Source: xen.h, struct mmu_update."""

    _fields_: ClassVar = [("ptr", ctypes.c_uint64), ("val", ctypes.c_uint64)]
    ptr: int
    val: int


class mmuext_op(ctypes.LittleEndianStructure):
    """24 bytes. Source: xen.h, struct mmuext_op; the two unions are plain words here."""

    _fields_: ClassVar = [
        ("cmd", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("arg1", ctypes.c_uint64),
        ("arg2", ctypes.c_uint64),
    ]
    cmd: int
    arg1: int
    """mfn or linear_addr."""
    arg2: int
    """nr_ents, vcpumask handle or src_mfn."""


class multicall_entry(ctypes.LittleEndianStructure):
    """64 bytes. Source: xen.h, struct multicall_entry."""

    _fields_: ClassVar = [
        ("op", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("args", ctypes.c_uint64 * 6),
    ]
    op: int
    result: int
    args: ctypes.Array[ctypes.c_uint64]


class vcpu_time_info(ctypes.LittleEndianStructure):
    """32 bytes; the hypervisor writes it. Source: xen.h, struct vcpu_time_info."""

    _fields_: ClassVar = [
        ("version", ctypes.c_uint32),
        ("_pad0", ctypes.c_uint32),
        ("tsc_timestamp", ctypes.c_uint64),
        ("system_time", ctypes.c_uint64),
        ("tsc_to_system_mul", ctypes.c_uint32),
        ("tsc_shift", ctypes.c_int8),
        ("flags", ctypes.c_uint8),
        ("_pad1", ctypes.c_uint8 * 2),
    ]


class vcpu_info(ctypes.LittleEndianStructure):
    """64 bytes. Source: xen.h, struct vcpu_info; arch.cr2 from arch-x86/xen-x86_64.h."""

    _fields_: ClassVar = [
        ("evtchn_upcall_pending", ctypes.c_uint8),
        ("evtchn_upcall_mask", ctypes.c_uint8),
        ("_pad0", ctypes.c_uint8 * 6),
        ("evtchn_pending_sel", ctypes.c_uint64),
        ("arch_cr2", ctypes.c_uint64),
        ("arch_pad", ctypes.c_uint64),
        ("time", vcpu_time_info),
    ]


class arch_shared_info(ctypes.LittleEndianStructure):
    """48 bytes. Source: arch-x86/xen.h, struct arch_shared_info."""

    _fields_: ClassVar = [
        ("max_pfn", ctypes.c_uint64),
        ("pfn_to_mfn_frame_list_list", ctypes.c_uint64),
        ("nmi_reason", ctypes.c_uint64),
        ("p2m_cr3", ctypes.c_uint64),
        ("p2m_vaddr", ctypes.c_uint64),
        ("p2m_generation", ctypes.c_uint64),
    ]


class shared_info(ctypes.LittleEndianStructure):
    """3136 bytes, at the start of its page. Source: xen.h, struct shared_info."""

    _fields_: ClassVar = [
        ("vcpu_info", vcpu_info * XEN_LEGACY_MAX_VCPUS),
        ("evtchn_pending", ctypes.c_uint64 * 64),
        ("evtchn_mask", ctypes.c_uint64 * 64),
        ("wc_version", ctypes.c_uint32),
        ("wc_sec", ctypes.c_uint32),
        ("wc_nsec", ctypes.c_uint32),
        ("wc_sec_hi", ctypes.c_uint32),
        ("arch", arch_shared_info),
    ]

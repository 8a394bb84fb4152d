"""Domain control. Source: xen/include/public/domctl.h of Xen 4.17.

A domctl is 144 bytes: cmd, interface_version, domain, padding, and a union of 128 bytes whose members are the other
classes here.
XEN_DOMCTL_getmemlist (6) was removed from Xen's ABI; a toolstack knows a PV domain's MFNs from populate_physmap.
"""

import ctypes
from typing import ClassVar

from ring3.abi.arch_x86 import xen_arch_domainconfig

XEN_DOMCTL_INTERFACE_VERSION = 0x15

XEN_DOMCTL_vmtrace_enable = 1
XEN_DOMCTL_vmtrace_disable = 2
XEN_DOMCTL_vmtrace_reset_and_enable = 3
XEN_DOMCTL_vmtrace_output_position = 4
XEN_DOMCTL_vmtrace_get_option = 5
XEN_DOMCTL_vmtrace_set_option = 6
XEN_DOMCTL_createdomain = 1
XEN_DOMCTL_destroydomain = 2
XEN_DOMCTL_pausedomain = 3
XEN_DOMCTL_unpausedomain = 4
XEN_DOMCTL_getdomaininfo = 5
XEN_DOMCTL_setvcpuaffinity = 9
XEN_DOMCTL_shadow_op = 10
XEN_DOMCTL_max_mem = 11
XEN_DOMCTL_setvcpucontext = 12
XEN_DOMCTL_getvcpucontext = 13
XEN_DOMCTL_getvcpuinfo = 14
XEN_DOMCTL_max_vcpus = 15
XEN_DOMCTL_scheduler_op = 16
XEN_DOMCTL_setdomainhandle = 17
XEN_DOMCTL_setdebugging = 18
XEN_DOMCTL_irq_permission = 19
XEN_DOMCTL_iomem_permission = 20
XEN_DOMCTL_ioport_permission = 21
XEN_DOMCTL_hypercall_init = 22
XEN_DOMCTL_soft_reset_cont = 23
XEN_DOMCTL_settimeoffset = 24
XEN_DOMCTL_getvcpuaffinity = 25
XEN_DOMCTL_real_mode_area = 26
XEN_DOMCTL_resumedomain = 27
XEN_DOMCTL_sendtrigger = 28
XEN_DOMCTL_subscribe = 29
XEN_DOMCTL_gethvmcontext = 33
XEN_DOMCTL_sethvmcontext = 34
XEN_DOMCTL_set_address_size = 35
XEN_DOMCTL_get_address_size = 36
XEN_DOMCTL_assign_device = 37
XEN_DOMCTL_bind_pt_irq = 38
XEN_DOMCTL_memory_mapping = 39
XEN_DOMCTL_ioport_mapping = 40
XEN_DOMCTL_set_ext_vcpucontext = 42
XEN_DOMCTL_get_ext_vcpucontext = 43
XEN_DOMCTL_set_opt_feature = 44
XEN_DOMCTL_test_assign_device = 45
XEN_DOMCTL_set_target = 46
XEN_DOMCTL_deassign_device = 47
XEN_DOMCTL_unbind_pt_irq = 48
XEN_DOMCTL_get_device_group = 50
XEN_DOMCTL_debug_op = 54
XEN_DOMCTL_gethvmcontext_partial = 55
XEN_DOMCTL_vm_event_op = 56
XEN_DOMCTL_mem_sharing_op = 57
XEN_DOMCTL_gettscinfo = 59
XEN_DOMCTL_settscinfo = 60
XEN_DOMCTL_getpageframeinfo3 = 61
XEN_DOMCTL_setvcpuextstate = 62
XEN_DOMCTL_getvcpuextstate = 63
XEN_DOMCTL_set_access_required = 64
XEN_DOMCTL_audit_p2m = 65
XEN_DOMCTL_set_virq_handler = 66
XEN_DOMCTL_set_broken_page_p2m = 67
XEN_DOMCTL_setnodeaffinity = 68
XEN_DOMCTL_getnodeaffinity = 69
XEN_DOMCTL_cacheflush = 71
XEN_DOMCTL_get_vcpu_msrs = 72
XEN_DOMCTL_set_vcpu_msrs = 73
XEN_DOMCTL_setvnumainfo = 74
XEN_DOMCTL_psr_cmt_op = 75
XEN_DOMCTL_monitor_op = 77
XEN_DOMCTL_psr_alloc = 78
XEN_DOMCTL_soft_reset = 79
XEN_DOMCTL_vuart_op = 81
XEN_DOMCTL_get_cpu_policy = 82
XEN_DOMCTL_set_cpu_policy = 83
XEN_DOMCTL_vmtrace_op = 84
XEN_DOMCTL_get_paging_mempool_size = 85
XEN_DOMCTL_set_paging_mempool_size = 86
XEN_DOMCTL_gdbsx_guestmemio = 1000
XEN_DOMCTL_gdbsx_pausevcpu = 1001
XEN_DOMCTL_gdbsx_unpausevcpu = 1002
XEN_DOMCTL_gdbsx_domstatus = 1003

# -- XEN_DOMCTL_createdomain flags
XEN_DOMCTL_CDF_hvm = 1
XEN_DOMCTL_CDF_hap = 2
XEN_DOMCTL_CDF_s3_integrity = 4
XEN_DOMCTL_CDF_oos_off = 8
XEN_DOMCTL_CDF_xs_domain = 16
XEN_DOMCTL_CDF_iommu = 32
XEN_DOMCTL_CDF_nested_virt = 64
XEN_DOMCTL_CDF_vpmu = 128
XEN_DOMCTL_CDF_MAX = XEN_DOMCTL_CDF_vpmu

XEN_DOMCTL_PFINFO_NOTAB = 0
XEN_DOMCTL_PFINFO_LPINTAB = 0x1 << 31
XEN_DOMCTL_PFINFO_XTAB = 0xF << 28

# -- XEN_DOMCTL_getdomaininfo flags
XEN_DOMINF_dying = 1
XEN_DOMINF_hvm_guest = 2
XEN_DOMINF_shutdown = 4
XEN_DOMINF_paused = 8
XEN_DOMINF_blocked = 16
XEN_DOMINF_running = 32
XEN_DOMINF_debugged = 64
XEN_DOMINF_xs_domain = 128
XEN_DOMINF_hap = 256
XEN_DOMINF_shutdownmask = 255
XEN_DOMINF_shutdownshift = 16

XEN_INVALID_MAX_VCPU_ID = 0xFFFFFFFF

# -- XEN_DOMCTL_set/getvcpuaffinity flags
XEN_VCPUAFFINITY_HARD = 1
XEN_VCPUAFFINITY_SOFT = 2
XEN_VCPUAFFINITY_FORCE = 4


class xen_domctl_createdomain(ctypes.LittleEndianStructure):
    """64 bytes. Source: domctl.h, struct xen_domctl_createdomain."""

    _fields_: ClassVar = [
        ("ssidref", ctypes.c_uint32),
        ("handle", ctypes.c_uint8 * 16),
        ("flags", ctypes.c_uint32),
        ("iommu_opts", ctypes.c_uint32),
        ("max_vcpus", ctypes.c_uint32),
        ("max_evtchn_port", ctypes.c_uint32),
        ("max_grant_frames", ctypes.c_int32),
        ("max_maptrack_frames", ctypes.c_int32),
        ("grant_opts", ctypes.c_uint32),
        ("vmtrace_size", ctypes.c_uint32),
        ("cpupool_id", ctypes.c_uint32),
        ("arch", xen_arch_domainconfig),
    ]
    ssidref: int
    handle: ctypes.Array[ctypes.c_uint8]
    flags: int
    iommu_opts: int
    max_vcpus: int
    max_evtchn_port: int
    max_grant_frames: int
    max_maptrack_frames: int
    grant_opts: int
    vmtrace_size: int
    cpupool_id: int
    arch: xen_arch_domainconfig


class xen_domctl_getdomaininfo(ctypes.LittleEndianStructure):
    """112 bytes, all OUT. Source: domctl.h, struct xen_domctl_getdomaininfo."""

    _fields_: ClassVar = [
        ("domain", ctypes.c_uint16),
        ("pad1", ctypes.c_uint16),
        ("flags", ctypes.c_uint32),
        ("tot_pages", ctypes.c_uint64),
        ("max_pages", ctypes.c_uint64),
        ("outstanding_pages", ctypes.c_uint64),
        ("shr_pages", ctypes.c_uint64),
        ("paged_pages", ctypes.c_uint64),
        ("shared_info_frame", ctypes.c_uint64),
        ("cpu_time", ctypes.c_uint64),
        ("nr_online_vcpus", ctypes.c_uint32),
        ("max_vcpu_id", ctypes.c_uint32),
        ("ssidref", ctypes.c_uint32),
        ("handle", ctypes.c_uint8 * 16),
        ("cpupool", ctypes.c_uint32),
        ("gpaddr_bits", ctypes.c_uint8),
        ("pad2", ctypes.c_uint8 * 7),
        ("arch_config", xen_arch_domainconfig),
    ]
    domain: int
    flags: int
    tot_pages: int
    max_pages: int
    outstanding_pages: int
    shr_pages: int
    paged_pages: int
    shared_info_frame: int
    cpu_time: int
    nr_online_vcpus: int
    max_vcpu_id: int
    ssidref: int
    handle: ctypes.Array[ctypes.c_uint8]
    cpupool: int
    gpaddr_bits: int


class xen_domctl_max_mem(ctypes.LittleEndianStructure):
    """8 bytes."""

    _fields_: ClassVar = [("max_memkb", ctypes.c_uint64)]
    max_memkb: int


class xen_domctl_max_vcpus(ctypes.LittleEndianStructure):
    """4 bytes."""

    _fields_: ClassVar = [("max", ctypes.c_uint32)]
    max: int


class xen_domctl_vcpucontext(ctypes.LittleEndianStructure):
    """16 bytes; ctxt is a handle to vcpu_guest_context."""

    _fields_: ClassVar = [("vcpu", ctypes.c_uint32), ("_pad", ctypes.c_uint32), ("ctxt", ctypes.c_uint64)]
    vcpu: int
    ctxt: int


class xen_domctl_getvcpuinfo(ctypes.LittleEndianStructure):
    """24 bytes. IN: vcpu; the rest OUT."""

    _fields_: ClassVar = [
        ("vcpu", ctypes.c_uint32),
        ("online", ctypes.c_uint8),
        ("blocked", ctypes.c_uint8),
        ("running", ctypes.c_uint8),
        ("_pad", ctypes.c_uint8),
        ("cpu_time", ctypes.c_uint64),
        ("cpu", ctypes.c_uint32),
        ("_pad1", ctypes.c_uint32),
    ]
    vcpu: int
    online: int
    blocked: int
    running: int
    cpu_time: int
    cpu: int


class xenctl_bitmap(ctypes.LittleEndianStructure):
    """16 bytes; bitmap is a handle to uint8[(nr_bits + 7) / 8]."""

    _fields_: ClassVar = [("bitmap", ctypes.c_uint64), ("nr_bits", ctypes.c_uint32), ("_pad", ctypes.c_uint32)]
    bitmap: int
    nr_bits: int


class xen_domctl_vcpuaffinity(ctypes.LittleEndianStructure):
    """40 bytes."""

    _fields_: ClassVar = [
        ("vcpu", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpumap_hard", xenctl_bitmap),
        ("cpumap_soft", xenctl_bitmap),
    ]
    vcpu: int
    flags: int
    cpumap_hard: xenctl_bitmap
    cpumap_soft: xenctl_bitmap


class xen_domctl_hypercall_init(ctypes.LittleEndianStructure):
    """8 bytes; gmfn is the frame to fill with hypercall stubs."""

    _fields_: ClassVar = [("gmfn", ctypes.c_uint64)]
    gmfn: int


class xen_domctl_getpageframeinfo3(ctypes.LittleEndianStructure):
    """16 bytes; `array` is of frame numbers, which what they are replaces."""

    _fields_: ClassVar = [("num", ctypes.c_uint64), ("array", ctypes.c_uint64)]
    num: int
    array: int


class xen_domctl_tsc_info(ctypes.LittleEndianStructure):
    """24 bytes. Source: domctl.h, struct xen_domctl_tsc_info."""

    _fields_: ClassVar = [
        ("tsc_mode", ctypes.c_uint32),
        ("gtsc_khz", ctypes.c_uint32),
        ("incarnation", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("elapsed_nsec", ctypes.c_uint64),
    ]
    tsc_mode: int
    gtsc_khz: int
    incarnation: int
    elapsed_nsec: int


class xen_domctl_vcpuextstate(ctypes.LittleEndianStructure):
    """32 bytes; buffer is of XCR0, all bits that it was given, and an XSAVE area."""

    _fields_: ClassVar = [
        ("vcpu", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
        ("xfeature_mask", ctypes.c_uint64),
        ("size", ctypes.c_uint64),
        ("buffer", ctypes.c_uint64),
    ]
    vcpu: int
    xfeature_mask: int
    size: int
    buffer: int


class xen_domctl_vcpu_msr(ctypes.LittleEndianStructure):
    """16 bytes."""

    _fields_: ClassVar = [("index", ctypes.c_uint32), ("reserved", ctypes.c_uint32), ("value", ctypes.c_uint64)]
    index: int
    reserved: int
    value: int


class xen_domctl_vcpu_msrs(ctypes.LittleEndianStructure):
    """16 bytes; msrs is a handle to xen_domctl_vcpu_msr[msr_count]."""

    _fields_: ClassVar = [("vcpu", ctypes.c_uint32), ("msr_count", ctypes.c_uint32), ("msrs", ctypes.c_uint64)]
    vcpu: int
    msr_count: int
    msrs: int


class xen_domctl_cpu_policy(ctypes.LittleEndianStructure):
    """40 bytes; leaves and msrs are handles to xen_cpuid_leaf[nr_leaves] and xen_msr_entry[nr_msrs]."""

    _fields_: ClassVar = [
        ("nr_leaves", ctypes.c_uint32),
        ("nr_msrs", ctypes.c_uint32),
        ("leaves", ctypes.c_uint64),
        ("msrs", ctypes.c_uint64),
        ("err_leaf", ctypes.c_uint32),
        ("err_subleaf", ctypes.c_uint32),
        ("err_msr", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
    ]
    nr_leaves: int
    nr_msrs: int
    leaves: int
    msrs: int
    err_leaf: int
    err_subleaf: int
    err_msr: int


class _domctl_u(ctypes.Union):
    _fields_: ClassVar = [
        ("createdomain", xen_domctl_createdomain),
        ("getdomaininfo", xen_domctl_getdomaininfo),
        ("max_mem", xen_domctl_max_mem),
        ("vcpucontext", xen_domctl_vcpucontext),
        ("getvcpuinfo", xen_domctl_getvcpuinfo),
        ("max_vcpus", xen_domctl_max_vcpus),
        ("vcpuaffinity", xen_domctl_vcpuaffinity),
        ("hypercall_init", xen_domctl_hypercall_init),
        ("getpageframeinfo3", xen_domctl_getpageframeinfo3),
        ("tsc_info", xen_domctl_tsc_info),
        ("vcpuextstate", xen_domctl_vcpuextstate),
        ("vcpu_msrs", xen_domctl_vcpu_msrs),
        ("cpu_policy", xen_domctl_cpu_policy),
        ("pad", ctypes.c_uint8 * 128),
    ]
    createdomain: xen_domctl_createdomain
    getdomaininfo: xen_domctl_getdomaininfo
    max_mem: xen_domctl_max_mem
    vcpucontext: xen_domctl_vcpucontext
    getvcpuinfo: xen_domctl_getvcpuinfo
    max_vcpus: xen_domctl_max_vcpus
    vcpuaffinity: xen_domctl_vcpuaffinity
    hypercall_init: xen_domctl_hypercall_init
    getpageframeinfo3: xen_domctl_getpageframeinfo3
    tsc_info: xen_domctl_tsc_info
    vcpuextstate: xen_domctl_vcpuextstate
    vcpu_msrs: xen_domctl_vcpu_msrs
    cpu_policy: xen_domctl_cpu_policy
    pad: ctypes.Array[ctypes.c_uint8]


class xen_domctl(ctypes.LittleEndianStructure):
    """144 bytes. Source: domctl.h, struct xen_domctl."""

    _fields_: ClassVar = [
        ("cmd", ctypes.c_uint32),
        ("interface_version", ctypes.c_uint32),
        ("domain", ctypes.c_uint16),
        ("_pad", ctypes.c_uint16 * 3),
        ("u", _domctl_u),
    ]
    cmd: int
    interface_version: int
    domain: int
    u: _domctl_u

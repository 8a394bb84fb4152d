"""System control. Source: xen/include/public/sysctl.h of Xen 4.17.

A sysctl is 136 bytes: cmd, interface_version and a union of 128 bytes whose members are the other classes here.
"""

import ctypes
from typing import ClassVar

XEN_SYSCTL_INTERFACE_VERSION = 0x15

XEN_SYSCTL_readconsole = 1
XEN_SYSCTL_tbuf_op = 2
XEN_SYSCTL_physinfo = 3
XEN_SYSCTL_sched_id = 4
XEN_SYSCTL_perfc_op = 5
XEN_SYSCTL_getdomaininfolist = 6
XEN_SYSCTL_debug_keys = 7
XEN_SYSCTL_getcpuinfo = 8
XEN_SYSCTL_availheap = 9
XEN_SYSCTL_get_pmstat = 10
XEN_SYSCTL_cpu_hotplug = 11
XEN_SYSCTL_pm_op = 12
XEN_SYSCTL_page_offline_op = 14
XEN_SYSCTL_lockprof_op = 15
XEN_SYSCTL_cputopoinfo = 16
XEN_SYSCTL_numainfo = 17
XEN_SYSCTL_cpupool_op = 18
XEN_SYSCTL_scheduler_op = 19
XEN_SYSCTL_coverage_op = 20
XEN_SYSCTL_psr_cmt_op = 21
XEN_SYSCTL_pcitopoinfo = 22
XEN_SYSCTL_psr_alloc = 23
XEN_SYSCTL_get_cpu_levelling_caps = 25
XEN_SYSCTL_get_cpu_featureset = 26
XEN_SYSCTL_livepatch_op = 27
XEN_SYSCTL_get_cpu_policy = 29

XEN_SYSCTL_CPU_LEVELCAP_faulting = 1
XEN_SYSCTL_cpu_featureset_raw = 0
XEN_SYSCTL_cpu_featureset_host = 1
XEN_SYSCTL_cpu_featureset_pv = 2
XEN_SYSCTL_cpu_featureset_hvm = 3
XEN_SYSCTL_cpu_featureset_pv_max = 4
XEN_SYSCTL_cpu_featureset_hvm_max = 5
XEN_SYSCTL_cpu_policy_raw = 0
XEN_SYSCTL_cpu_policy_host = 1
XEN_SYSCTL_cpu_policy_pv_max = 2
XEN_SYSCTL_cpu_policy_hvm_max = 3
XEN_SYSCTL_cpu_policy_pv_default = 4
XEN_SYSCTL_cpu_policy_hvm_default = 5

XEN_SYSCTL_PHYSCAP_hvm = 1
XEN_SYSCTL_PHYSCAP_pv = 2
XEN_SYSCTL_PHYSCAP_directio = 4
XEN_SYSCTL_PHYSCAP_hap = 8
XEN_SYSCTL_PHYSCAP_shadow = 16
XEN_SYSCTL_PHYSCAP_iommu_hap_pt_share = 32
XEN_SYSCTL_PHYSCAP_vmtrace = 64
XEN_SYSCTL_PHYSCAP_vpmu = 128
XEN_SYSCTL_PHYSCAP_gnttab_v1 = 256
XEN_SYSCTL_PHYSCAP_gnttab_v2 = 512


class xen_sysctl_readconsole(ctypes.LittleEndianStructure):
    """24 bytes. Source: sysctl.h, struct xen_sysctl_readconsole."""

    _fields_: ClassVar = [
        ("clear", ctypes.c_uint8),
        ("incremental", ctypes.c_uint8),
        ("pad0", ctypes.c_uint8),
        ("pad1", ctypes.c_uint8),
        ("index", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
    ]
    clear: int
    incremental: int
    index: int
    buffer: int
    count: int


class xen_sysctl_physinfo(ctypes.LittleEndianStructure):
    """112 bytes, all OUT. Source: sysctl.h, struct xen_sysctl_physinfo."""

    _fields_: ClassVar = [
        ("threads_per_core", ctypes.c_uint32),
        ("cores_per_socket", ctypes.c_uint32),
        ("nr_cpus", ctypes.c_uint32),
        ("max_cpu_id", ctypes.c_uint32),
        ("nr_nodes", ctypes.c_uint32),
        ("max_node_id", ctypes.c_uint32),
        ("cpu_khz", ctypes.c_uint32),
        ("capabilities", ctypes.c_uint32),
        ("arch_capabilities", ctypes.c_uint32),
        ("pad", ctypes.c_uint32),
        ("total_pages", ctypes.c_uint64),
        ("free_pages", ctypes.c_uint64),
        ("scrub_pages", ctypes.c_uint64),
        ("outstanding_pages", ctypes.c_uint64),
        ("max_mfn", ctypes.c_uint64),
        ("hw_cap", ctypes.c_uint32 * 8),
    ]
    threads_per_core: int
    cores_per_socket: int
    nr_cpus: int
    max_cpu_id: int
    nr_nodes: int
    max_node_id: int
    cpu_khz: int
    capabilities: int
    arch_capabilities: int
    total_pages: int
    free_pages: int
    scrub_pages: int
    outstanding_pages: int
    max_mfn: int
    hw_cap: ctypes.Array[ctypes.c_uint32]


class xen_sysctl_sched_id(ctypes.LittleEndianStructure):
    """4 bytes, OUT."""

    _fields_: ClassVar = [("sched_id", ctypes.c_uint32)]
    sched_id: int


class xen_sysctl_getdomaininfolist(ctypes.LittleEndianStructure):
    """24 bytes; buffer is a handle to xen_domctl_getdomaininfo[max_domains]."""

    _fields_: ClassVar = [
        ("first_domain", ctypes.c_uint16),
        ("_pad0", ctypes.c_uint16),
        ("max_domains", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("num_domains", ctypes.c_uint32),
        ("_pad1", ctypes.c_uint32),
    ]
    first_domain: int
    max_domains: int
    buffer: int
    num_domains: int


class xen_sysctl_debug_keys(ctypes.LittleEndianStructure):
    """16 bytes. Source: sysctl.h, struct xen_sysctl_debug_keys."""

    _fields_: ClassVar = [
        ("keys", ctypes.c_uint64),
        ("nr_keys", ctypes.c_uint32),
        ("_pad", ctypes.c_uint32),
    ]
    keys: int
    nr_keys: int


class xen_sysctl_cpu_levelling_caps(ctypes.LittleEndianStructure):
    """4 bytes, OUT."""

    _fields_: ClassVar = [("caps", ctypes.c_uint32)]
    caps: int


class xen_sysctl_cpu_featureset(ctypes.LittleEndianStructure):
    """16 bytes; features is a handle to uint32[nr_features]."""

    _fields_: ClassVar = [("index", ctypes.c_uint32), ("nr_features", ctypes.c_uint32), ("features", ctypes.c_uint64)]
    index: int
    nr_features: int
    features: int


class xen_sysctl_cpu_policy(ctypes.LittleEndianStructure):
    """32 bytes; leaves and msrs are handles to xen_cpuid_leaf[nr_leaves] and xen_msr_entry[nr_msrs]."""

    _fields_: ClassVar = [
        ("index", ctypes.c_uint32),
        ("nr_leaves", ctypes.c_uint32),
        ("nr_msrs", ctypes.c_uint32),
        ("_rsvd", ctypes.c_uint32),
        ("leaves", ctypes.c_uint64),
        ("msrs", ctypes.c_uint64),
    ]
    index: int
    nr_leaves: int
    nr_msrs: int
    _rsvd: int
    leaves: int
    msrs: int


class _sysctl_u(ctypes.Union):
    _fields_: ClassVar = [
        ("readconsole", xen_sysctl_readconsole),
        ("debug_keys", xen_sysctl_debug_keys),
        ("physinfo", xen_sysctl_physinfo),
        ("sched_id", xen_sysctl_sched_id),
        ("getdomaininfolist", xen_sysctl_getdomaininfolist),
        ("cpu_levelling_caps", xen_sysctl_cpu_levelling_caps),
        ("cpu_featureset", xen_sysctl_cpu_featureset),
        ("cpu_policy", xen_sysctl_cpu_policy),
        ("pad", ctypes.c_uint8 * 128),
    ]
    readconsole: xen_sysctl_readconsole
    debug_keys: xen_sysctl_debug_keys
    physinfo: xen_sysctl_physinfo
    sched_id: xen_sysctl_sched_id
    getdomaininfolist: xen_sysctl_getdomaininfolist
    cpu_levelling_caps: xen_sysctl_cpu_levelling_caps
    cpu_featureset: xen_sysctl_cpu_featureset
    cpu_policy: xen_sysctl_cpu_policy
    pad: ctypes.Array[ctypes.c_uint8]


class xen_sysctl(ctypes.LittleEndianStructure):
    """136 bytes. Source: sysctl.h, struct xen_sysctl."""

    _fields_: ClassVar = [
        ("cmd", ctypes.c_uint32),
        ("interface_version", ctypes.c_uint32),
        ("u", _sysctl_u),
    ]
    cmd: int
    interface_version: int
    u: _sysctl_u

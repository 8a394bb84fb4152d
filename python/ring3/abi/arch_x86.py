"""x86-64 CPU context and domain configuration. Source: xen/include/public/arch-x86/xen.h and xen-x86_64.h."""

import ctypes
from typing import ClassVar

FLAT_KERNEL_CS64 = 0xE033
FLAT_KERNEL_SS64 = 0xE02B
FLAT_USER_CS64 = 0xE033
FLAT_USER_SS64 = 0xE02B

VGCF_I387_VALID = 1
VGCF_IN_KERNEL = 4
VGCF_failsafe_disables_events = 8
VGCF_syscall_disables_events = 16
VGCF_online = 32

XEN_X86_EMU_LAPIC = 1
XEN_X86_EMU_HPET = 2
XEN_X86_EMU_PM = 4
XEN_X86_EMU_RTC = 8
XEN_X86_EMU_IOAPIC = 16
XEN_X86_EMU_PIC = 32
XEN_X86_EMU_VGA = 64
XEN_X86_EMU_IOMMU = 128
XEN_X86_EMU_PIT = 256
XEN_X86_EMU_USE_PIRQ = 512
XEN_X86_EMU_VPCI = 1024
XEN_X86_MSR_RELAXED = 1

X86_EFLAGS_IF = 0x200
X86_DR6_DEFAULT = 0xFFFF0FF0
X86_DR7_DEFAULT = 0x400

MACH2PHYS_VIRT_START = 0xFFFF800000000000
MACH2PHYS_VIRT_END = 0xFFFF804000000000
HYPERVISOR_VIRT_START = 0xFFFF800000000000
HYPERVISOR_VIRT_END = 0xFFFF880000000000


XEN_CPUID_NO_SUBLEAF = 0xFFFFFFFF


class xen_cpuid_leaf(ctypes.LittleEndianStructure):
    """24 bytes. Source: arch-x86/xen.h, struct xen_cpuid_leaf."""

    _fields_: ClassVar = [(name, ctypes.c_uint32) for name in ("leaf", "subleaf", "a", "b", "c", "d")]
    leaf: int
    subleaf: int
    a: int
    b: int
    c: int
    d: int


class xen_msr_entry(ctypes.LittleEndianStructure):
    """16 bytes. Source: arch-x86/xen.h, struct xen_msr_entry."""

    _fields_: ClassVar = [("idx", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("val", ctypes.c_uint64)]
    idx: int
    flags: int
    val: int


class xen_arch_domainconfig(ctypes.LittleEndianStructure):
    """8 bytes. Source: arch-x86/xen.h, struct xen_arch_domainconfig."""

    _fields_: ClassVar = [("emulation_flags", ctypes.c_uint32), ("misc_flags", ctypes.c_uint32)]
    emulation_flags: int
    misc_flags: int


class trap_info(ctypes.LittleEndianStructure):
    """16 bytes. Source: arch-x86/xen.h, struct trap_info."""

    _fields_: ClassVar = [
        ("vector", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("cs", ctypes.c_uint16),
        ("_pad", ctypes.c_uint32),
        ("address", ctypes.c_uint64),
    ]
    vector: int
    flags: int
    cs: int
    address: int


class cpu_user_regs(ctypes.LittleEndianStructure):
    """200 bytes. Source: arch-x86/xen-x86_64.h, struct cpu_user_regs."""

    _fields_: ClassVar = [
        ("r15", ctypes.c_uint64),
        ("r14", ctypes.c_uint64),
        ("r13", ctypes.c_uint64),
        ("r12", ctypes.c_uint64),
        ("rbp", ctypes.c_uint64),
        ("rbx", ctypes.c_uint64),
        ("r11", ctypes.c_uint64),
        ("r10", ctypes.c_uint64),
        ("r9", ctypes.c_uint64),
        ("r8", ctypes.c_uint64),
        ("rax", ctypes.c_uint64),
        ("rcx", ctypes.c_uint64),
        ("rdx", ctypes.c_uint64),
        ("rsi", ctypes.c_uint64),
        ("rdi", ctypes.c_uint64),
        ("error_code", ctypes.c_uint32),
        ("entry_vector", ctypes.c_uint32),
        ("rip", ctypes.c_uint64),
        ("cs", ctypes.c_uint16),
        ("_pad0", ctypes.c_uint16),
        ("saved_upcall_mask", ctypes.c_uint8),
        ("_pad1", ctypes.c_uint8 * 3),
        ("rflags", ctypes.c_uint64),
        ("rsp", ctypes.c_uint64),
        ("ss", ctypes.c_uint16),
        ("_pad2", ctypes.c_uint16 * 3),
        ("es", ctypes.c_uint16),
        ("_pad3", ctypes.c_uint16 * 3),
        ("ds", ctypes.c_uint16),
        ("_pad4", ctypes.c_uint16 * 3),
        ("fs", ctypes.c_uint16),
        ("_pad5", ctypes.c_uint16 * 3),
        ("gs", ctypes.c_uint16),
        ("_pad6", ctypes.c_uint16 * 3),
    ]
    rax: int
    rbx: int
    rcx: int
    rdx: int
    rsi: int
    rdi: int
    rbp: int
    rsp: int
    rip: int
    rflags: int
    cs: int
    ss: int
    saved_upcall_mask: int


class vcpu_guest_context(ctypes.LittleEndianStructure):
    """5168 bytes. Source: arch-x86/xen.h, struct vcpu_guest_context (64-bit form)."""

    _fields_: ClassVar = [
        ("fpu_ctxt", ctypes.c_uint8 * 512),
        ("flags", ctypes.c_uint64),
        ("user_regs", cpu_user_regs),
        ("trap_ctxt", trap_info * 256),
        ("ldt_base", ctypes.c_uint64),
        ("ldt_ents", ctypes.c_uint64),
        ("gdt_frames", ctypes.c_uint64 * 16),
        ("gdt_ents", ctypes.c_uint64),
        ("kernel_ss", ctypes.c_uint64),
        ("kernel_sp", ctypes.c_uint64),
        ("ctrlreg", ctypes.c_uint64 * 8),
        ("debugreg", ctypes.c_uint64 * 8),
        ("event_callback_eip", ctypes.c_uint64),
        ("failsafe_callback_eip", ctypes.c_uint64),
        ("syscall_callback_eip", ctypes.c_uint64),
        ("vm_assist", ctypes.c_uint64),
        ("fs_base", ctypes.c_uint64),
        ("gs_base_kernel", ctypes.c_uint64),
        ("gs_base_user", ctypes.c_uint64),
    ]
    flags: int
    user_regs: cpu_user_regs
    kernel_ss: int
    kernel_sp: int
    ctrlreg: ctypes.Array[ctypes.c_uint64]
    debugreg: ctypes.Array[ctypes.c_uint64]
    vm_assist: int


VCPU_GUEST_CONTEXT_SIZE = 5168

//! Source: xen/include/public/xen.h.

use crate::arch_x86::{arch_shared_info, arch_vcpu_info};
use crate::wire;

pub const VIRQ_TIMER: u32 = 0;
pub const VIRQ_DEBUG: u32 = 1;
pub const VIRQ_CONSOLE: u32 = 2;
pub const VIRQ_DOM_EXC: u32 = 3;
pub const VIRQ_TBUF: u32 = 4;
pub const VIRQ_DEBUGGER: u32 = 6;
pub const VIRQ_XENOPROF: u32 = 7;
pub const VIRQ_CON_RING: u32 = 8;
pub const VIRQ_PCPU_STATE: u32 = 9;
pub const VIRQ_MEM_EVENT: u32 = 10;
pub const VIRQ_ARGO: u32 = 11;
pub const VIRQ_ENOMEM: u32 = 12;
pub const VIRQ_XENPMU: u32 = 13;
pub const VIRQ_ARCH_0: u32 = 16;
pub const NR_VIRQS: u32 = 24;

pub const MMU_NORMAL_PT_UPDATE: u64 = 0;
pub const MMU_MACHPHYS_UPDATE: u64 = 1;
pub const MMU_PT_UPDATE_PRESERVE_AD: u64 = 2;
pub const MMU_PT_UPDATE_NO_TRANSLATE: u64 = 3;

/// Continuation marker in the count argument of mmu_update and mmuext_op.
pub const MMU_UPDATE_PREEMPTED: u32 = 1 << 31;

pub const MMUEXT_PIN_L1_TABLE: u32 = 0;
pub const MMUEXT_PIN_L2_TABLE: u32 = 1;
pub const MMUEXT_PIN_L3_TABLE: u32 = 2;
pub const MMUEXT_PIN_L4_TABLE: u32 = 3;
pub const MMUEXT_UNPIN_TABLE: u32 = 4;
pub const MMUEXT_NEW_BASEPTR: u32 = 5;
pub const MMUEXT_TLB_FLUSH_LOCAL: u32 = 6;
pub const MMUEXT_INVLPG_LOCAL: u32 = 7;
pub const MMUEXT_TLB_FLUSH_MULTI: u32 = 8;
pub const MMUEXT_INVLPG_MULTI: u32 = 9;
pub const MMUEXT_TLB_FLUSH_ALL: u32 = 10;
pub const MMUEXT_INVLPG_ALL: u32 = 11;
pub const MMUEXT_FLUSH_CACHE: u32 = 12;
pub const MMUEXT_SET_LDT: u32 = 13;
pub const MMUEXT_NEW_USER_BASEPTR: u32 = 15;
pub const MMUEXT_CLEAR_PAGE: u32 = 16;
pub const MMUEXT_COPY_PAGE: u32 = 17;
pub const MMUEXT_FLUSH_CACHE_GLOBAL: u32 = 18;
pub const MMUEXT_MARK_SUPER: u32 = 19;
pub const MMUEXT_UNMARK_SUPER: u32 = 20;

pub const UVMF_NONE: u64 = 0;
pub const UVMF_TLB_FLUSH: u64 = 1;
pub const UVMF_INVLPG: u64 = 2;
pub const UVMF_FLUSHTYPE_MASK: u64 = 3;
pub const UVMF_ALL: u64 = 1 << 2;

pub const CONSOLEIO_write: u32 = 0;
pub const CONSOLEIO_read: u32 = 1;

pub const VMASST_CMD_enable: u32 = 0;
pub const VMASST_CMD_disable: u32 = 1;
pub const VMASST_TYPE_4gb_segments: u32 = 0;
pub const VMASST_TYPE_4gb_segments_notify: u32 = 1;
pub const VMASST_TYPE_writable_pagetables: u32 = 2;
pub const VMASST_TYPE_pae_extended_cr3: u32 = 3;
pub const VMASST_TYPE_architectural_iopl: u32 = 4;
pub const VMASST_TYPE_runstate_update_flag: u32 = 5;
pub const VMASST_TYPE_m2p_strict: u32 = 32;

pub const DOMID_FIRST_RESERVED: u16 = 0x7FF0;
pub const DOMID_SELF: u16 = 0x7FF0;
pub const DOMID_IO: u16 = 0x7FF1;
pub const DOMID_XEN: u16 = 0x7FF2;
pub const DOMID_COW: u16 = 0x7FF3;
pub const DOMID_INVALID: u16 = 0x7FF4;
pub const DOMID_IDLE: u16 = 0x7FFF;
pub const DOMID_MASK: u16 = 0x7FFF;

pub const XEN_LEGACY_MAX_VCPUS: usize = 32;

pub const SIF_PRIVILEGED: u32 = 1 << 0;
pub const SIF_INITDOMAIN: u32 = 1 << 1;
pub const SIF_MULTIBOOT_MOD: u32 = 1 << 2;
pub const SIF_MOD_START_PFN: u32 = 1 << 3;
pub const SIF_VIRT_P2M_4TOOLS: u32 = 1 << 4;

pub const XEN_PVCLOCK_TSC_STABLE_BIT: u8 = 1 << 0;
pub const XEN_PVCLOCK_GUEST_STOPPED: u8 = 1 << 1;

wire!(mmu_update, 16, { ptr: u64 = 0, val: u64 = 8 });
wire!(mmuext_op, 24, { cmd: u32 = 0, _pad: u32 = 4, arg1: u64 = 8, arg2: u64 = 16 });
wire!(multicall_entry, 64, { op: u64 = 0, result: u64 = 8, args: [u64; 6] = 16 });
wire!(vcpu_time_info, 32, {
    version: u32 = 0,
    pad0: u32 = 4,
    tsc_timestamp: u64 = 8,
    system_time: u64 = 16,
    tsc_to_system_mul: u32 = 24,
    tsc_shift: i8 = 28,
    flags: u8 = 29,
    pad1: [u8; 2] = 30,
});
wire!(vcpu_info, 64, {
    evtchn_upcall_pending: u8 = 0,
    evtchn_upcall_mask: u8 = 1,
    _pad: [u8; 6] = 2,
    evtchn_pending_sel: u64 = 8,
    arch: arch_vcpu_info = 16,
    time: vcpu_time_info = 32,
});

/// Shared with the guest for its life; offsets are what the hypervisor uses, through `Machine`.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct shared_info {
    pub vcpu_info: [vcpu_info; XEN_LEGACY_MAX_VCPUS],
    pub evtchn_pending: [u64; 64],
    pub evtchn_mask: [u64; 64],
    pub wc_version: u32,
    pub wc_sec: u32,
    pub wc_nsec: u32,
    pub wc_sec_hi: u32,
    pub arch: arch_shared_info,
}
const _: () = assert!(core::mem::size_of::<shared_info>() == 3136);
const _: () = assert!(core::mem::offset_of!(shared_info, evtchn_pending) == 0x800);
const _: () = assert!(core::mem::offset_of!(shared_info, evtchn_mask) == 0xa00);
const _: () = assert!(core::mem::offset_of!(shared_info, wc_version) == 0xc00);
const _: () = assert!(core::mem::offset_of!(shared_info, arch) == 0xc10);

/// Start-of-day page of a PV guest; the builder fills it, the hypervisor only names it.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct start_info {
    pub magic: [u8; 32],
    pub nr_pages: u64,
    pub shared_info: u64,
    pub flags: u32,
    pub _pad0: u32,
    pub store_mfn: u64,
    pub store_evtchn: u32,
    pub _pad1: u32,
    pub console_mfn: u64,
    pub console_evtchn: u32,
    pub _pad2: u32,
    pub pt_base: u64,
    pub nr_pt_frames: u64,
    pub mfn_list: u64,
    pub mod_start: u64,
    pub mod_len: u64,
    pub cmd_line: [u8; 1024],
    pub first_p2m_pfn: u64,
    pub nr_p2m_frames: u64,
}
const _: () = assert!(core::mem::size_of::<start_info>() == 1168);
const _: () = assert!(core::mem::offset_of!(start_info, store_mfn) == 0x38);
const _: () = assert!(core::mem::offset_of!(start_info, pt_base) == 0x58);
const _: () = assert!(core::mem::offset_of!(start_info, cmd_line) == 0x80);

//! Source: xen/include/public/arch-x86/xen.h and xen-x86_64.h (64-bit layouts).

use crate::wire;

pub const FLAT_RING3_CS32: u16 = 0xe023;
pub const FLAT_RING3_CS64: u16 = 0xe033;
pub const FLAT_RING3_DS32: u16 = 0xe02b;
pub const FLAT_RING3_SS64: u16 = 0xe02b;

pub const SEGBASE_FS: u32 = 0;
pub const SEGBASE_GS_USER: u32 = 1;
pub const SEGBASE_GS_KERNEL: u32 = 2;
pub const SEGBASE_GS_USER_SEL: u32 = 3;

pub const VGCF_i387_valid: u64 = 1 << 0;
pub const VGCF_in_kernel: u64 = 1 << 2;
pub const VGCF_failsafe_disables_events: u64 = 1 << 3;
pub const VGCF_syscall_disables_events: u64 = 1 << 4;
pub const VGCF_online: u64 = 1 << 5;
pub const VGCF_in_syscall: u64 = 1 << 8;

pub const XEN_X86_EMU_PIT: u32 = 1 << 8;
pub const XEN_X86_MSR_RELAXED: u32 = 1;

pub const MACH2PHYS_VIRT_START: u64 = 0xFFFF_8000_0000_0000;
pub const MACH2PHYS_VIRT_END: u64 = 0xFFFF_8040_0000_0000;

/// First GDT selector index reserved to the hypervisor.
pub const FIRST_RESERVED_GDT_PAGE: u32 = 14;
pub const FIRST_RESERVED_GDT_ENTRY: u32 = FIRST_RESERVED_GDT_PAGE * 512;
pub const FIRST_RESERVED_GDT_BYTE: u32 = FIRST_RESERVED_GDT_ENTRY * 8;

wire!(trap_info, 16, { vector: u8 = 0, flags: u8 = 1, cs: u16 = 2, _pad: u32 = 4, address: u64 = 8 });
wire!(arch_vcpu_info, 16, { cr2: u64 = 0, pad: u64 = 8 });
wire!(arch_shared_info, 48, {
    max_pfn: u64 = 0,
    pfn_to_mfn_frame_list_list: u64 = 8,
    nmi_reason: u64 = 16,
    p2m_cr3: u64 = 24,
    p2m_vaddr: u64 = 32,
    p2m_generation: u64 = 40,
});
wire!(iret_context, 72, {
    rax: u64 = 0, r11: u64 = 8, rcx: u64 = 16, flags: u64 = 24, rip: u64 = 32, cs: u64 = 40, rflags: u64 = 48,
    rsp: u64 = 56, ss: u64 = 64,
});
wire!(cpu_user_regs, 200, {
    r15: u64 = 0, r14: u64 = 8, r13: u64 = 16, r12: u64 = 24, rbp: u64 = 32, rbx: u64 = 40,
    r11: u64 = 48, r10: u64 = 56, r9: u64 = 64, r8: u64 = 72, rax: u64 = 80, rcx: u64 = 88,
    rdx: u64 = 96, rsi: u64 = 104, rdi: u64 = 112,
    error_code: u32 = 120, entry_vector: u32 = 124,
    rip: u64 = 128,
    cs: u16 = 136, _pad0: u16 = 138, saved_upcall_mask: u8 = 140, _pad1: [u8; 3] = 141,
    rflags: u64 = 144, rsp: u64 = 152,
    ss: u16 = 160, _pad2: [u16; 3] = 162,
    es: u16 = 168, _pad3: [u16; 3] = 170,
    ds: u16 = 176, _pad4: [u16; 3] = 178,
    fs: u16 = 184, _pad5: [u16; 3] = 186,
    gs: u16 = 192, _pad6: [u16; 3] = 194,
});

/// Whole state of a PV vCPU, for `VCPUOP_initialise` and the domctls.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct vcpu_guest_context {
    pub fpu_ctxt: [u8; 512],
    pub flags: u64,
    pub user_regs: cpu_user_regs,
    pub trap_ctxt: [trap_info; 256],
    pub ldt_base: u64,
    pub ldt_ents: u64,
    pub gdt_frames: [u64; 16],
    pub gdt_ents: u64,
    pub kernel_ss: u64,
    pub kernel_sp: u64,
    /// CR3 is `[3]`, the user page table `[1]`.
    pub ctrlreg: [u64; 8],
    pub debugreg: [u64; 8],
    pub event_callback_eip: u64,
    pub failsafe_callback_eip: u64,
    pub syscall_callback_eip: u64,
    pub vm_assist: u64,
    pub fs_base: u64,
    pub gs_base_kernel: u64,
    pub gs_base_user: u64,
}
const _: () = assert!(core::mem::size_of::<vcpu_guest_context>() == 5168);
const _: () = assert!(core::mem::offset_of!(vcpu_guest_context, user_regs) == 0x208);
const _: () = assert!(core::mem::offset_of!(vcpu_guest_context, trap_ctxt) == 0x2d0);
const _: () = assert!(core::mem::offset_of!(vcpu_guest_context, ldt_base) == 0x12d0);
const _: () = assert!(core::mem::offset_of!(vcpu_guest_context, kernel_ss) == 0x1368);
const _: () = assert!(core::mem::offset_of!(vcpu_guest_context, event_callback_eip) == 0x13f8);
const _: () = assert!(core::mem::offset_of!(vcpu_guest_context, gs_base_user) == 0x1428);

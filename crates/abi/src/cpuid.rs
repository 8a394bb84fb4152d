//! Hypervisor CPUID leaves. Source: xen/include/public/arch-x86/cpuid.h.

pub const XEN_CPUID_FIRST_LEAF: u32 = 0x4000_0000;
pub const XEN_CPUID_SIGNATURE_EBX: u32 = 0x566e_6558;
pub const XEN_CPUID_SIGNATURE_ECX: u32 = 0x6558_4d4d;
pub const XEN_CPUID_SIGNATURE_EDX: u32 = 0x4d4d_566e;
pub const XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD: u32 = 1;
pub const XEN_CPUID_MAX_NUM_LEAVES: u32 = 5;

//! The features that a PV guest may be shown, what each needs of others, and which of them are instructions.
//!
//! A mask of known-good features over the host's: what is not listed here is hidden, so that a newer host shows
//! nothing that the engine has not been taught. Source of bits: Intel SDM vol. 2, AMD APM vol. 3, "CPUID";
//! xen/include/public/arch-x86/cpufeatureset.h.

use ring3_engine::Features;

/// A leaf and its subleaf; [`NO_SUBLEAF`] where it has none.
pub type LeafKey = (u32, u32);
/// Source: xen/include/public/arch-x86/xen.h, XEN_CPUID_NO_SUBLEAF.
pub const NO_SUBLEAF: u32 = u32::MAX;

pub const LEAF_1: LeafKey = (1, NO_SUBLEAF);
pub const LEAF_7: LeafKey = (7, 0);
pub const LEAF_D0: LeafKey = (0xd, 0);
pub const LEAF_D1: LeafKey = (0xd, 1);
pub const LEAF_D2: LeafKey = (0xd, 2);
pub const LEAF_E1: LeafKey = (0x8000_0001, NO_SUBLEAF);
pub const LEAF_E7: LeafKey = (0x8000_0007, NO_SUBLEAF);
pub const LEAF_E8: LeafKey = (0x8000_0008, NO_SUBLEAF);
pub const LEAF_E21: LeafKey = (0x8000_0021, NO_SUBLEAF);

/// Indices of a leaf's registers.
pub const EAX: usize = 0;
pub const EBX: usize = 1;
pub const ECX: usize = 2;
pub const EDX: usize = 3;

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

/// Leaf 1 EDX: FPU DE TSC MSR PAE MCE CX8 APIC SEP MCA CMOV PAT CLFSH MMX FXSR SSE SSE2.
pub const FEATURES_1D: u32 = bits(&[0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 23, 24, 25, 26]);
/// Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND; HYPERVISOR is added.
pub const FEATURES_1C: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 7 EBX: FSGSBASE BMI1 AVX2 BMI2 ERMS RDSEED ADX CLFLUSHOPT CLWB SHA; FDP_EXCPTN_ONLY, NO_FPU_SEL.
pub const FEATURES_7B: u32 = bits(&[0, 3, 5, 6, 8, 9, 13, 18, 19, 23, 24, 29]);
/// Leaf 7 ECX: GFNI VAES VPCLMULQDQ RDPID.
pub const FEATURES_7C: u32 = bits(&[8, 9, 10, 22]);
/// Leaf 7 EDX: FSRM.
pub const FEATURES_7D: u32 = bits(&[4]);
/// Leaf 0x80000001 ECX: LAHF_LM ABM SSE4A MISALIGNSSE 3DNOWPREFETCH.
pub const FEATURES_E1C: u32 = bits(&[0, 5, 6, 7, 8]);
/// Leaf 0x80000001 EDX: SYSCALL NX RDTSCP LM; MMXEXT FFXSR on AMD.
pub const FEATURES_E1D: u32 = bits(&[11, 20, 27, 29]);
pub const FEATURES_E1D_AMD: u32 = bits(&[22, 25]);
/// Those of leaf 1 EDX that AMD shows in leaf 0x80000001 EDX again.
pub const COMMON_1D: u32 = bits(&[0, 2, 4, 5, 6, 7, 8, 9, 14, 15, 16, 23, 24]);
/// Leaf 0xd subleaf 1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX=1.
pub const FEATURES_DA1: u32 = bits(&[0, 1, 2]);
/// Leaf 0x80000007 EDX: invariant TSC. No migration yet, so the host's promise holds.
pub const FEATURES_E7D: u32 = bits(&[8]);
/// Leaf 0x80000008 EBX: XSAVEERPTR. CLZERO is hidden: it writes memory that no operand names.
pub const FEATURES_E8B: u32 = bits(&[2]);
// Speculation. Guest kernel and guest user run as translated code of one host process, whose indirect branches are the
// engine's own: retpolines, safe returns and buffer clearing in guest code protect nothing there and cost much. So the
// guest is told that its CPU needs none; what protects guests from each other is the host's business.
/// Leaf 0x80000008 EBX: SSB_NO, BTC_NO.
pub const IMMUNE_E8B: u32 = bits(&[26, 29]);
/// Leaf 0x80000021 EAX: LFENCE serialising, NULL_SEL_CLR_BASE, AUTOIBRS, SRSO_NO.
pub const IMMUNE_E21A: u32 = bits(&[2, 6, 8, 29]);
/// Leaf 0x80000021 ECX: TSA_SQ_NO, TSA_L1_NO.
pub const IMMUNE_E21C: u32 = bits(&[1, 2]);
/// Leaf 7 EDX: ARCH_CAPABILITIES, on Intel.
pub const ARCH_CAPABILITIES: u32 = 1 << 29;

/// Leaf 1 ECX.
pub const OSXSAVE: u32 = 1 << 27;
pub const HYPERVISOR: u32 = 1 << 31;

/// Registers that hold features only: a policy has at most what the greatest one has there.
pub const FEATURE_WORDS: &[(LeafKey, usize)] = &[
    (LEAF_1, ECX),
    (LEAF_1, EDX),
    (LEAF_7, EBX),
    (LEAF_7, ECX),
    (LEAF_7, EDX),
    (LEAF_D1, EAX),
    (LEAF_E1, ECX),
    (LEAF_E1, EDX),
    (LEAF_E7, EDX),
    (LEAF_E8, EBX),
    (LEAF_E21, EAX),
    (LEAF_E21, ECX),
];

/// Bits that say how topology leaves are to be read: a toolstack may set them: HTT, X2APIC, CMP_LEGACY.
pub const TOPOLOGY: &[Bit] = &[Bit(LEAF_1, EDX, 28), Bit(LEAF_1, ECX, 21), Bit(LEAF_E1, ECX, 1)];

/// A feature's bit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bit(pub LeafKey, pub usize, pub u32);

const FPU: Bit = Bit(LEAF_1, EDX, 0);
pub const TSC: Bit = Bit(LEAF_1, EDX, 4);
pub const DE: Bit = Bit(LEAF_1, EDX, 2);
const PAE: Bit = Bit(LEAF_1, EDX, 6);
const APIC: Bit = Bit(LEAF_1, EDX, 9);
const CLFSH: Bit = Bit(LEAF_1, EDX, 19);
const MMX: Bit = Bit(LEAF_1, EDX, 23);
const FXSR: Bit = Bit(LEAF_1, EDX, 24);
const SSE: Bit = Bit(LEAF_1, EDX, 25);
const SSE2: Bit = Bit(LEAF_1, EDX, 26);
const SSE3: Bit = Bit(LEAF_1, ECX, 0);
const PCLMULQDQ: Bit = Bit(LEAF_1, ECX, 1);
const SSSE3: Bit = Bit(LEAF_1, ECX, 9);
const FMA: Bit = Bit(LEAF_1, ECX, 12);
const CX16: Bit = Bit(LEAF_1, ECX, 13);
const SSE4_1: Bit = Bit(LEAF_1, ECX, 19);
const SSE4_2: Bit = Bit(LEAF_1, ECX, 20);
const X2APIC: Bit = Bit(LEAF_1, ECX, 21);
const MOVBE: Bit = Bit(LEAF_1, ECX, 22);
const POPCNT: Bit = Bit(LEAF_1, ECX, 23);
const AES: Bit = Bit(LEAF_1, ECX, 25);
pub const XSAVE: Bit = Bit(LEAF_1, ECX, 26);
pub const AVX: Bit = Bit(LEAF_1, ECX, 28);
const F16C: Bit = Bit(LEAF_1, ECX, 29);
const RDRAND: Bit = Bit(LEAF_1, ECX, 30);
pub const FSGSBASE: Bit = Bit(LEAF_7, EBX, 0);
const BMI1: Bit = Bit(LEAF_7, EBX, 3);
const AVX2: Bit = Bit(LEAF_7, EBX, 5);
const BMI2: Bit = Bit(LEAF_7, EBX, 8);
const RDSEED: Bit = Bit(LEAF_7, EBX, 18);
const ADX: Bit = Bit(LEAF_7, EBX, 19);
const CLFLUSHOPT: Bit = Bit(LEAF_7, EBX, 23);
const CLWB: Bit = Bit(LEAF_7, EBX, 24);
const SHA: Bit = Bit(LEAF_7, EBX, 29);
const GFNI: Bit = Bit(LEAF_7, ECX, 8);
const VAES: Bit = Bit(LEAF_7, ECX, 9);
const VPCLMULQDQ: Bit = Bit(LEAF_7, ECX, 10);
pub const RDPID: Bit = Bit(LEAF_7, ECX, 22);
pub const ARCH_CAPS_BIT: Bit = Bit(LEAF_7, EDX, 29);
const XSAVEOPT: Bit = Bit(LEAF_D1, EAX, 0);
const XSAVEC: Bit = Bit(LEAF_D1, EAX, 1);
const XGETBV1: Bit = Bit(LEAF_D1, EAX, 2);
const LAHF_LM: Bit = Bit(LEAF_E1, ECX, 0);
const ABM: Bit = Bit(LEAF_E1, ECX, 5);
const SSE4A: Bit = Bit(LEAF_E1, ECX, 6);
const MISALIGNSSE: Bit = Bit(LEAF_E1, ECX, 7);
const SYSCALL: Bit = Bit(LEAF_E1, EDX, 11);
const NX: Bit = Bit(LEAF_E1, EDX, 20);
const MMXEXT: Bit = Bit(LEAF_E1, EDX, 22);
const FFXSR: Bit = Bit(LEAF_E1, EDX, 25);
pub const RDTSCP: Bit = Bit(LEAF_E1, EDX, 27);
const LM: Bit = Bit(LEAF_E1, EDX, 29);
const ITSC: Bit = Bit(LEAF_E7, EDX, 8);
const XSAVEERPTR: Bit = Bit(LEAF_E8, EBX, 2);

/// What goes if a feature is missing, in an order in which one pass does. Source: the instructions' state and
/// encodings, as the manuals say which feature they are of.
pub const DEPENDENTS: &[(Bit, &[Bit])] = &[
    (FPU, &[MMX]),
    (TSC, &[RDTSCP, ITSC]),
    (APIC, &[X2APIC]),
    (PAE, &[LM, NX]),
    (CLFSH, &[CLFLUSHOPT, CLWB]),
    (MMX, &[MMXEXT]),
    (FXSR, &[FFXSR, SSE]),
    (SSE, &[SSE2, MISALIGNSSE]),
    (SSE2, &[SSE3, LM, AES, PCLMULQDQ, SHA, GFNI]),
    (LM, &[CX16, LAHF_LM, SYSCALL]),
    (SSE3, &[SSSE3, SSE4A]),
    (SSSE3, &[SSE4_1]),
    (SSE4_1, &[SSE4_2]),
    (XSAVE, &[XSAVEOPT, XSAVEC, XGETBV1, XSAVEERPTR, AVX]),
    (AVX, &[FMA, F16C, AVX2]),
    (AVX2, &[VAES, VPCLMULQDQ]),
    (AES, &[VAES]),
    (PCLMULQDQ, &[VPCLMULQDQ]),
];

/// Features that are instructions.
pub const INSTRUCTIONS: &[(Bit, Features)] = &[
    (MMX, Features::MMX),
    (FXSR, Features::FXSR),
    (SSE, Features::SSE),
    (SSE2, Features::SSE2),
    (SSE3, Features::SSE3),
    (SSSE3, Features::SSSE3),
    (SSE4_1, Features::SSE4_1),
    (SSE4_2, Features::SSE4_2),
    (SSE4A, Features::SSE4A),
    (AES, Features::AES),
    (PCLMULQDQ, Features::PCLMULQDQ),
    (AVX, Features::AVX),
    (AVX2, Features::AVX2),
    (F16C, Features::F16C),
    (FMA, Features::FMA),
    (BMI1, Features::BMI1),
    (BMI2, Features::BMI2),
    (POPCNT, Features::POPCNT),
    (MOVBE, Features::MOVBE),
    (ADX, Features::ADX),
    (SHA, Features::SHA),
    (GFNI, Features::GFNI),
    (VAES, Features::VAES),
    (VPCLMULQDQ, Features::VPCLMULQDQ),
    (RDRAND, Features::RDRAND),
    (RDSEED, Features::RDSEED),
    (XSAVE, Features::XSAVE),
    (XSAVEC, Features::XSAVEC),
    (XSAVEOPT, Features::XSAVEOPT),
    (CX16, Features::CX16),
    (CLFSH, Features::CLFLUSH),
    (CLFLUSHOPT, Features::CLFLUSHOPT),
    (CLWB, Features::CLWB),
    (RDTSCP, Features::RDTSCP),
    (RDPID, Features::RDPID),
    (FSGSBASE, Features::FSGSBASE),
    (LAHF_LM, Features::LAHF_LM),
    (ABM, Features::LZCNT),
];

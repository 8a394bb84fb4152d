//! CPUID policy: what of the host's CPU a PV guest may see, and the hypervisor's own leaves.
//!
//! A mask of known-good features over the host's: what is not listed here is hidden, so that a newer host shows
//! nothing that the engine has not been taught. Source of leaves: Intel SDM vol. 2, AMD APM vol. 3, "CPUID";
//! xen/include/public/arch-x86/cpuid.h; the ABI map, section 11.

use ring3_abi::cpuid::{
    XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, XEN_CPUID_FIRST_LEAF, XEN_CPUID_MAX_NUM_LEAVES, XEN_CPUID_SIGNATURE_EBX,
    XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX,
};

use crate::time::{Clock, GuestTsc, host_cpuid};

/// State components that guests use: x87, SSE, AVX.
pub const XCR0: u64 = 7;
/// Those of a new vCPU: x87, SSE.
pub const XCR0_INITIAL: u64 = 3;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Viewer {
    pub vcpu: u32,
    pub is_osxsave: bool,
    pub xcr0: u64,
}

const fn bits(list: &[u32]) -> u32 {
    let mut mask = 0;
    let mut i = 0;
    while i < list.len() {
        mask |= 1 << list[i];
        i += 1;
    }
    mask
}

/// Leaf 1 EDX: FPU DE TSC MSR PAE MCE CX8 APIC SEP MCA CMOV PAT CLFSH MMX FXSR SSE SSE2 HTT.
const FEATURES_1D: u32 = bits(&[0, 2, 4, 5, 6, 7, 8, 9, 11, 14, 15, 16, 19, 23, 24, 25, 26, 28]);
/// Leaf 1 ECX: SSE3 PCLMULQDQ SSSE3 FMA CX16 SSE4.1 SSE4.2 MOVBE POPCNT AES XSAVE AVX F16C RDRAND; HYPERVISOR is added.
const FEATURES_1C: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 22, 23, 25, 26, 28, 29, 30]);
/// Leaf 7 EBX: FSGSBASE BMI1 AVX2 BMI2 ERMS RDSEED ADX CLFLUSHOPT CLWB SHA; FDP_EXCPTN_ONLY, NO_FPU_SEL.
const FEATURES_7B: u32 = bits(&[0, 3, 5, 6, 8, 9, 13, 18, 19, 23, 24, 29]);
/// Leaf 7 ECX: GFNI VAES VPCLMULQDQ RDPID.
const FEATURES_7C: u32 = bits(&[8, 9, 10, 22]);
/// Leaf 7 EDX: FSRM.
const FEATURES_7D: u32 = bits(&[4]);
/// Leaf 0x80000001 ECX: LAHF_LM ABM SSE4A MISALIGNSSE 3DNOWPREFETCH.
const FEATURES_E1C: u32 = bits(&[0, 5, 6, 7, 8]);
/// Leaf 0x80000001 EDX: the copies of leaf 1 that AMD shows, SYSCALL NX MMXEXT FFXSR RDTSCP LM.
const FEATURES_E1D_COMMON: u32 = bits(&[11, 20, 27, 29]);
const FEATURES_E1D_AMD: u32 = bits(&[0, 2, 4, 5, 6, 7, 8, 9, 14, 15, 16, 22, 23, 24, 25]);
/// Leaf 0xd subleaf 1 EAX: XSAVEOPT, XSAVEC, XGETBV with ECX=1.
const FEATURES_DA1: u32 = bits(&[0, 1, 2]);
/// Leaf 0x80000008 EBX: XSAVEERPTR. CLZERO is hidden: it writes memory that no operand names.
const FEATURES_E8B: u32 = bits(&[2]);
// Speculation. Guest kernel and guest user run as translated code of one host process, whose indirect branches are the
// engine's own: retpolines, safe returns and buffer clearing in guest code protect nothing there and cost much. So the
// guest is told that its CPU needs none; what protects guests from each other is the host's business.
/// Leaf 0x80000008 EBX: SSB_NO, BTC_NO.
const IMMUNE_E8B: u32 = bits(&[26, 29]);
/// Leaf 0x80000021 EAX: LFENCE serialising, NULL_SEL_CLR_BASE, AUTOIBRS, SRSO_NO.
const IMMUNE_E21A: u32 = bits(&[2, 6, 8, 29]);
/// Leaf 0x80000021 ECX: TSA_SQ_NO, TSA_L1_NO.
const IMMUNE_E21C: u32 = bits(&[1, 2]);
/// Leaf 7 EDX: ARCH_CAPABILITIES, on Intel.
const ARCH_CAPABILITIES: u32 = 1 << 29;
/// MSR_ARCH_CAPABILITIES: RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
/// FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
pub const ARCH_CAPS: u64 = {
    const LIST: [u32; 15] = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62];
    let (mut mask, mut i) = (0u64, 0);
    while i < LIST.len() {
        mask |= 1 << LIST[i];
        i += 1;
    }
    mask
};

const OSXSAVE: u32 = 1 << 27;
const HYPERVISOR: u32 = 1 << 31;

/// Subleaves of a basic leaf that are looked at.
const NR_SUBLEAVES: usize = 4;
/// Last basic leaf that is looked at.
const MAX_BASIC: u32 = 0xd;

/// The policy of this machine.
#[derive(Debug)]
pub struct CpuidPolicy {
    /// The host's leaves, read once: where the host is itself a guest, each `cpuid` costs it an exit.
    basic: Vec<[[u32; 4]; NR_SUBLEAVES]>,
    extended: Vec<[u32; 4]>,
    is_amd: bool,
    max_leaf: u32,
    max_extended: u32,
    /// What IA32_UCODE_REV or PATCH_LEVEL hold.
    microcode: u64,
}

impl Default for CpuidPolicy {
    fn default() -> Self {
        Self::of_host()
    }
}

impl CpuidPolicy {
    /// The policy for guests on this host.
    pub fn of_host() -> Self {
        let [max_leaf, ebx, _, _] = host_cpuid(0, 0);
        let [max_extended, ..] = host_cpuid(0x8000_0000, 0);
        // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
        let is_amd = ebx == 0x6874_7541 || ebx == 0x6f67_7948;
        let max_leaf = max_leaf.min(MAX_BASIC);
        let subleaves = |leaf| std::array::from_fn(|sub| host_cpuid(leaf, u32::try_from(sub).unwrap_or(0)));
        Self {
            basic: (0..=max_leaf).map(subleaves).collect(),
            extended: (0x8000_0000..=max_extended.min(0x8000_0021)).map(|leaf| host_cpuid(leaf, 0)).collect(),
            is_amd,
            max_leaf,
            microcode: host_microcode() << if is_amd { 0 } else { 32 },
            max_extended: if is_amd { 0x8000_0021 } else { max_extended.min(0x8000_0008) },
        }
    }

    fn host_basic(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let subleaves = self.basic.get(leaf as usize);
        subleaves.and_then(|all| all.get(subleaf as usize)).copied().unwrap_or_default()
    }

    fn host_extended(&self, leaf: u32) -> [u32; 4] {
        self.extended.get(leaf.wrapping_sub(0x8000_0000) as usize).copied().unwrap_or_default()
    }

    /// The MSR that tells which microcode the host's CPU runs.
    pub fn microcode(&self) -> u64 {
        self.microcode
    }

    /// Whether the CPU is AMD's or a relative.
    pub fn is_amd(&self) -> bool {
        self.is_amd
    }

    /// EAX, EBX, ECX, EDX of a leaf.
    pub fn query(&self, leaf: u32, subleaf: u32, viewer: &Viewer, clock: &Clock, tsc: &GuestTsc) -> [u32; 4] {
        match leaf {
            0x4000_0000..=0x4000_00ff => self.xen_leaf(leaf - XEN_CPUID_FIRST_LEAF, subleaf, clock, tsc),
            0x8000_0000..=0x8000_ffff if leaf <= self.max_extended => self.extended(leaf),
            _ if leaf <= self.max_leaf => self.basic(leaf, subleaf, viewer),
            _ => [0; 4],
        }
    }

    fn basic(&self, leaf: u32, subleaf: u32, viewer: &Viewer) -> [u32; 4] {
        let [a, b, c, d] = self.host_basic(leaf, if matches!(leaf, 4 | 7 | 0xd) { subleaf } else { 0 });
        match leaf {
            0 => [self.max_leaf, b, c, d],
            1 => {
                let apic_id = (viewer.vcpu * 2) & 0xff;
                let c = (c & FEATURES_1C) | HYPERVISOR | if viewer.is_osxsave { OSXSAVE & c } else { 0 };
                // One logical CPU a package: HTT off.
                [a, (b & 0x0000_ff00) | (1 << 16) | (apic_id << 24), c, d & FEATURES_1D & !(1 << 28)]
            }
            // Cache descriptors are the host's; sharing and core counts are not the guest's business.
            2 if !self.is_amd => [a, b, c, d],
            4 if !self.is_amd => [a & 0x3fff, b, c, d],
            7 => match subleaf {
                0 => {
                    let immune = if self.is_amd { 0 } else { ARCH_CAPABILITIES };
                    [0, b & FEATURES_7B, c & FEATURES_7C, (d & FEATURES_7D) | immune]
                }
                _ => [0; 4],
            },
            0xd => self.xstate(subleaf, viewer.xcr0),
            _ => [0; 4],
        }
    }

    fn xstate(&self, subleaf: u32, xcr0: u64) -> [u32; 4] {
        // Standard format: 512 legacy, 64 header, 256 of AVX at offset 576.
        const SIZE: u32 = 576 + 256;
        let now = if xcr0 & 4 != 0 { SIZE } else { 576 };
        let host = self.host_basic(0xd, subleaf);
        match subleaf {
            0 => [(XCR0 & 0xffff_ffff) as u32, now, SIZE, 0],
            1 => [host[0] & FEATURES_DA1, now, 0, 0],
            2 => [256, 576, 0, 0],
            _ => [0; 4],
        }
    }

    fn extended(&self, leaf: u32) -> [u32; 4] {
        let [a, b, c, d] = self.host_extended(leaf);
        match leaf {
            0x8000_0000 => [self.max_extended, b, c, d],
            0x8000_0001 => {
                let shown = if self.is_amd { FEATURES_E1D_COMMON | FEATURES_E1D_AMD } else { FEATURES_E1D_COMMON };
                [a, 0, c & FEATURES_E1C, d & shown]
            }
            0x8000_0002..=0x8000_0004 => [a, b, c, d],
            0x8000_0005 | 0x8000_0006 => [a, b, c, d],
            // Invariant TSC: no migration yet, so the host's promise holds.
            0x8000_0007 => [0, 0, 0, d & (1 << 8)],
            0x8000_0008 => [a & 0xffff, if self.is_amd { (b & FEATURES_E8B) | IMMUNE_E8B } else { 0 }, 0, 0],
            0x8000_0021 if self.is_amd => [IMMUNE_E21A, 0, IMMUNE_E21C, 0],
            _ => [0; 4],
        }
    }

    fn xen_leaf(&self, index: u32, subleaf: u32, clock: &Clock, tsc: &GuestTsc) -> [u32; 4] {
        match index {
            0 => [
                XEN_CPUID_FIRST_LEAF + XEN_CPUID_MAX_NUM_LEAVES,
                XEN_CPUID_SIGNATURE_EBX,
                XEN_CPUID_SIGNATURE_ECX,
                XEN_CPUID_SIGNATURE_EDX,
            ],
            1 => [(crate::hypercall::XEN_MAJOR << 16) | crate::hypercall::XEN_MINOR, 0, 0, 0],
            // One hypercall page; the MSR is for HVM.
            2 => [1, 0x4000_0000, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0],
            3 => {
                let (mode, khz, incarnation) = tsc.summary();
                let has_rdtscp = self.extended(0x8000_0001)[3] & (1 << 27) != 0;
                match subleaf {
                    0 => {
                        let flags = u32::from(tsc.is_emulated())
                            | (u32::from(clock.is_stable) << 1)
                            | (u32::from(has_rdtscp) << 2);
                        [flags, mode, khz, incarnation]
                    }
                    1 => {
                        let offset = tsc.offset_ns();
                        [(offset & 0xffff_ffff) as u32, (offset >> 32) as u32, tsc.mul, i32::from(tsc.shift) as u32]
                    }
                    2 => [clock.khz(), 0, 0, 0],
                    _ => [0; 4],
                }
            }
            // Machine addresses are far below 44 bits, so that guests choose grant table version 1.
            5 if subleaf == 0 => [0, 40, 0, 0],
            _ => [0; 4],
        }
    }
}

/// The microcode's revision as the host's kernel tells it; 0 where it does not.
fn host_microcode() -> u64 {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("microcode"));
    let value = line.and_then(|line| line.split_once("0x")).map(|(_, value)| value.trim());
    value.and_then(|value| u64::from_str_radix(value, 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_policy_hides_what_the_engine_cannot_run() {
        let policy = CpuidPolicy::of_host();
        let clock = Clock::calibrate();
        let tsc = GuestTsc::new(&crate::time::TscInfo::default(), &clock).unwrap();
        let query = |leaf, subleaf, xcr0| {
            policy.query(leaf, subleaf, &Viewer { vcpu: 0, is_osxsave: true, xcr0 }, &clock, &tsc)
        };
        let [_, b, c, d] = query(7, 0, 7);
        assert_eq!(b & bits(&[2, 7, 10, 14, 16, 17, 20, 21, 26, 27, 28, 30, 31]), 0);
        assert_eq!(c & bits(&[1, 2, 3, 4, 11, 12, 14, 16]), 0);
        assert_eq!(d & bits(&[2, 3, 22, 24, 25, 26, 27, 31]), 0);
        let [_, _, c, d] = query(1, 0, 7);
        assert_eq!(c & bits(&[3, 5, 6, 17, 21, 24]), 0);
        assert_ne!(c & HYPERVISOR, 0);
        assert_eq!(d & bits(&[1, 3, 12, 13, 17]), 0);
        assert_eq!(query(0x4000_0000, 0, 7)[1], XEN_CPUID_SIGNATURE_EBX);
        assert_eq!(query(0xd, 0, 7), [7, 832, 832, 0]);
        assert_eq!(query(0xd, 0, 3), [7, 576, 832, 0]);
        assert_eq!(query(0x1234_5678, 0, 7), [0; 4]);
    }
}

//! CPUID: what of the host's CPU a PV guest sees by its domain's policy, and the hypervisor's own leaves.
//!
//! Source of leaves: Intel SDM vol. 2, AMD APM vol. 3, "CPUID"; xen/include/public/arch-x86/cpuid.h; the ABI map,
//! section 11.

#![allow(clippy::cast_possible_truncation, reason = "masks and registers")]

mod features;
mod policy;

use std::sync::Arc;

use ring3_abi::cpuid::{
    XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, XEN_CPUID_FIRST_LEAF, XEN_CPUID_MAX_NUM_LEAVES, XEN_CPUID_SIGNATURE_EBX,
    XEN_CPUID_SIGNATURE_ECX, XEN_CPUID_SIGNATURE_EDX,
};

pub(crate) use features::{ARCH_CAPS_BIT, DE, FSGSBASE, RDPID, RDTSCP, TSC, XSAVE};
pub use features::{LeafKey, NO_SUBLEAF};
pub use policy::{
    MSR_ARCH_CAPABILITIES, MSR_PLATFORM_INFO, NR_BASIC, NR_CACHE, NR_EXTENDED, NR_FEAT, NR_TOPO, NR_XSTATE, Policy,
    Refusal, XCR0_AVX,
};

use crate::time::{Clock, GuestTsc, host_cpuid};
use features as f;

/// State components that guests may use: x87, SSE, AVX.
pub const XCR0: u64 = 7;
/// Those of a new vCPU: x87, SSE.
pub const XCR0_INITIAL: u64 = 3;

/// Whether a CPU that has the components of `max` takes the value for XCR0: x87 always, AVX with SSE.
pub fn is_xcr0(value: u64, max: u64) -> bool {
    value & 1 != 0 && value & !max == 0 && (value & 4 == 0 || value & 2 != 0)
}

/// MSR_ARCH_CAPABILITIES: RDCL_NO, IBRS_ALL, SKIP_L1DFL, SSB_NO, MDS_NO, IF_PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO,
/// FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO.
const ARCH_CAPS: u64 = {
    const LIST: [u32; 15] = [0, 1, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62];
    let (mut mask, mut i) = (0u64, 0);
    while i < LIST.len() {
        mask |= 1 << LIST[i];
        i += 1;
    }
    mask
};
/// MSR_PLATFORM_INFO: CPUID faulting is there.
const CPUID_FAULTING: u64 = 1 << 31;
/// Most leaves of the host that are looked at.
const MAX_BASIC: u32 = NR_BASIC - 1;
const MAX_EXTENDED_INTEL: u32 = 0x8000_0008;
const MAX_EXTENDED_AMD: u32 = 0x8000_0021;

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Viewer {
    pub vcpu: u32,
    pub is_osxsave: bool,
    pub xcr0: u64,
}

/// The CPUs of this machine, and what they can be for a guest.
#[derive(Debug)]
pub struct Cpus {
    /// The host's leaves, read once: where the host is itself a guest, each `cpuid` costs it an exit.
    pub host: Arc<Policy>,
    /// The greatest policy, which domains have unless the toolstack gives them another.
    pub max: Arc<Policy>,
    is_amd: bool,
    /// What IA32_UCODE_REV or PATCH_LEVEL hold.
    microcode: u64,
}

impl Default for Cpus {
    fn default() -> Self {
        Self::of_host()
    }
}

/// How many subleaves of a leaf are looked at; `None` for a leaf that has none.
const fn nr_subleaves(leaf: u32) -> Option<u32> {
    match leaf {
        4 => Some(NR_CACHE),
        7 => Some(NR_FEAT),
        0xb => Some(NR_TOPO),
        0xd => Some(3),
        _ => None,
    }
}

fn read_host() -> Policy {
    let mut policy = Policy::default();
    let max_basic = host_cpuid(0, 0)[0].min(MAX_BASIC);
    let max_extended = host_cpuid(0x8000_0000, 0)[0].min(0x8000_0000 + NR_EXTENDED - 1);
    for leaf in (0..=max_basic).chain(0x8000_0000..=max_extended) {
        match nr_subleaves(leaf) {
            Some(nr) => policy.leaves.extend((0..nr).map(|sub| ((leaf, sub), host_cpuid(leaf, sub)))),
            None => _ = policy.leaves.insert((leaf, NO_SUBLEAF), host_cpuid(leaf, 0)),
        }
    }
    policy
}

impl Cpus {
    /// The CPUs of this host.
    pub fn of_host() -> Self {
        let host = read_host();
        // "Auth" of AuthenticAMD, "Hygo" of HygonGenuine.
        let is_amd = matches!(host.plain(0)[f::EBX], 0x6874_7541 | 0x6f67_7948);
        let max = greatest(&host, is_amd);
        let microcode = host_microcode() << if is_amd { 0 } else { 32 };
        Self { host: Arc::new(host), max: Arc::new(max), is_amd, microcode }
    }

    /// The MSR that tells which microcode the host's CPU runs.
    pub fn microcode(&self) -> u64 {
        self.microcode
    }

    /// Whether the CPU is AMD's or a relative.
    pub fn is_amd(&self) -> bool {
        self.is_amd
    }
}

/// What guests on this host may see at most.
fn greatest(host: &Policy, is_amd: bool) -> Policy {
    let mut policy = Policy::default();
    let max_basic = host.plain(0)[f::EAX].min(MAX_BASIC);
    let host_extended = host.plain(0x8000_0000)[f::EAX];
    let max_extended = if is_amd { MAX_EXTENDED_AMD } else { host_extended.min(MAX_EXTENDED_INTEL) };
    for leaf in (0..=max_basic).chain(0x8000_0000..=max_extended) {
        for subleaf in 0..nr_subleaves(leaf).unwrap_or(1) {
            let key = (leaf, if nr_subleaves(leaf).is_some() { subleaf } else { NO_SUBLEAF });
            let is_shown = !matches!(key, (7 | 0xd, 1..) | (0xd, _));
            let values = if is_shown { shown(key, host.leaf(key), is_amd) } else { [0; 4] };
            policy.leaves.insert(key, values);
        }
    }
    policy.leaves.remove(&(7, 1));
    for (leaf, limit) in [(0, max_basic), (0x8000_0000, max_extended)] {
        let [_, b, c, d] = host.plain(leaf);
        policy.leaves.insert((leaf, NO_SUBLEAF), [limit, b, c, d]);
    }
    policy.leaves.insert(policy::HYPERVISOR_LIMIT, [0; 4]);
    policy.leaves.insert(policy::HYPERVISOR_LIMIT_2, [0; 4]);
    if let Some(leaf) = policy.leaves.get_mut(&f::LEAF_D1) {
        leaf[f::EAX] = host.leaf(f::LEAF_D1)[f::EAX] & f::FEATURES_DA1;
    }
    policy.msrs.insert(MSR_PLATFORM_INFO, CPUID_FAULTING);
    policy.msrs.insert(MSR_ARCH_CAPABILITIES, if is_amd { 0 } else { ARCH_CAPS });
    let unsettled = policy.clone();
    policy.settle(&unsettled);
    policy
}

/// What a guest may see of a leaf of the host's.
fn shown(key: LeafKey, [a, b, c, d]: [u32; 4], is_amd: bool) -> [u32; 4] {
    match key.0 {
        // One logical CPU a package.
        1 => [a, (b & 0x0000_ff00) | (1 << 16), (c & f::FEATURES_1C) | f::HYPERVISOR, d & f::FEATURES_1D],
        // Cache descriptors are the host's; sharing and core counts are not the guest's business.
        2 if !is_amd => [a, b, c, d],
        4 if !is_amd => [a & 0x3fff, b, c, d],
        7 => {
            let immune = if is_amd { 0 } else { f::ARCH_CAPABILITIES };
            [0, b & f::FEATURES_7B, c & f::FEATURES_7C, (d & f::FEATURES_7D) | immune]
        }
        0x8000_0001 => {
            let features = f::FEATURES_E1D | if is_amd { f::FEATURES_E1D_AMD | f::COMMON_1D } else { 0 };
            [a, 0, c & f::FEATURES_E1C, d & features]
        }
        0x8000_0002..=0x8000_0006 => [a, b, c, d],
        0x8000_0007 => [0, 0, 0, d & f::FEATURES_E7D],
        0x8000_0008 => [a & 0xffff, if is_amd { (b & f::FEATURES_E8B) | f::IMMUNE_E8B } else { 0 }, 0, 0],
        0x8000_0021 if is_amd => [f::IMMUNE_E21A, 0, f::IMMUNE_E21C, 0],
        _ => [0; 4],
    }
}

impl Policy {
    /// EAX, EBX, ECX, EDX of a leaf as a vCPU sees them.
    pub fn query(&self, leaf: u32, subleaf: u32, viewer: &Viewer, clock: &Clock, tsc: &GuestTsc) -> [u32; 4] {
        if (0x4000_0000..=0x4000_00ff).contains(&leaf) {
            return self.xen_leaf(leaf - XEN_CPUID_FIRST_LEAF, subleaf, clock, tsc);
        }
        let key = (leaf, if nr_subleaves(leaf).is_some() { subleaf } else { NO_SUBLEAF });
        let mut values = self.leaf(key);
        let [_, b, c, _] = &mut values;
        match key {
            f::LEAF_1 => {
                *b |= ((viewer.vcpu * 2) & 0xff) << 24;
                *c |= if viewer.is_osxsave && self.has(XSAVE) { f::OSXSAVE } else { 0 };
            }
            f::LEAF_D0 | f::LEAF_D1 if self.xcr0_max() != 0 => *b = Self::xsave_bytes(viewer.xcr0),
            _ => {}
        }
        values
    }

    fn xen_leaf(&self, index: u32, subleaf: u32, clock: &Clock, tsc: &GuestTsc) -> [u32; 4] {
        // A toolstack may show fewer of them.
        let limit = match self.leaf(policy::HYPERVISOR_LIMIT)[f::EAX] & 0xff {
            0 => XEN_CPUID_MAX_NUM_LEAVES,
            limit => limit.clamp(2, XEN_CPUID_MAX_NUM_LEAVES),
        };
        match index {
            _ if index > limit => [0; 4],
            0 => [
                XEN_CPUID_FIRST_LEAF + limit,
                XEN_CPUID_SIGNATURE_EBX,
                XEN_CPUID_SIGNATURE_ECX,
                XEN_CPUID_SIGNATURE_EDX,
            ],
            1 => [(crate::hypercall::XEN_MAJOR << 16) | crate::hypercall::XEN_MINOR, 0, 0, 0],
            // One hypercall page; the MSR is for HVM.
            2 => [1, 0x4000_0000, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD, 0],
            3 => {
                let (mode, khz, incarnation) = tsc.summary();
                match subleaf {
                    0 => {
                        let flags = u32::from(tsc.is_emulated())
                            | (u32::from(clock.is_stable) << 1)
                            | (u32::from(self.has(RDTSCP)) << 2);
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

    const fn bits(list: &[u32]) -> u32 {
        let (mut mask, mut i) = (0, 0);
        while i < list.len() {
            mask |= 1 << list[i];
            i += 1;
        }
        mask
    }

    #[test]
    fn test_policy_hides_what_the_engine_cannot_run() {
        let policy = Cpus::of_host().max;
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
        assert_ne!(c & f::HYPERVISOR, 0);
        assert_eq!(d & bits(&[1, 3, 12, 13, 17]), 0);
        assert_eq!(query(0x4000_0000, 0, 7)[1], XEN_CPUID_SIGNATURE_EBX);
        assert_eq!(query(0xd, 0, 7), [7, 832, 832, 0]);
        assert_eq!(query(0xd, 0, 3), [7, 576, 832, 0]);
        assert_eq!(query(0x1234_5678, 0, 7), [0; 4]);
    }

    #[test]
    fn test_a_toolstack_may_show_fewer_of_the_hypervisors_leaves() {
        let clock = Clock::calibrate();
        let tsc = GuestTsc::new(&crate::time::TscInfo::default(), &clock).unwrap();
        let max = Cpus::of_host().max;
        let viewer = Viewer { vcpu: 0, is_osxsave: false, xcr0: 3 };
        for (limit, shown) in [(0, XEN_CPUID_MAX_NUM_LEAVES), (1, 2), (3, 3), (200, XEN_CPUID_MAX_NUM_LEAVES)] {
            let mut policy = max.as_ref().clone();
            policy.take(&[((0x4000_0000, NO_SUBLEAF), [limit, 0, 0, 0])], &[]).unwrap();
            policy.settle(&max);
            assert_eq!(policy.query(0x4000_0000, 0, &viewer, &clock, &tsc)[0], 0x4000_0000 + shown);
            let has_last = policy.query(0x4000_0005, 0, &viewer, &clock, &tsc)[1] != 0;
            assert_eq!(has_last, shown == 5);
        }
    }
}

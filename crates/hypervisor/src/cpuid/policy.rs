//! A CPU policy: the leaves and MSRs that a domain's vCPUs have in common.

use std::collections::BTreeMap;

use ring3_engine::Features;

use super::features::{
    AVX, Bit, DEPENDENTS, EAX, EBX, ECX, EDX, FEATURE_WORDS, INSTRUCTIONS, LEAF_1, LEAF_D0, LEAF_D1, LEAF_D2, LEAF_E1,
    LeafKey, NO_SUBLEAF, TOPOLOGY, XSAVE,
};

/// State components: x87, SSE, AVX.
pub const XCR0_SSE: u64 = 3;
pub const XCR0_AVX: u64 = 4;

/// Standard format of XSAVE: 512 legacy, 64 header; AVX behind.
const XSAVE_BYTES: u32 = 576;
const AVX_BYTES: u32 = 256;

/// Numbers of leaves that a policy may have. Source: Xen 4.17 keeps as many of each range.
pub const NR_BASIC: u32 = 0xe;
pub const NR_CACHE: u32 = 6;
pub const NR_FEAT: u32 = 2;
pub const NR_TOPO: u32 = 2;
pub const NR_XSTATE: u32 = 63;
pub const NR_EXTENDED: u32 = 0x22;
pub const HYPERVISOR_LIMIT: LeafKey = (0x4000_0000, NO_SUBLEAF);
pub const HYPERVISOR_LIMIT_2: LeafKey = (0x4000_0100, NO_SUBLEAF);

pub const MSR_PLATFORM_INFO: u32 = 0xce;
pub const MSR_ARCH_CAPABILITIES: u32 = 0x10a;

/// Why a policy was not taken: Xen's (positive) error number, and the leaf and subleaf, or the MSR, that is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub errno: i64,
    pub leaf: Option<LeafKey>,
    pub msr: Option<u32>,
}

/// See the module's text. What depends on the vCPU that asks is zero in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
    pub(super) leaves: BTreeMap<LeafKey, [u32; 4]>,
    pub(super) msrs: BTreeMap<u32, u64>,
}

impl Policy {
    /// EAX, EBX, ECX, EDX; zeros for what is not there.
    pub fn leaf(&self, key: LeafKey) -> [u32; 4] {
        self.leaves.get(&key).copied().unwrap_or_default()
    }

    /// Of a leaf that has no subleaves.
    pub(super) fn plain(&self, leaf: u32) -> [u32; 4] {
        self.leaf((leaf, NO_SUBLEAF))
    }

    fn leaf_mut(&mut self, key: LeafKey) -> &mut [u32; 4] {
        self.leaves.entry(key).or_default()
    }

    /// A value that all vCPUs read of an MSR.
    pub fn msr(&self, msr: u32) -> u64 {
        self.msrs.get(&msr).copied().unwrap_or(0)
    }

    /// Every leaf, in the order of leaves and subleaves.
    pub fn leaves(&self) -> impl Iterator<Item = (LeafKey, [u32; 4])> {
        self.leaves.iter().map(|(&key, &values)| (key, values))
    }

    /// Every MSR, in ascending order.
    pub fn msrs(&self) -> impl Iterator<Item = (u32, u64)> {
        self.msrs.iter().map(|(&msr, &value)| (msr, value))
    }

    pub fn max_basic(&self) -> u32 {
        self.plain(0)[EAX]
    }

    pub fn max_extended(&self) -> u32 {
        self.plain(0x8000_0000)[EAX]
    }

    /// Whether a feature is shown.
    pub fn has(&self, bit: Bit) -> bool {
        self.leaf(bit.0).get(bit.1).is_some_and(|word| word & 1 << bit.2 != 0)
    }

    fn clear(&mut self, bit: Bit) {
        if let Some(word) = self.leaves.get_mut(&bit.0).and_then(|leaf| leaf.get_mut(bit.1)) {
            *word &= !(1 << bit.2);
        }
    }

    /// The instructions that it shows.
    pub fn instructions(&self) -> Features {
        INSTRUCTIONS.iter().filter(|(bit, _)| self.has(*bit)).fold(Features::NONE, |all, (_, one)| all.with(*one))
    }

    /// What XCR0 may have; 0 without XSAVE.
    pub fn xcr0_max(&self) -> u64 {
        match (self.has(XSAVE), self.has(AVX)) {
            (false, _) => 0,
            (true, false) => XCR0_SSE,
            (true, true) => XCR0_SSE | XCR0_AVX,
        }
    }

    /// Bytes of an XSAVE area in standard format for these components.
    pub fn xsave_bytes(xcr0: u64) -> u32 {
        XSAVE_BYTES + if xcr0 & XCR0_AVX != 0 { AVX_BYTES } else { 0 }
    }

    /// Takes leaves and MSRs in place of those that are there. Fields that depend on others are not looked at.
    ///
    /// # Errors
    /// ERANGE for what no policy has, EINVAL for an MSR with flags.
    pub fn take(&mut self, leaves: &[(LeafKey, [u32; 4])], msrs: &[(u32, u32, u64)]) -> Result<(), Refusal> {
        for &(key, values) in leaves {
            if !is_known(key) {
                return Err(Refusal { errno: ring3_abi::errno::ERANGE, leaf: Some(key), msr: None });
            }
            self.leaves.insert(key, values);
        }
        for &(msr, flags, value) in msrs {
            let errno = match msr {
                _ if flags != 0 => ring3_abi::errno::EINVAL,
                MSR_PLATFORM_INFO if u32::try_from(value).is_err() => ring3_abi::errno::EOVERFLOW,
                MSR_PLATFORM_INFO | MSR_ARCH_CAPABILITIES => {
                    self.msrs.insert(msr, value);
                    continue;
                }
                _ => ring3_abi::errno::ERANGE,
            };
            return Err(Refusal { errno, leaf: None, msr: Some(msr) });
        }
        Ok(())
    }

    /// Whether a machine whose greatest policy is `max` can keep what cannot be cut down: numbers of leaves, MSRs.
    ///
    /// # Errors
    /// EINVAL.
    pub fn check(&self, max: &Self) -> Result<(), Refusal> {
        let refusal = |leaf, msr| Err(Refusal { errno: ring3_abi::errno::EINVAL, leaf, msr });
        if self.max_basic() > max.max_basic() {
            return refusal(Some((0, NO_SUBLEAF)), None);
        }
        if self.leaf((7, 0))[EAX] > max.leaf((7, 0))[EAX] {
            return refusal(Some((7, 0)), None);
        }
        if self.max_extended() > max.max_extended() {
            return refusal(Some((0x8000_0000, NO_SUBLEAF)), None);
        }
        match self.msrs().find(|&(msr, value)| value & !max.msr(msr) != 0) {
            Some((msr, _)) => refusal(None, Some(msr)),
            None => Ok(()),
        }
    }

    /// Makes a policy that a toolstack has asked for one that holds here: features are cut down to those of `max` and to
    /// those whose needs are met; what is no choice is as in `max`.
    pub fn settle(&mut self, max: &Self) {
        let (max_basic, max_extended) = (self.max_basic(), self.max_extended());
        self.leaves.retain(|&(leaf, _), _| match leaf {
            0x8000_0000.. => leaf <= max_extended.max(0x8000_0000),
            0x4000_0000.. => true,
            _ => leaf <= max_basic,
        });
        for &(key, register) in FEATURE_WORDS {
            let topology = TOPOLOGY.iter().filter(|bit| (bit.0, bit.1) == (key, register));
            let allowed = topology.fold(max.leaf(key)[register], |mask, bit| mask | 1 << bit.2);
            if let Some(leaf) = self.leaves.get_mut(&key) {
                leaf[register] &= allowed;
            }
        }
        if max_basic < 0xd {
            self.clear(XSAVE);
        }
        for (bit, dependents) in DEPENDENTS {
            if !self.has(*bit) {
                dependents.iter().for_each(|&dependent| self.clear(dependent));
            }
        }
        self.settle_fields(max);
        self.settle_xstate(max);
    }

    /// What is neither a feature nor a toolstack's choice.
    fn settle_fields(&mut self, max: &Self) {
        // Vendor, family and model, cache descriptors, brand and address widths are; so are the sizes in leaf 1 EBX but for
        // the APIC's number, which is the vCPU's.
        const CHOSEN: [u32; 9] =
            [0, 2, 4, 0x8000_0000, 0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006];
        let with_features: Vec<LeafKey> = FEATURE_WORDS.iter().map(|&(key, _)| key).collect();
        for (&key, leaf) in &mut self.leaves {
            let is_limit = matches!(key, HYPERVISOR_LIMIT | HYPERVISOR_LIMIT_2);
            if !is_limit && !with_features.contains(&key) && !CHOSEN.contains(&key.0) {
                *leaf = max.leaf(key);
            }
        }
        for (key, registers) in [
            ((7, 0), [EAX].as_slice()),
            ((0x8000_0007, NO_SUBLEAF), &[EAX, EBX, ECX]),
            ((0x8000_0008, NO_SUBLEAF), &[ECX, EDX]),
            ((0x8000_0021, NO_SUBLEAF), &[EBX, EDX]),
        ] {
            if let Some(leaf) = self.leaves.get_mut(&key) {
                registers.iter().for_each(|&register| leaf[register] = max.leaf(key)[register].min(leaf[register]));
            }
        }
        // The processor's type and reserved bits.
        self.leaf_mut(LEAF_1)[EAX] &= 0x0fff_0fff;
        self.leaf_mut(LEAF_1)[EBX] &= 0x00ff_ffff;
        // AMD shows some features twice.
        let again = self.leaf(LEAF_1)[EDX] & super::features::COMMON_1D;
        let is_shown = max.leaf(LEAF_E1)[EDX] & super::features::COMMON_1D != 0;
        if is_shown && let Some(leaf) = self.leaves.get_mut(&LEAF_E1) {
            leaf[EDX] = leaf[EDX] & !super::features::COMMON_1D | again;
        }
    }

    /// The leaves of XSAVE, from the features.
    fn settle_xstate(&mut self, max: &Self) {
        self.leaves.retain(|&(leaf, subleaf), _| leaf != 0xd || subleaf < 2);
        if self.max_basic() < 0xd {
            return;
        }
        let xcr0 = self.xcr0_max();
        let size = if xcr0 == 0 { 0 } else { Self::xsave_bytes(xcr0) };
        let features = if xcr0 == 0 { 0 } else { self.leaf(LEAF_D1)[EAX] & max.leaf(LEAF_D1)[EAX] };
        *self.leaf_mut(LEAF_D0) = [(xcr0 & 0xffff_ffff) as u32, 0, size, 0];
        *self.leaf_mut(LEAF_D1) = [features, 0, 0, 0];
        if xcr0 & XCR0_AVX != 0 {
            *self.leaf_mut(LEAF_D2) = [AVX_BYTES, XSAVE_BYTES, 0, 0];
        }
    }
}

/// Whether a policy can have the leaf.
fn is_known((leaf, subleaf): LeafKey) -> bool {
    match leaf {
        4 => subleaf < NR_CACHE,
        7 => subleaf < NR_FEAT,
        0xb => subleaf < NR_TOPO,
        0xd => subleaf < NR_XSTATE,
        0..NR_BASIC => subleaf == NO_SUBLEAF,
        0x4000_0000 | 0x4000_0100 => subleaf == NO_SUBLEAF,
        0x8000_0000.. => leaf - 0x8000_0000 < NR_EXTENDED && subleaf == NO_SUBLEAF,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Cpus;
    use super::super::features::{Bit, EBX, LEAF_7};
    use super::*;

    fn max() -> Policy {
        Cpus::of_host().max.as_ref().clone()
    }

    fn without(bits: &[(LeafKey, usize, u32)]) -> Policy {
        let max = max();
        let mut policy = max.clone();
        for &(key, register, number) in bits {
            policy.leaf_mut(key)[register] &= !(1 << number);
        }
        policy.settle(&max);
        policy
    }

    #[test]
    fn test_the_greatest_policy_is_settled() {
        let max = max();
        let mut same = max.clone();
        same.settle(&max);
        assert_eq!(same, max);
        assert!(max.check(&max).is_ok());
    }

    #[test]
    fn test_what_a_feature_needs_takes_it_along() {
        let policy = without(&[(LEAF_1, ECX, 28)]);
        assert!(!policy.has(Bit(LEAF_7, EBX, 5)), "AVX2 without AVX");
        assert!(!policy.has(Bit(LEAF_1, ECX, 12)), "FMA without AVX");
        assert!(!policy.instructions().intersects(Features::AVX2.with(Features::F16C)));
        assert_eq!(policy.xcr0_max(), XCR0_SSE);
        assert_eq!(policy.leaf(LEAF_D0), [3, 0, 576, 0]);
        assert_eq!(policy.leaf(LEAF_D2), [0; 4]);
        let policy = without(&[(LEAF_1, ECX, 26)]);
        assert!(!policy.has(AVX), "AVX without XSAVE");
        assert_eq!((policy.xcr0_max(), policy.leaf(LEAF_D0), policy.leaf(LEAF_D1)), (0, [0; 4], [0; 4]));
    }

    #[test]
    fn test_features_that_the_greatest_policy_lacks_are_not_to_be_had() {
        let max = max();
        let mut policy = max.clone();
        *policy.leaf_mut(LEAF_7) = [0, u32::MAX, u32::MAX, u32::MAX];
        policy.leaf_mut(LEAF_1)[ECX] = u32::MAX;
        policy.leaf_mut(LEAF_1)[EDX] = u32::MAX;
        policy.settle(&max);
        assert_eq!(policy.leaf(LEAF_7), max.leaf(LEAF_7));
        assert_eq!(policy.leaf(LEAF_1)[ECX] & !(1 << 21), max.leaf(LEAF_1)[ECX], "X2APIC is a toolstack's");
        assert_eq!(policy.leaf(LEAF_1)[EDX] & !(1 << 28), max.leaf(LEAF_1)[EDX], "HTT too");
    }

    #[test]
    fn test_fewer_leaves_hide_what_is_in_the_others() {
        let max = max();
        let mut policy = max.clone();
        policy.leaf_mut((0, NO_SUBLEAF))[EAX] = 6;
        policy.settle(&max);
        assert_eq!(policy.leaf(LEAF_7), [0; 4]);
        assert!(!policy.has(XSAVE), "its leaf is gone");
        assert!(policy.leaves().all(|((leaf, _), _)| leaf <= 6 || leaf >= 0x4000_0000));
    }

    #[test]
    fn test_unknown_leaves_and_msrs_are_refused_by_name() {
        use ring3_abi::errno::{EINVAL, EOVERFLOW, ERANGE};
        let take = |leaves: &[(LeafKey, [u32; 4])], msrs: &[(u32, u32, u64)]| max().take(leaves, msrs);
        for key in [(1, 0), (7, 2), (0xe, NO_SUBLEAF), (0x8000_0022, NO_SUBLEAF), (0x4000_0001, NO_SUBLEAF)] {
            assert_eq!(take(&[(key, [0; 4])], &[]), Err(Refusal { errno: ERANGE, leaf: Some(key), msr: None }));
        }
        for (msr, errno) in [((0x10, 0, 0), ERANGE), ((0xce, 1, 0), EINVAL), ((0xce, 0, 1 << 32), EOVERFLOW)] {
            assert_eq!(take(&[], &[msr]), Err(Refusal { errno, leaf: None, msr: Some(msr.0) }));
        }
        assert_eq!(take(&[((7, 1), [0; 4]), ((0xd, 62), [0; 4])], &[(0xce, 0, 0)]), Ok(()));
    }

    #[test]
    fn test_more_leaves_than_there_are_cannot_be_had() {
        let max = max();
        let mut policy = max.clone();
        policy.leaf_mut((0, NO_SUBLEAF))[EAX] = 0x20;
        assert_eq!(policy.check(&max).unwrap_err().leaf, Some((0, NO_SUBLEAF)));
        let mut policy = max.clone();
        policy.msrs.insert(MSR_PLATFORM_INFO, 1);
        assert_eq!(policy.check(&max).unwrap_err().msr, Some(MSR_PLATFORM_INFO));
    }
}

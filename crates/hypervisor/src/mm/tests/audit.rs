//! Counts every reference anew from the tables themselves, and compares with the frame table.

use std::collections::HashMap;

use ring3_engine::pte;
use ring3_machine::Mfn;

use super::super::PageType;
use super::super::entry::{XEN_SLOTS, is_present};
use super::World;

/// Panics unless every count of the frame table is explained by an allocation, a pin, an entry or `held`: further references of
/// both kinds, by frame.
pub fn audit(world: &World, held: &HashMap<Mfn, u64>) {
    let first = world.table.m2p().1 + 1;
    let frames = || (first..world.table.machine().nr_frames()).map(Mfn);
    let mut expected: HashMap<Mfn, (u64, u64)> = HashMap::new();
    for mfn in frames() {
        let info = world.table.info(mfn).unwrap();
        if info.owner.is_some() {
            expected.entry(mfn).or_default().1 += 1;
        }
        if info.is_pinned {
            let counts = expected.entry(mfn).or_default();
            *counts = (counts.0 + 1, counts.1 + 1);
        }
        let Some(level) = info.page_type.level().filter(|_| info.type_count != 0) else { continue };
        assert!(info.is_validated);
        for index in (0..512).filter(|index| level != 4 || !XEN_SLOTS.contains(index)) {
            let value = world.peek(mfn, index);
            let target = pte::mfn(value);
            if !is_present(value) || (level == 4 && target == mfn) {
                continue;
            }
            let counts = expected.entry(target).or_default();
            counts.1 += 1;
            let target_type = world.table.info(target).unwrap().page_type;
            if level > 1 {
                counts.0 += 1;
                assert_eq!(Some(target_type), PageType::table(level - 1), "{mfn:?}[{index}]");
            } else if value & pte::RW != 0 {
                counts.0 += 1;
                assert_eq!(target_type, PageType::Writable, "{mfn:?}[{index}]");
            }
        }
    }
    for (&mfn, &nr) in held {
        let counts = expected.entry(mfn).or_default();
        *counts = (counts.0 + nr, counts.1 + nr);
    }
    for mfn in frames() {
        assert_eq!(world.counts(mfn), expected.get(&mfn).copied().unwrap_or_default(), "{mfn:?}");
    }
}

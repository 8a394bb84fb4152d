//! Which translations of the upper half may be stale: what a guest changed there since a vCPU last looked.
//!
//! A guest that changes its page tables flushes what it must, mostly by far too much: by a new root, or all. What a
//! vCPU cached of the upper half, the kernel's, is as good as new but for what is noted here.

#![allow(clippy::cast_possible_truncation, reason = "remainders and masked values")]

use std::sync::atomic::{AtomicU64, Ordering};

use ring3_engine::Flush;

/// Changes that are remembered one by one.
const NR_RECENT: usize = 64;
/// More of them than this, and a flush of everything is as good.
const NR_WORTHWHILE: usize = 16;
/// In a remembered change: not just one level-1 entry.
const ANYTHING: u64 = 1 << 15;
/// In a remembered change: what the entry mapped was executable.
const CODE: u64 = 1 << 14;
const INDEX: u64 = 511;
const NUMBER_SHIFT: u32 = 16;

/// Numbered changes of one domain's tables, the latest remembered.
#[derive(Debug)]
pub(super) struct UpperChanges {
    count: AtomicU64,
    /// Change n at n modulo the length: n << 16 | what.
    recent: [AtomicU64; NR_RECENT],
}

impl Default for UpperChanges {
    fn default() -> Self {
        Self { count: AtomicU64::new(0), recent: [const { AtomicU64::new(0) }; NR_RECENT] }
    }
}

/// What a vCPU must drop of the upper half: a few level-1 slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaleSlots {
    flushes: [Flush; NR_WORTHWHILE],
    len: usize,
}

impl StaleSlots {
    /// The flushes.
    pub fn iter(&self) -> impl Iterator<Item = Flush> {
        self.flushes.into_iter().take(self.len)
    }
}

impl UpperChanges {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Notes a change that was made to a level-1 entry, which was `old`.
    pub fn note_level1(&self, index: usize, old: u64) {
        let code = if old & ring3_engine::pte::NX == 0 { CODE } else { 0 };
        self.note(index as u64 & INDEX | code);
    }

    /// Notes a change of a table of a higher level.
    pub fn note_table(&self) {
        self.note(ANYTHING);
    }

    fn place_of(&self, number: u64) -> &AtomicU64 {
        &self.recent[(number % NR_RECENT as u64) as usize]
    }

    fn note(&self, what: u64) {
        let number = self.count.fetch_add(1, Ordering::SeqCst) + 1;
        self.place_of(number).store(number << NUMBER_SHIFT | what, Ordering::SeqCst);
    }

    /// What changed after the first `seen` (nothing: more than is worth telling); and how many changes there are now.
    pub fn since(&self, seen: u64) -> (Option<StaleSlots>, u64) {
        let now = self.count();
        let mut slots = StaleSlots { flushes: [Flush::All; NR_WORTHWHILE], len: 0 };
        for number in seen + 1..=now {
            let noted = self.place_of(number).load(Ordering::SeqCst);
            // Another number: overwritten, or its writer has not come that far.
            let is_known = noted >> NUMBER_SHIFT == number && noted & ANYTHING == 0;
            let Some(place) = slots.flushes.get_mut(slots.len).filter(|_| is_known) else {
                return (None, now);
            };
            *place = Flush::Slot { index: (noted & INDEX) as u16, code: noted & CODE != 0 };
            slots.len += 1;
        }
        (Some(slots), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flushes(stale: Option<StaleSlots>) -> Option<Vec<Flush>> {
        stale.map(|slots| slots.iter().collect())
    }

    #[test]
    fn test_level1_changes_are_told_one_by_one() {
        let changes = UpperChanges::default();
        assert_eq!(flushes(changes.since(0).0), Some(Vec::new()));
        changes.note_level1(7, ring3_engine::pte::NX);
        let (stale, now) = changes.since(0);
        assert_eq!(flushes(stale), Some(vec![Flush::Slot { index: 7, code: false }]));
        changes.note_level1(511, 0);
        assert_eq!(flushes(changes.since(now).0), Some(vec![Flush::Slot { index: 511, code: true }]));
        assert_eq!(changes.since(now).1, 2);
    }

    #[test]
    fn test_many_changes_and_those_of_tables_make_everything_stale() {
        let changes = UpperChanges::default();
        (0..NR_WORTHWHILE).for_each(|index| changes.note_level1(index, 0));
        assert_eq!(flushes(changes.since(0).0).map(|all| all.len()), Some(NR_WORTHWHILE));
        changes.note_level1(0, 0);
        assert_eq!(flushes(changes.since(0).0), None);
        let now = changes.count();
        changes.note_table();
        assert_eq!(flushes(changes.since(now).0), None);
        assert_eq!(flushes(changes.since(now + 1).0), Some(Vec::new()));
        (0..2 * NR_RECENT).for_each(|index| changes.note_level1(index, 0));
        assert_eq!(flushes(changes.since(now + 1).0), None, "the first of them are forgotten");
    }
}

//! A translated block, as the cache keeps it.

use ring3_machine::Mfn;

use super::frame::BlockState;
use super::lists::{Incoming, Part};
use super::{FRAME_SHIFT, Key, OFFSET_SHIFT, UNGROUPED};
#[cfg(any(debug_assertions, feature = "verify"))]
use crate::translate::Entries;
use crate::translate::{Demand, Given, Lines};

impl Key {
    /// Of a block at the same place on another frame.
    pub(super) fn on(self, mfn: Mfn) -> Self {
        let rest = UNGROUPED | ((1 << FRAME_SHIFT) - 1);
        Self(self.0 & rest | mfn.0 << FRAME_SHIFT & !UNGROUPED)
    }

    /// Of another block on the same page.
    pub(super) fn at(self, offset: u16, is_ungrouped: bool) -> Self {
        let ungrouped = if is_ungrouped { UNGROUPED } else { 0 };
        Self(self.0 & !(UNGROUPED | 0xfff << OFFSET_SHIFT) | ungrouped | u64::from(offset & 0xfff) << OFFSET_SHIFT)
    }

    pub(super) fn offset(self) -> u64 {
        self.0 >> OFFSET_SHIFT & 0xfff
    }

    /// What an archived block is found by: its page's linear address stands in place of the frame.
    pub(super) fn at_page(self, rip: u64) -> Self {
        self.on(Mfn(rip >> 12 & 0xf_ffff_ffff))
    }

    pub(super) fn number(self) -> u64 {
        self.0
    }

    pub(super) fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// A translated block.
#[derive(Debug)]
pub struct Block {
    /// The frame that it was made from; `NO_FRAME` if it is archived.
    pub mfn: Mfn,
    pub key: Key,
    /// Second frame, for an instruction that crosses pages.
    pub second: Option<Mfn>,
    /// Linear address of its first instruction when it was made.
    pub rip: u64,
    pub len: u32,
    pub demand: Demand,
    pub origin: u64,
    pub far_entry: u64,
    pub near_entry: u64,
    pub native_entry: u64,
    /// Lines of its (first) page that it depends on, and their hash.
    pub lines: Lines,
    pub sum: u64,
    /// The first bytes of its far entry.
    pub entry_word: u64,
    pub state: BlockState,
    /// Times in a row that its bytes were found changed.
    pub misses: u8,
    /// How often it was looked where a loop goes from here (see `trace`).
    pub follows: u8,
    /// The jumps that were pointed at its near entry.
    pub incoming: Incoming,
    /// Its parts of its region's lists.
    pub faults: Part,
    pub links: Part,
    /// The bytes of its lines, if it is one for an archive.
    pub recipe: Option<Part>,
    /// The next archived block for the same place.
    pub next: Option<u32>,
}

impl Block {
    #[cfg(any(debug_assertions, feature = "verify"))]
    pub fn entries(&self) -> Entries {
        Entries { far: self.far_entry, near: self.near_entry, native: self.native_entry }
    }

    /// The entry for a near jump that has this to give; none if the block needs more, and must be entered by its far one.
    pub fn entry_for(&self, given: Given) -> Option<u64> {
        match given {
            Given::Native => Some(self.native_entry),
            Given::State => Some(self.near_entry).filter(|_| self.demand.live == 0),
            Given::Nothing => Some(self.near_entry),
        }
    }
}

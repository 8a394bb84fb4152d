//! The blocks of a frame: dropped when it is written, and revived where their bytes turn out to be the same.
//!
//! While a frame is marked as code, only its live blocks can be reached: near jumps lead to live blocks or to Rust, and the
//! far entry of any other block is a jump to a lookup. A store to the frame makes all of them dormant, with the
//! jumps among them as they are: once vCPUs have left them, nobody gets there. The next lookup in the frame, which is
//! marked again by then, decides of each.

use ring3_machine::{Mfn, PAGE_SIZE_BYTES};

use super::region::{index_of, region_of};
use super::{Block, Cache};
use crate::translate::{LineHashes, Lines};

/// Dormant blocks that a frame may keep: more than are live in any but the oddest.
const MAX_DORMANT: usize = 1024;
/// How often a block's bytes may have been found changed before it is given up.
const MAX_MISSES: u8 = 3;

/// Whether a block may be entered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    Live,
    /// It came out of an archive, and was not wanted yet (`archived`).
    Archived,
    /// Its frame was written: perhaps elsewhere, or with what was there before.
    Dormant,
    Dead,
}

/// The blocks of one frame.
#[derive(Debug, Default)]
pub struct Frame {
    /// Their numbers, oldest first. Dead ones may be among them.
    pub blocks: Vec<u32>,
    /// Written since a block was last made or revived: none is live.
    is_stale: bool,
}

impl Cache {
    pub(super) fn block_mut(&mut self, number: u32) -> Option<&mut Block> {
        self.regions.get_mut(region_of(number))?.blocks.get_mut(index_of(number))
    }

    /// Forgets every block made from a frame, which was written or will be. The caller then makes vCPUs leave them, if
    /// there were any.
    pub fn drop_frame(&mut self, mfn: Mfn) -> bool {
        let Some(frame) = self.by_frame.get_mut(&mfn.0).filter(|frame| !frame.is_stale) else { return false };
        frame.is_stale = true;
        let numbers = std::mem::take(&mut frame.blocks);
        let nr_live = numbers.iter().filter(|&&number| self.retire(number)).count() as u64;
        if let Some(frame) = self.by_frame.get_mut(&mfn.0) {
            frame.blocks = numbers;
        }
        self.counters.dropped_frames += u64::from(nr_live != 0);
        self.counters.dropped_blocks += nr_live;
        nr_live != 0
    }

    /// Makes a live block dormant, or dead if it cannot be revived. Returns whether it was live.
    pub(super) fn retire(&mut self, number: u32) -> bool {
        let jump = self.stubs.jump;
        let Some(block) = self.block_mut(number).filter(|block| block.state == BlockState::Live) else { return false };
        block.state = if block.second.is_some() { BlockState::Dead } else { BlockState::Dormant };
        let (key, far_entry) = (block.key, block.far_entry);
        // Of a block that crosses pages there may be another by now, made for another second page.
        if self.by_key.get(&key) == Some(&number) {
            self.by_key.remove(&key);
        }
        self.memory.patch_jump(far_entry, jump);
        true
    }

    /// Whether blocks of a frame are to be looked at before one is made.
    pub(super) fn is_stale(&self, mfn: Mfn) -> bool {
        self.by_frame.get(&mfn.0).is_some_and(|frame| frame.is_stale)
    }

    /// Revives the blocks of a stale frame whose bytes are as they were. The frame is marked as code.
    pub(super) fn revive(&mut self, mfn: Mfn, page: &[u8]) {
        let Some(frame) = self.by_frame.get_mut(&mfn.0) else { return };
        frame.is_stale = false;
        let numbers = std::mem::take(&mut frame.blocks);
        let dormant =
            |cache: &Self, number| cache.block(number).filter(|b| b.state == BlockState::Dormant).map(|b| b.lines);
        let wanted: Lines =
            numbers.iter().filter_map(|&number| dormant(self, number)).fold(0, |sum, lines| sum | lines);
        let hashes = LineHashes::new(page.get(..PAGE_SIZE_BYTES).unwrap_or_default(), wanted);
        let mut kept = Vec::with_capacity(numbers.len());
        // The newest first, which stands for the older ones of the same place.
        for &number in numbers.iter().rev() {
            if self.wake(number, &hashes, kept.len() < MAX_DORMANT) {
                kept.push(number);
            }
        }
        kept.reverse();
        if let Some(frame) = self.by_frame.get_mut(&mfn.0) {
            frame.blocks = kept;
        }
    }

    /// Revives a dormant block if its bytes are as they were. Returns whether it is still of use; if it is not live, nothing
    /// leads to it any more.
    fn wake(&mut self, number: u32, hashes: &LineHashes, may_stay: bool) -> bool {
        let Some(block) = self.block(number).filter(|block| block.state == BlockState::Dormant) else { return false };
        if hashes.sum(block.lines) == block.sum && !self.by_key.contains_key(&block.key) {
            let (key, far_entry, entry_word) = (block.key, block.far_entry, block.entry_word);
            self.by_key.insert(key, number);
            self.memory.patch64(far_entry, entry_word);
            self.counters.revived += 1;
            if let Some(block) = self.block_mut(number) {
                block.state = BlockState::Live;
                block.misses = 0;
            }
            return true;
        }
        self.unlink(number);
        let Some(block) = self.block_mut(number) else { return false };
        block.misses += 1;
        if !may_stay || block.misses == MAX_MISSES {
            block.state = BlockState::Dead;
            return false;
        }
        true
    }

    /// Has the jumps that lead to a block's near entry lead to Rust again. Some of them may be of blocks that are no more, and
    /// their numbers those of other jumps by now, which then are resolved once more.
    pub(super) fn unlink(&mut self, number: u32) {
        let Some(region) = self.regions.get_mut(region_of(number)) else { return };
        let Some(block) = region.blocks.get_mut(index_of(number)) else { return };
        for link in region.jumps.take(&mut block.incoming) {
            if let Some(link) = self.regions.get(region_of(link)).and_then(|region| region.links.get(index_of(link))) {
                link.reset(&self.memory);
            }
        }
    }
}

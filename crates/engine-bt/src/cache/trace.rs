//! Blocks that follow a loop once around, in the place of the one at its head.

use super::frame::BlockState;
use super::{Cache, Key, Source};

/// How often it is looked where a loop goes: the vCPU may just then be on its last turn, or interrupted.
pub const MAX_FOLLOWS: u8 = 8;

impl Cache {
    /// Whether a vCPU that turned to the block for `key` shall look where it goes from there. It is asked to a few times only.
    pub fn may_follow(&mut self, key: Key) -> bool {
        let Some(&number) = self.by_key.get(&key) else { return false };
        let may = |block: &&mut super::Block| block.second.is_none() && block.follows < MAX_FOLLOWS;
        let Some(block) = self.block_mut(number).filter(may) else { return false };
        block.follows += 1;
        true
    }

    /// Makes the block that follows the source's path, if one can be had, and has who comes to its place enter it.
    pub fn add_trace(&mut self, source: &Source<'_>) {
        let key = source.key();
        if self.draining || self.is_stale(source.mfn) {
            return;
        }
        let Some(&old) = self.by_key.get(&key) else { return };
        let Some(block) = self.block(old) else { return };
        let reads_nothing = block.demand.live == 0;
        // Once around is enough, whatever comes of it.
        if let Some(block) = self.block_mut(old) {
            block.follows = MAX_FOLLOWS;
        }
        let Ok((new, _)) = self.translate(source) else { return };
        if reads_nothing && self.block(new).is_some_and(|block| block.demand.live != 0) {
            // Who jumps there does not have the flags in the CPU, and would have to go by way of Rust.
            self.by_key.insert(key, old);
            if let Some(block) = self.block_mut(new) {
                (block.state, block.recipe) = (BlockState::Dead, None);
            }
            return;
        }
        self.retire(old);
        self.unlink(old);
        self.counters.traces += 1;
    }
}

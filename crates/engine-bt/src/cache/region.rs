//! Regions of the code cache. They are filled one after the other, and emptied in the same order: what was made first goes
//! first, and what is in use comes back into the newest.

use super::lists::Jumps;
use super::{Block, CodeMemory};
use crate::translate::{self, FaultPoint, Given};

/// Bits of a number that count within its region; those above are the region's.
const INDEX_BITS: u32 = 20;
/// Kept free at a region's end: more than nearly any block takes, so that few are translated in vain.
const MARGIN_BYTES: usize = 16 << 10;
/// What a region has at most: no more blocks or links than numbers.
pub const MAX_REGION_BYTES: usize = 16 << INDEX_BITS;

/// A part of the cache's memory, with the blocks and patchable jumps in it. Their numbers are void once it is emptied.
#[derive(Debug)]
pub struct Region {
    index: u32,
    /// Offsets in the cache's memory.
    pub start: usize,
    pub end: usize,
    pub next: usize,
    /// In the order of their addresses.
    pub blocks: Vec<Block>,
    pub links: Vec<Link>,
    /// Where host signals may come from, in all blocks.
    pub faults: Vec<FaultPoint>,
    /// What blocks for an archive were made of.
    pub recipes: Vec<u8>,
    pub jumps: Jumps,
    /// Where its code begins in the archive that its first blocks came from.
    pub archived: usize,
    /// Where its code ends that is in its place already, though its blocks are archived: their links lead to Rust.
    pub filled: usize,
    /// The cache's generation that began with this region's emptying.
    pub emptied_in: u64,
}

/// A jump to another block, or to Rust as long as that is not known.
#[derive(Clone, Copy, Debug)]
pub struct Link {
    /// Host address of its patchable field.
    pub site: u64,
    /// Where it led at first.
    pub exit: u64,
    /// Offset in the page of the block that it wants.
    pub target: u16,
    /// It wants the one that checks each access by itself.
    pub is_ungrouped: bool,
    /// What it has for that block.
    pub given: Given,
}

impl Link {
    /// The jump `link` of the block at `origin`, whose code it is.
    pub fn new(link: &translate::Link, origin: u64, code: &[u8]) -> Self {
        let site = link.site;
        let field = usize::try_from(site - origin).ok().and_then(|at| code.get(at..)).and_then(<[u8]>::first_chunk);
        let relative = field.map_or(0, |bytes| i32::from_le_bytes(*bytes));
        let exit = (site + 4).wrapping_add_signed(i64::from(relative));
        Self { site, exit, target: link.target as u16, is_ungrouped: !link.grouped, given: link.given }
    }

    /// Has it lead to Rust.
    pub fn reset(&self, memory: &CodeMemory) {
        memory.patch32(self.site, self.exit.wrapping_sub(self.site + 4) as u32);
    }
}

impl Region {
    pub fn new(index: usize, start: usize, end: usize) -> Self {
        let index = index as u32;
        Self {
            index,
            start,
            end,
            next: start,
            blocks: Vec::new(),
            links: Vec::new(),
            faults: Vec::new(),
            recipes: Vec::new(),
            jumps: Jumps::default(),
            archived: 0,
            filled: start,
            emptied_in: 0,
        }
    }

    /// An empty one in the same place.
    pub fn anew(&self) -> Self {
        Self::new(self.index as usize, self.start, self.end)
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    pub fn is_full(&self) -> bool {
        self.next + MARGIN_BYTES > self.end
    }

    pub fn clear(&mut self) {
        self.blocks.clear();
        self.links.clear();
        self.faults.clear();
        self.recipes.clear();
        self.jumps.clear();
        self.next = self.start;
        self.filled = self.start;
    }

    /// Whether a block's code is in its place, of a cache whose memory is at `base`.
    pub fn is_filled(&self, block: &Block, base: u64) -> bool {
        block.origin + u64::from(block.len) <= base + self.filled as u64
    }

    /// Gives back the memory of its lists, which are empty.
    pub fn shrink(&mut self) {
        *self = Self { archived: self.archived, emptied_in: self.emptied_in, ..self.anew() };
    }

    /// The bytes that a block of this region was made of, if it is one for an archive.
    pub fn recipe(&self, block: &Block) -> Option<&[u8]> {
        block.recipe.map(|part| part.of(&self.recipes))
    }

    /// The number that the next block will have.
    pub fn next_block(&self) -> u32 {
        self.index << INDEX_BITS | self.blocks.len() as u32
    }

    /// The number that the next link will have.
    pub fn next_link(&self) -> u32 {
        self.index << INDEX_BITS | self.links.len() as u32
    }

    /// Its blocks with their numbers.
    pub fn numbered(&self) -> impl Iterator<Item = (u32, &Block)> {
        (self.index << INDEX_BITS..).zip(&self.blocks)
    }
}

/// The region that a number belongs to.
pub fn region_of(number: u32) -> usize {
    (number >> INDEX_BITS) as usize
}

/// A number's place in its region's list.
pub fn index_of(number: u32) -> usize {
    (number & ((1 << INDEX_BITS) - 1)) as usize
}

//! Blocks that came out of an archive and were not wanted yet.
//!
//! They are listed by the linear address that they were made for. When a block is wanted there, those listed are compared
//! with the page, byte by byte on the lines that they depend on; one that fits is woken: its code is copied to where it stood
//! in the other run, its links are set to what is live now, and what it leads to is woken with it. From then on it is a
//! block like others (`frame`).

use ring3_machine::Mfn;

use super::frame::BlockState;
use super::region::{Region, index_of, region_of};
use super::{Block, Cache, Key, KeyMap, Source, perf_map};
use crate::translate::{LINE_BYTES, chosen_lines};

/// The frame of blocks that are on none.
pub const NO_FRAME: Mfn = Mfn(u64::MAX >> 18);
/// How many of one place are tried.
const MOST_TRIED: usize = 8;

impl Cache {
    /// Gives up what was not woken: its blocks' numbers are about to be void.
    pub(super) fn forget_archive(&mut self) {
        self.archived = KeyMap::default();
        self.archive = Box::new([]);
    }

    /// Wakes an archived block for a place, if one fits. Returns its far entry.
    pub(super) fn wake_archived(&mut self, source: &Source<'_>) -> Option<u64> {
        if source.second.is_some() || self.archived.is_empty() {
            return None;
        }
        let mut todo = vec![self.wake_at(source.key(), source)?];
        let far_entry = todo.first().and_then(|&number| self.block(number)).map(|block| block.far_entry);
        // What a block leads to was run after it in its time; most likely it will be again.
        while let Some(number) = todo.pop() {
            for (link, key) in self.targets_of(number) {
                if !self.by_key.contains_key(&key) {
                    todo.extend(self.wake_at(key, source));
                }
                self.resolve(link, key);
            }
            self.check_woken(number, source);
        }
        far_entry
    }

    /// Number and target of each link of a block.
    fn targets_of(&self, number: u32) -> Vec<(u32, Key)> {
        let Some(region) = self.regions.get(region_of(number)) else { return Vec::new() };
        let Some(block) = region.blocks.get(index_of(number)) else { return Vec::new() };
        let first = number - index_of(number) as u32 + block.links.first;
        let links = block.links.of(&region.links).iter();
        (first..).zip(links).map(|(n, link)| (n, block.key.at(link.target, link.is_ungrouped))).collect()
    }

    /// Wakes a block for `key`, which has none. Its links lead to Rust.
    fn wake_at(&mut self, key: Key, source: &Source<'_>) -> Option<u32> {
        let mut candidate = self.archived.get(&key.at_page(source.rip)).copied();
        for _ in 0..MOST_TRIED {
            let number = candidate?;
            let region = self.regions.get(region_of(number))?;
            let block = region.blocks.get(index_of(number))?;
            candidate = block.next;
            if block.state == BlockState::Archived && fits(region, block, source.code) {
                self.rouse(number, source);
                return Some(number);
            }
        }
        None
    }

    /// Puts a block's code in its place, and enters it.
    fn rouse(&mut self, number: u32, source: &Source<'_>) {
        let base = self.memory.base();
        let Some(region) = self.regions.get(region_of(number)) else { return };
        let Some(block) = region.blocks.get(index_of(number)) else { return };
        if !region.is_filled(block, base) {
            self.memory.put((block.origin - base) as usize, self.code_in_archive(region, block));
            block.links.of(&region.links).iter().for_each(|link| link.reset(&self.memory));
        }
        let Some(block) = self.block_mut(number) else { return };
        block.mfn = source.mfn;
        block.key = block.key.on(source.mfn);
        block.state = BlockState::Live;
        let (key, origin, len, entry_word) = (block.key, block.origin, block.len as usize, block.entry_word);
        self.memory.patch64(origin, entry_word);
        perf_map::add(origin, len, source.rip & !0xfff | key.offset(), source.variant.mode);
        self.by_key.insert(key, number);
        self.by_frame.entry(source.mfn.0).or_default().blocks.push(number);
        self.counters.woken += 1;
    }

    /// Has a woken block verified, in builds that do so.
    #[cfg(any(debug_assertions, feature = "verify"))]
    fn check_woken(&self, number: u32, source: &Source<'_>) {
        if let Some(block) = self.block(number) {
            let code = self.memory.read((block.origin - self.memory.base()) as usize, block.len as usize);
            self.check(&code, block.origin, block.entries(), source);
        }
    }

    #[cfg(not(any(debug_assertions, feature = "verify")))]
    fn check_woken(&self, _number: u32, _source: &Source<'_>) {}
}

/// Lists the blocks of regions that came out of an archive. Returns the first for each place, and how many there are.
pub(super) fn list_archived(regions: &mut [Region]) -> (KeyMap<Key, u32>, u64) {
    let numbers: Vec<(u32, Key)> = regions
        .iter()
        .flat_map(|region| region.numbered().filter(|(_, block)| block.recipe.is_some()))
        .map(|(number, block)| (number, block.key.at_page(block.rip)))
        .collect();
    let mut places = KeyMap::default();
    places.reserve(numbers.len());
    for &(number, place) in &numbers {
        let next = places.insert(place, number);
        if let Some(block) = regions.get_mut(region_of(number)).and_then(|r| r.blocks.get_mut(index_of(number))) {
            block.next = next;
        }
    }
    (places, numbers.len() as u64)
}

/// Whether a page's bytes are those that a block was made from.
fn fits(region: &Region, block: &Block, page: &[u8]) -> bool {
    region.recipe(block).is_some_and(|recipe| chosen_lines(page, block.lines).eq(recipe.chunks(LINE_BYTES)))
}

//! Making room in the code cache: of the oldest blocks, or of all.

use std::collections::HashSet;
use std::hash::BuildHasherDefault;

use super::region::{Region, region_of};
use super::{Cache, KeyHasher};

type Frames = HashSet<u64, BuildHasherDefault<KeyHasher>>;

impl Cache {
    /// Starts to empty the region that was filled first: from now on no jump leads into it but by jump caches. Returns whether
    /// vCPUs must give those up and leave (`Requests::EVICT_CODE`) before the caller calls `finish_eviction`.
    pub fn begin_eviction(&mut self) -> bool {
        let next = (self.current + 1) % self.regions.len();
        let Some(region) = self.regions.get(next) else { return false };
        if region.is_empty() {
            self.current = next;
            return false;
        }
        let mut frames = Frames::default();
        let mut numbers = Vec::with_capacity(region.blocks.len());
        for (number, block) in region.numbered() {
            numbers.push((number, block.key));
            frames.insert(block.mfn.0);
            frames.extend(block.second.iter().map(|second| second.0));
        }
        for (number, key) in numbers {
            self.unlink(number);
            if self.by_key.get(&key) == Some(&number) {
                self.by_key.remove(&key);
            }
        }
        for frame in frames {
            if let Some(blocks) = self.by_frame.get_mut(&frame).map(|frame| &mut frame.blocks) {
                blocks.retain(|&number| region_of(number) != next);
                if blocks.is_empty() {
                    self.by_frame.remove(&frame);
                }
            }
        }
        self.forget_archive();
        self.generation += 1;
        self.counters.evictions += 1;
        if let Some(region) = self.regions.get_mut(next) {
            region.emptied_in = self.generation;
        }
        self.draining = true;
        true
    }

    /// No vCPU is in the region any more, or knows an address of it.
    pub fn finish_eviction(&mut self) {
        self.current = (self.current + 1) % self.regions.len();
        if let Some(region) = self.regions.get_mut(self.current) {
            region.clear();
        }
        self.draining = false;
    }

    /// Ranges of host addresses that were emptied after `generation`.
    pub fn emptied_since(&self, generation: u64) -> Vec<(u64, u64)> {
        let base = self.memory.base();
        let emptied = self.regions.iter().filter(|region| region.emptied_in > generation);
        emptied.map(|region| (base + region.start as u64, base + region.end as u64)).collect()
    }

    /// Starts dropping everything. The caller makes every vCPU leave translated code, then calls `finish_reset`.
    pub fn begin_reset(&mut self) {
        self.forget_archive();
        self.by_key.clear();
        self.by_frame.clear();
        self.generation += 1;
        self.draining = true;
    }

    /// Bytes of code, with what has been dropped since.
    pub fn used(&self) -> usize {
        self.regions.iter().map(|region| region.next - region.start).sum()
    }

    pub fn finish_reset(&mut self) {
        self.regions.iter_mut().for_each(Region::clear);
        self.counters.lasting = 0;
        self.nr_away = self.nr_filed.min(self.regions.len() - 1);
        self.current = self.nr_away;
        self.draining = false;
    }

    /// Gives the host back what a reset has emptied. Called after `finish_reset`, before new code is made.
    pub fn discard(&mut self) {
        if let (Some(first), Some(last)) = (self.regions.first(), self.regions.last()) {
            self.memory.discard(first.start, last.end);
        }
        self.regions.iter_mut().for_each(Region::shrink);
        self.by_key.shrink_to_fit();
        self.by_frame.shrink_to_fit();
    }
}

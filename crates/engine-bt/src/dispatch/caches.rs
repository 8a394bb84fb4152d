//! What a vCPU keeps about addresses: jump caches and software TLBs, and dropping it.

use ring3_engine::Translation;
use ring3_machine::{Machine, PAGE_SIZE};

use super::vcpu::BtVcpu;
use crate::state::{JUMP_ENTRIES, JumpEntry};
use crate::tlb::{self, FillLog, TABLE_ENTRIES, is_upper};

/// Words of the filter of executed pages: kernel and user pages have a half each.
pub const FILTER_WORDS: usize = 256;

/// Place of a page in the filter.
fn filter_bit(rip: u64) -> (usize, u64) {
    let page = rip / PAGE_SIZE;
    let half = FILTER_WORDS / 2;
    let word = (page >> 6) as usize % half + if is_upper(rip) { half } else { 0 };
    (word, 1 << (page & 63))
}

impl BtVcpu {
    /// Notes that the jump caches know an address of this page.
    pub(super) fn note_executed(&mut self, rip: u64) {
        let (word, bit) = filter_bit(rip);
        self.executed[word] |= bit;
    }

    /// Whether the jump caches may know an address of this page.
    pub(super) fn may_have_executed(&self, va: u64) -> bool {
        let (word, bit) = filter_bit(va);
        self.executed[word] & bit != 0
    }

    /// Whether the jump caches may know an address of a page that has slot `slot` of its level-1 table.
    fn may_have_executed_slot(&self, slot: u64) -> bool {
        let words = self.executed.iter().skip((slot >> 6) as usize).step_by(TABLE_ENTRIES / 64);
        words.into_iter().any(|word| word & 1 << (slot & 63) != 0)
    }

    /// Empties jump cache entries: of each mode, those that `chosen` lists through its log and `wanted` says by RIP.
    fn forget_where(
        &mut self,
        mut chosen: impl FnMut(usize, &mut FillLog, &mut dyn FnMut(usize)),
        wanted: impl Fn(&JumpEntry) -> bool,
    ) {
        let leave = self.jump_stub;
        let mut logs = std::mem::take(&mut self.jump_log);
        for (mode, (table, log)) in self.state_mut().jumps.iter_mut().zip(&mut logs).enumerate() {
            chosen(mode, log, &mut |index| {
                // RIP 0 marks an empty entry. Where somebody looks for RIP 0 and finds it, it leads out.
                if let Some(entry) = table.get_mut(index).filter(|entry| entry.rip == 0 || wanted(entry)) {
                    entry.rip = 0;
                    entry.host = leave;
                }
            });
        }
        self.jump_log = logs;
    }

    /// Empties the jump caches.
    pub(super) fn forget_code(&mut self) {
        self.executed = [0; FILTER_WORDS];
        self.forget_where(|_, log, visit| log.drain(JUMP_ENTRIES, visit), |_| true);
    }

    /// Serves `Requests::EVICT_CODE`: drops jump cache entries that lead to where the code cache was emptied.
    pub(super) fn forget_evicted(&mut self) {
        let (ranges, generation) = {
            let domain = self.domain();
            let cache = domain.cache();
            (cache.emptied_since(self.code_generation), cache.generation())
        };
        self.code_generation = generation;
        self.forget_where(
            |_, log, visit| {
                log.each_like(0, JUMP_ENTRIES, &mut *visit);
                log.each_like(u64::MAX, JUMP_ENTRIES, visit);
            },
            |entry| ranges.iter().any(|(start, end)| (start..end).contains(&&entry.host)),
        );
    }

    /// Empties the user jump cache.
    pub(super) fn forget_user_code(&mut self) {
        self.forget_where(
            |mode, log, visit| {
                if mode == 1 {
                    log.drain(JUMP_ENTRIES, visit)
                }
            },
            |_| true,
        );
    }

    /// Empties the user jump cache, and the kernel's but for the upper half.
    pub(super) fn forget_lower_code(&mut self) {
        self.forget_user_code();
        self.forget_where(
            |mode, log, visit| {
                if mode == 0 {
                    log.drain_lower(JUMP_ENTRIES, visit)
                }
            },
            |entry| !is_upper(entry.rip),
        );
    }

    /// Drops jump cache entries for addresses from `first` to `last`, which are of one half.
    pub(super) fn forget_pages(&mut self, first: u64, last: u64) {
        self.forget_where(
            |_, log, visit| log.each_like(last, JUMP_ENTRIES, visit),
            |entry| (first..=last).contains(&entry.rip),
        );
    }

    /// Drops jump cache entries for pages that have slot `slot` of their level-1 tables.
    pub(super) fn forget_slot(&mut self, slot: u64) {
        let slots = TABLE_ENTRIES as u64;
        // An instruction may start on the page before.
        let concerned = [slot, slot.wrapping_sub(1) % slots];
        if !concerned.iter().any(|&slot| self.may_have_executed_slot(slot)) {
            return;
        }
        self.forget_where(
            |_, log, visit| {
                log.each_like(0, JUMP_ENTRIES, &mut *visit);
                log.each_like(u64::MAX, JUMP_ENTRIES, visit);
            },
            |entry| concerned.contains(&(entry.rip / PAGE_SIZE % slots)),
        );
    }

    /// Enters a translation of the current mode.
    pub(crate) fn fill_tlb(&mut self, machine: &Machine, va: u64, translation: &Translation) {
        if self.is_hidden(va) {
            return;
        }
        let mode = self.mode_index();
        let mut logs = std::mem::take(&mut self.tlb_log);
        if let Some(log) = logs.get_mut(mode) {
            tlb::fill(self.state_mut(), machine, mode == 1, va, translation, log);
        }
        self.tlb_log = logs;
    }

    pub(super) fn flush_tlb_mode(&mut self, mode: usize) {
        let mut logs = std::mem::take(&mut self.tlb_log);
        if let Some(log) = logs.get_mut(mode) {
            tlb::flush_mode(self.state_mut(), mode, log);
        }
        self.tlb_log = logs;
    }

    /// Serves `Requests::PROTECT_FRAMES`.
    pub(super) fn protect_requested(&mut self) {
        let frames = std::mem::take(&mut *self.shared_control().to_protect.lock());
        let machine = std::sync::Arc::clone(self.machine());
        let mut pages: Vec<u64> = frames.iter().filter_map(|&mfn| machine.frame(mfn).ok()).map(|p| p as u64).collect();
        pages.sort_unstable();
        self.protect_pages(&pages);
    }

    /// Gives up write access to frames, which are given by sorted host addresses.
    pub(super) fn protect_pages(&mut self, host_pages: &[u64]) {
        let logs = std::mem::take(&mut self.tlb_log);
        tlb::protect_frames(self.state_mut(), host_pages, &logs);
        self.tlb_log = logs;
    }

    /// Drops kernel mode's translations but for the kernel's own of the upper half.
    pub(super) fn flush_tlb_lower(&mut self) {
        let mut logs = std::mem::take(&mut self.tlb_log);
        if let Some(log) = logs.first_mut() {
            tlb::flush_lower(self.state_mut(), 0, log);
        }
        self.tlb_log = logs;
    }
}

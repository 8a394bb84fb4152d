//! Counts every reference anew from the tables themselves, and compares with the frame table. No hypercall leads here:
//! fuzzing and tests ask, while no vCPU runs.

use std::collections::HashMap;

use ring3_engine::pte;
use ring3_machine::Mfn;

use super::entry::{XEN_SLOTS, check_bits, is_present};
use super::frame::{ALLOCATED, PINNED, SHARED, VALIDATED, Word};
use super::table::INVALID_M2P_ENTRY;
use super::{Domid, FrameTable, PageType};

/// Free frames whose contents are looked at: that takes host memory for each.
const SCRUBBED_LOOKED_AT: usize = 4096;

/// References of one frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// Type references; each comes with a general one, which is in `general`, too.
    pub typed: u64,
    pub general: u64,
}

/// References that others than page tables, pins and the allocation hold, and mappings of foreign frames that grants allow.
#[derive(Debug, Default)]
pub struct Held {
    frames: HashMap<Mfn, References>,
    /// Who holds them, for the message.
    holders: HashMap<Mfn, Vec<&'static str>>,
    /// By mapper and frame: how many mappings there may be, and how many of them writable.
    foreign: HashMap<(Domid, Mfn), (u64, u64)>,
    /// Linear entries as the frame table counts them.
    linear: HashMap<Mfn, i64>,
}

impl Held {
    /// A general and a type reference that `holder` has.
    pub fn typed_by(&mut self, mfn: Mfn, holder: &'static str) {
        self.holders.entry(mfn).or_default().push(holder);
        self.typed(mfn);
    }

    /// A general reference.
    pub fn general(&mut self, mfn: Mfn) {
        self.frames.entry(mfn).or_default().general += 1;
    }

    /// A general and a type reference.
    pub(super) fn typed(&mut self, mfn: Mfn) {
        let references = self.frames.entry(mfn).or_default();
        *references = References { typed: references.typed + 1, general: references.general + 1 };
    }

    /// Whether anything of a frame is held.
    pub fn contains(&self, mfn: Mfn) -> bool {
        self.frames.contains_key(&mfn)
    }

    /// A grant lets `mapper` have one entry for a frame.
    pub fn allow_foreign(&mut self, mapper: Domid, mfn: Mfn, is_writable: bool) {
        let allowed = self.foreign.entry((mapper, mfn)).or_default();
        *allowed = (allowed.0 + 1, allowed.1 + u64::from(is_writable));
    }
}

impl FrameTable {
    /// What is wrong with the frame table, if anything. `held` is what the rest of the hypervisor holds. Nobody may change
    /// anything meanwhile.
    pub fn audit(&self, mut held: Held) -> Vec<String> {
        let mut wrong = self.audit_heap();
        let first = self.m2p().1 + 1;
        let end = self.heap.lock().used_end();
        let frames = || (first..end).map(Mfn);
        for mfn in frames() {
            let Some(word) = self.word(mfn) else { continue };
            let info = self.info(mfn);
            if word.has(ALLOCATED) {
                held.general(mfn);
            }
            if word.has(SHARED) && word.has(ALLOCATED) {
                held.frames.entry(mfn).or_default().typed += 1;
            }
            if word.has(PINNED) {
                held.typed(mfn);
            }
            let owner = info.and_then(|info| info.owner);
            if word.type_count() == 0 {
                continue;
            }
            if !word.has(VALIDATED) {
                wrong.push(format!("{mfn:?} is used as {:?} and was not validated", word.page_type()));
            }
            if let Some(level) = word.page_type().level() {
                self.audit_table(mfn, level, owner, &mut held, &mut wrong);
            }
        }
        if !self.linear.agrees(&held.linear) {
            wrong.push(format!("linear entries {:?}, found are {:?}", self.linear, held.linear));
        }
        for (&(mapper, mfn), &(nr, nr_writable)) in &held.foreign {
            // What is left of the allowance was counted down below zero if there were more entries than grants.
            if nr > u64::MAX / 2 || nr_writable > u64::MAX / 2 {
                wrong.push(format!("domain {mapper} maps {mfn:?} more than grants allow: {nr:#x}, {nr_writable:#x}"));
            }
        }
        for mfn in frames() {
            let Some(word) = self.word(mfn) else { continue };
            let expected = held.frames.get(&mfn).copied().unwrap_or_default();
            let found = References { typed: word.type_count(), general: word.count() };
            if found != expected {
                wrong.push(format!(
                    "{mfn:?} {:?} {:#x} has {found:?}, explained are {expected:?}; held by {:?}; in {}",
                    word.page_type(),
                    word.0,
                    held.holders.get(&mfn),
                    self.entries_for(mfn, first..end),
                ));
            }
        }
        wrong
    }

    /// The entries of tables that lead to a frame, in words.
    fn entries_for(&self, target: Mfn, tables: std::ops::Range<u64>) -> String {
        let is_table =
            |mfn: &Mfn| self.word(*mfn).is_some_and(|w| w.type_count() != 0 && w.page_type().level().is_some());
        let entries = tables.map(Mfn).filter(is_table).flat_map(|table| {
            let entries = (0..512).map(move |index| (index, self.machine.entry(table, index).unwrap_or(0)));
            let leads = move |&(_, entry): &(usize, u64)| is_present(entry) && pte::mfn(entry) == target;
            entries.filter(leads).map(move |(index, entry)| format!("{table:?}[{index}] {entry:#x}"))
        });
        entries.collect::<Vec<_>>().join(", ")
    }

    fn word(&self, mfn: Mfn) -> Option<Word> {
        self.frame(mfn).ok().map(|frame| Word(frame.word.load(std::sync::atomic::Ordering::SeqCst)))
    }

    /// Adds what the entries of a page table hold, and checks each.
    fn audit_table(&self, table: Mfn, level: u32, owner: Option<Domid>, held: &mut Held, wrong: &mut Vec<String>) {
        for index in XEN_SLOTS.filter(|_| level == 4) {
            if self.machine.entry(table, index).is_ok_and(is_present) {
                wrong.push(format!("{table:?}[{index}], L4 of {owner:?}: the hypervisor's slot has an entry"));
            }
        }
        for index in (0..512).filter(|index| level != 4 || !XEN_SLOTS.contains(index)) {
            let Ok(entry) = self.machine.entry(table, index) else { continue };
            let target = pte::mfn(entry);
            if !is_present(entry) || (level > 1 && target == table) {
                continue;
            }
            let mut complain = |what: &str| {
                wrong.push(format!("{table:?}[{index}], L{level} of {owner:?}: {entry:#x} {what}"));
            };
            if check_bits(entry, level).is_err() {
                complain("has forbidden bits");
            }
            let Some(info) = self.info(target) else {
                complain("leads out of memory");
                continue;
            };
            let is_writable = entry & pte::RW != 0;
            let needed = match level {
                1 => is_writable.then_some(PageType::Writable),
                _ if !is_writable && self.is_linear(target, level) => {
                    *held.linear.entry(table).or_default() += 1;
                    *held.linear.entry(target).or_default() -= 1;
                    PageType::table(level)
                }
                _ => PageType::table(level - 1),
            };
            match needed {
                Some(page_type) => {
                    held.typed(target);
                    if info.page_type != page_type {
                        complain(&format!("leads to a frame of type {:?}", info.page_type));
                    }
                }
                None => held.general(target),
            }
            if info.owner != owner {
                match owner.filter(|_| level == 1).and_then(|mapper| held.foreign.get_mut(&(mapper, target))) {
                    Some((nr, nr_writable)) => {
                        (*nr, *nr_writable) = (nr.wrapping_sub(1), nr_writable.wrapping_sub(u64::from(is_writable)));
                    }
                    None => complain(&format!("leads to a frame of {:?}", info.owner)),
                }
            }
        }
    }

    /// The lists of free frames and of domains against the frames themselves.
    fn audit_heap(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let heap = self.heap.lock();
        for mfn in heap.free_frames() {
            if self.word(mfn) != Some(Word(0)) {
                wrong.push(format!("{mfn:?} is free and has the word {:x?}", self.word(mfn)));
            }
            if self.info(mfn).is_some_and(|info| info.owner.is_some()) {
                wrong.push(format!("{mfn:?} is free and has an owner"));
            }
            if self.m2p_entry(mfn) != Some(INVALID_M2P_ENTRY) {
                wrong.push(format!("{mfn:?} is free and has a machine-to-phys entry"));
            }
        }
        for mfn in heap.free_frames().take(SCRUBBED_LOOKED_AT) {
            if (0..512).any(|index| self.machine.entry(mfn, index).is_ok_and(|entry| entry != 0)) {
                wrong.push(format!("{mfn:?} is free and was not scrubbed"));
            }
        }
        for (&domid, pages) in &heap.domains {
            if pages.nr_pages != pages.list.len() as u64 && !pages.is_dying {
                wrong.push(format!("domain {domid}: {} pages, {} on its list", pages.nr_pages, pages.list.len()));
            }
            for &mfn in pages.list.iter().chain(&pages.shared) {
                let mfn = Mfn(u64::from(mfn));
                if self.info(mfn).is_none_or(|info| info.owner != Some(domid) || info.count == 0) {
                    wrong.push(format!("domain {domid} lists {mfn:?}, which is not its own"));
                }
            }
        }
        wrong
    }
}

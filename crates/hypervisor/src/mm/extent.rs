//! Extents: runs of 2^order frames, aligned to their size; and XENMEM_exchange, which swaps frames for others.

use std::ops::Range;
use std::sync::atomic::Ordering;

use ring3_machine::Mfn;

use super::frame::{ALLOCATED, ONE, PINNED, SHARED, Word};
use super::heap::{Heap, NOT_LISTED, short};
use super::{DomainMm, Domid, Error, FrameTable, Result};

/// Greatest order of an extent that anybody may have. Source: Xen's CONFIG_CTLDOM_MAX_ORDER.
pub const MAX_ORDER: u32 = 18;

/// What an allocation may do to the domain's reservation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Limit {
    Kept,
    /// Frames of as many are about to be given up.
    Passed,
}

impl Heap {
    /// Takes a run of `nr` frames (a power of two), aligned; pushes those of them, and of the frames passed over, that are
    /// the first of their machine-to-phys frame to `firsts`.
    fn take_run(&mut self, nr: u64, firsts: &mut Vec<Mfn>) -> Option<Mfn> {
        if let Some(first) = take_aligned(&mut self.free, nr) {
            return Some(first);
        }
        let range = self.fresh.iter_mut().find(|range| range.start.next_multiple_of(nr) + nr <= range.end)?;
        let start = range.start.next_multiple_of(nr);
        let passed: Range<u64> = range.start..start;
        firsts.extend((range.start..start + nr).map(Mfn).filter(|&mfn| Self::is_first_of_m2p(mfn)));
        range.start = start + nr;
        self.free.extend(passed.map(|mfn| short(Mfn(mfn))));
        Some(Mfn(start))
    }
}

/// Takes an aligned run out of a list of frames.
fn take_aligned(free: &mut Vec<u32>, nr: u64) -> Option<Mfn> {
    let len = usize::try_from(nr).ok()?;
    if free.len() < len {
        return None;
    }
    free.sort_unstable_by(|a, b| b.cmp(a));
    // Descending: the last of a run comes first.
    let is_run = |window: &[u32]| {
        let (Some(&last), Some(&first)) = (window.first(), window.last()) else { return false };
        u64::from(first).is_multiple_of(nr) && u64::from(last) == u64::from(first) + nr - 1
    };
    let at = free.windows(len).position(is_run)?;
    let first = free.drain(at..at + len).next_back()?;
    Some(Mfn(u64::from(first)))
}

impl FrameTable {
    /// Allocates an extent into a domain's reservation, with `pfn_of` the number of each frame.
    fn allocate_extent(&self, domid: Domid, order: u32, limit: Limit, pfn_of: impl Fn(u64) -> u64) -> Result<Mfn> {
        if order > MAX_ORDER {
            return Err(Error::Invalid("order of an extent"));
        }
        let nr = 1u64 << order;
        let mut firsts = Vec::new();
        for is_drained in [false, true] {
            if is_drained {
                self.drain_limbo();
            }
            let mut heap = self.heap.lock();
            let pages = heap.domains.get(&domid).ok_or(Error::NoSuchDomain(domid))?;
            let has_room = limit == Limit::Passed || pages.max_pages.saturating_sub(pages.nr_pages) >= nr;
            if pages.is_dying || !has_room {
                return Err(Error::NoMemory("reservation"));
            }
            let Some(first) = heap.take_run(nr, &mut firsts) else { continue };
            firsts.iter().for_each(|&mfn| self.clear_m2p_frame(mfn));
            let pages = heap.domains.get_mut(&domid).ok_or(Error::NoSuchDomain(domid))?;
            pages.nr_pages += nr;
            for index in 0..nr {
                let mfn = Mfn(first.0 + index);
                let place = u32::try_from(pages.list.len()).unwrap_or(NOT_LISTED);
                pages.list.push(short(mfn));
                self.set_m2p(mfn, pfn_of(index));
                self.hand_out(mfn, domid, place, ALLOCATED | ONE);
            }
            return Ok(first);
        }
        Err(Error::NoMemory("no such extent"))
    }

    /// Takes a frame of `owner` away from everybody, if nobody uses it: no reference can be taken until it is put back or
    /// freed.
    fn steal(&self, mfn: Mfn, owner: Domid) -> Result<()> {
        let frame = self.frame(mfn)?;
        let word = frame.word.load(Ordering::Acquire);
        let state = Word(word);
        let is_unused = state.count() == 1
            && state.type_count() == 0
            && state.has(ALLOCATED)
            && !state.has(SHARED)
            && !state.has(PINNED)
            && Self::owner_of(frame) == Some(owner);
        let is_stolen =
            is_unused && frame.word.compare_exchange(word, word - ONE, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if is_stolen { Ok(()) } else { Err(Error::NotOwned(mfn)) }
    }

    /// Gives a stolen frame, contents and all, to another domain; `pfn` is its number there.
    ///
    /// # Errors
    /// [`Error::NoMemory`] if the domain may have no more, [`Error::NoSuchDomain`]; the frame is still stolen.
    fn hand_over(&self, mfn: Mfn, from: Domid, to: Domid, pfn: u64) -> Result<()> {
        let frame = self.frame(mfn)?;
        let mut heap = self.heap.lock();
        let pages = heap.domains.get(&to).ok_or(Error::NoSuchDomain(to))?;
        // To itself is no growth.
        if pages.is_dying || pages.nr_pages >= pages.max_pages + u64::from(from == to) {
            return Err(Error::NoMemory("reservation"));
        }
        heap.unlist(self, mfn, from, frame.list_index.load(Ordering::Relaxed));
        let pages = heap.domains.get_mut(&to).ok_or(Error::NoSuchDomain(to))?;
        let index = u32::try_from(pages.list.len()).unwrap_or(NOT_LISTED);
        pages.list.push(short(mfn));
        pages.nr_pages += 1;
        self.set_m2p(mfn, pfn);
        self.hand_out(mfn, to, index, ALLOCATED | ONE);
        Ok(())
    }

    fn put_back(&self, mfn: Mfn) {
        if let Ok(frame) = self.frame(mfn) {
            frame.word.fetch_add(ONE, Ordering::AcqRel);
        }
    }

    fn free_stolen(&self, mfn: Mfn) {
        if let Ok(frame) = self.frame(mfn) {
            self.free_frame(mfn, frame);
        }
    }
}

impl DomainMm {
    /// Takes a frame that nobody uses away from this domain, for [`DomainMm::transfer`] or [`DomainMm::drop_stolen`]. When this
    /// returns, no vCPU of the domain can reach it any more.
    ///
    /// # Errors
    /// [`Error::NotOwned`], for a frame that is in use, too.
    pub fn steal(&self, mfn: Mfn) -> Result<()> {
        self.table().steal(mfn, self.domid())?;
        // Its mappings are gone, but not from the TLBs; it may have been a neighbour's, by a grant, before.
        if let Some(sink) = self.table().sink() {
            sink.flush_all_tlbs();
        }
        self.table().wrote(mfn);
        Ok(())
    }

    /// GNTTABOP_transfer: gives a stolen frame to another domain.
    ///
    /// # Errors
    /// [`Error::NoMemory`], [`Error::NoSuchDomain`]: the frame is still stolen.
    pub fn transfer(&self, mfn: Mfn, to: Domid, pfn: u64) -> Result<()> {
        self.table().hand_over(mfn, self.domid(), to, pfn)
    }

    /// Frees a stolen frame.
    pub fn drop_stolen(&self, mfn: Mfn) {
        self.table().free_stolen(mfn);
        self.table().drain_limbo();
    }

    /// Adds an extent to the reservation; frame n of it gets the number `pfn + n`, or none.
    ///
    /// # Errors
    /// -ENOMEM, -EINVAL.
    pub fn populate_extent(&self, order: u32, pfn: Option<u64>) -> Result<Mfn> {
        let pfn_of = |index: u64| pfn.map_or(super::table::INVALID_M2P_ENTRY, |pfn| pfn.wrapping_add(index));
        self.table().allocate_extent(self.domid(), order, Limit::Kept, pfn_of)
    }

    /// XENMEM_exchange of one chunk: gives up `gone`, which nobody may use, and returns as many frames in extents of
    /// `order`, the first of each; the frames of extent n get numbers from `pfns[n]` on.
    ///
    /// # Errors
    /// -EINVAL for a frame that is not the domain's or in use, -ENOMEM; nothing is changed then.
    pub fn exchange(&self, gone: &[Mfn], order: u32, pfns: &[u64]) -> Result<Vec<Mfn>> {
        let table = self.table();
        let undo = |stolen: &[Mfn]| stolen.iter().for_each(|&mfn| table.put_back(mfn));
        for (index, &mfn) in gone.iter().enumerate() {
            if let Err(error) = table.steal(mfn, self.domid()) {
                undo(gone.get(..index).unwrap_or_default());
                return Err(error);
            }
        }
        let mut extents = Vec::with_capacity(pfns.len());
        for &pfn in pfns {
            match table.allocate_extent(self.domid(), order, Limit::Passed, |index| pfn.wrapping_add(index)) {
                Ok(first) => extents.push(first),
                Err(error) => {
                    for first in extents {
                        for index in 0..1 << order {
                            self.give_up(Mfn(first.0 + index));
                        }
                    }
                    undo(gone);
                    return Err(error);
                }
            }
        }
        gone.iter().for_each(|&mfn| table.free_stolen(mfn));
        table.drain_limbo();
        Ok(extents)
    }
}

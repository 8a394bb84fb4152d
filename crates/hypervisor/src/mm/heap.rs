//! Free frames and the page lists of domains, under one lock.
//!
//! A freed frame waits in limbo until its former users' TLBs were flushed and it was given back to the host, which
//! scrubs it. This is done in batches: see [`FrameTable::drain_limbo`].

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use ring3_abi::xen::DOMID_XEN;
use ring3_machine::Mfn;

use super::frame::{ALLOCATED, FOREIGN, Frame, ONE, ONE_TYPE, PageType, SHARED, VALIDATED, Word};
use super::table::INVALID_M2P_ENTRY;
use super::{Domid, Error, FrameTable, Result};

/// `Frame::list_index` of a frame that is on no list.
pub(super) const NOT_LISTED: u32 = u32::MAX;
/// Machine-to-phys entries in a frame; the table is initialised one frame at a time.
const M2P_PER_FRAME: u64 = 512;
/// The first domain's frames are numbered from here on: a few pages of the machine-to-phys table ahead. Guests look up
/// a frame there and then its number in the P2M, both at addresses that are multiples of a large power of two; without a
/// skew the two pages would compete for one place in every set-indexed TLB.
const SKEW: u64 = 4 * M2P_PER_FRAME;

/// The pages of one domain.
#[derive(Debug, Default)]
pub(super) struct DomainPages {
    /// Frames of its reservation.
    pub list: Vec<u32>,
    /// Xen-heap frames shared with it.
    pub shared: Vec<u32>,
    /// Frames of its reservation, listed or not yet freed.
    pub nr_pages: u64,
    /// Limit of the reservation.
    pub max_pages: u64,
    /// No allocation any more.
    pub is_dying: bool,
}

/// Everything behind the heap lock.
#[derive(Debug)]
pub(super) struct Heap {
    /// Never used, to be taken in this order.
    pub(super) fresh: [Range<u64>; 2],
    /// Used before; read as zeros.
    pub(super) free: Vec<u32>,
    /// Freed, not yet flushed and scrubbed.
    limbo: Vec<u32>,
    /// Whose TLBs may hold translations of frames in limbo.
    limbo_owners: Vec<Domid>,
    limbo_foreign: bool,
    /// Taken out of limbo by a drain that is under way.
    nr_draining: u64,
    pub domains: BTreeMap<Domid, DomainPages>,
}

impl Heap {
    pub fn new(first: u64, end: u64) -> Self {
        let skewed = (first + SKEW).next_multiple_of(M2P_PER_FRAME).min(end);
        Self {
            fresh: [skewed..end, first..skewed],
            free: Vec::new(),
            limbo: Vec::new(),
            limbo_owners: Vec::new(),
            limbo_foreign: false,
            nr_draining: 0,
            domains: BTreeMap::new(),
        }
    }

    fn nr_free(&self) -> u64 {
        let nr_fresh: u64 = self.fresh.iter().map(|range| range.end - range.start).sum();
        nr_fresh + (self.free.len() + self.limbo.len()) as u64 + self.nr_draining
    }

    /// Frames from here on were never used; nor perhaps some before, which are nobody's.
    pub(super) fn used_end(&self) -> u64 {
        self.fresh[0].start
    }

    /// Frames that were used and can be allocated now.
    pub(super) fn free_frames(&self) -> impl Iterator<Item = Mfn> {
        self.free.iter().map(|&mfn| Mfn(u64::from(mfn)))
    }

    /// Takes a scrubbed frame. The flag tells that the frame is the first of its machine-to-phys frame ever used.
    fn take(&mut self) -> Option<(Mfn, bool)> {
        if let Some(mfn) = self.free.pop() {
            return Some((Mfn(u64::from(mfn)), false));
        }
        let mfn = Mfn(self.fresh.iter_mut().find_map(Iterator::next)?);
        Some((mfn, Self::is_first_of_m2p(mfn)))
    }

    /// Takes a frame off its owner's reservation.
    pub(super) fn unlist(&mut self, table: &FrameTable, mfn: Mfn, owner: Domid, index: u32) {
        if let Some(pages) = self.domains.get_mut(&owner) {
            swap_remove(&mut pages.list, table, mfn, index);
            pages.nr_pages = pages.nr_pages.saturating_sub(1);
        }
    }

    /// Takes a Xen-heap frame off its owner's list.
    fn unlist_shared(&mut self, table: &FrameTable, mfn: Mfn, owner: Domid, index: u32) {
        if let Some(pages) = self.domains.get_mut(&owner) {
            swap_remove(&mut pages.shared, table, mfn, index);
        }
    }

    /// Whether an unused frame is the first of its machine-to-phys frame, which is cleared then.
    pub(super) const fn is_first_of_m2p(mfn: Mfn) -> bool {
        mfn.0.is_multiple_of(M2P_PER_FRAME)
    }
}

/// Takes a frame out of a list, if it is there.
fn swap_remove(list: &mut Vec<u32>, table: &FrameTable, mfn: Mfn, index: u32) {
    if list.get(index as usize) == Some(&short(mfn)) {
        list.swap_remove(index as usize);
        if let Some(&moved) = list.get(index as usize) {
            table.frames[moved as usize].list_index.store(index, Ordering::Relaxed);
        }
    }
}

#[allow(clippy::cast_possible_truncation)] // Frame numbers fit 32 bits: `FrameTable::new` sees to it.
pub(super) const fn short(mfn: Mfn) -> u32 {
    mfn.0 as u32
}

impl FrameTable {
    /// Number of frames that can be allocated, those waiting for a flush included.
    pub fn nr_free_frames(&self) -> u64 {
        self.heap.lock().nr_free()
    }

    /// Gives MFN 0 and the machine-to-phys table to the hypervisor, for good.
    pub(super) fn reserve_for_xen(&self, mfn: Mfn) {
        if let Ok(frame) = self.frame(mfn) {
            frame.owner.store(u32::from(DOMID_XEN) + 1, Ordering::Release);
            frame.list_index.store(NOT_LISTED, Ordering::Relaxed);
            frame.word.store(ALLOCATED | ONE, Ordering::Release);
        }
        if mfn.0.is_multiple_of(M2P_PER_FRAME) {
            self.clear_m2p_frame(mfn);
        }
    }

    /// Allocates one zeroed frame for each of `pfns` into the domain's reservation and enters it in the
    /// machine-to-phys table. Returns how many were allocated: fewer when the reservation or memory is exhausted.
    pub(super) fn allocate(&self, domid: Domid, pfns: &[u64], mfns: &mut Vec<Mfn>) -> Result<usize> {
        let mut drained = false;
        let mut done = 0;
        loop {
            {
                let mut heap = self.heap.lock();
                let room = {
                    let pages = heap.domains.get(&domid).ok_or(Error::NoSuchDomain(domid))?;
                    if pages.is_dying { 0 } else { pages.max_pages.saturating_sub(pages.nr_pages) }
                };
                let wanted = pfns.len() - done;
                let granted = wanted.min(usize::try_from(room).unwrap_or(usize::MAX));
                let mut taken = 0;
                while taken < granted {
                    let Some((mfn, is_first)) = heap.take() else { break };
                    if is_first {
                        self.clear_m2p_frame(mfn);
                    }
                    let pages = heap.domains.get_mut(&domid).ok_or(Error::NoSuchDomain(domid))?;
                    let index = u32::try_from(pages.list.len()).unwrap_or(NOT_LISTED);
                    pages.list.push(short(mfn));
                    pages.nr_pages += 1;
                    self.set_m2p(mfn, pfns[done + taken]);
                    self.hand_out(mfn, domid, index, ALLOCATED | ONE);
                    mfns.push(mfn);
                    taken += 1;
                }
                done += taken;
                if taken == granted || drained {
                    return Ok(done);
                }
            }
            self.drain_limbo();
            drained = true;
        }
    }

    /// Allocates a zeroed Xen-heap frame that the domain may map writable, but that is no part of its reservation
    /// (shared_info, grant table). It can never become a page table.
    ///
    /// # Errors
    /// [`Error::NoSuchDomain`], [`Error::NoMemory`].
    pub fn alloc_shared(&self, domid: Domid) -> Result<Mfn> {
        let mut drained = false;
        loop {
            {
                let mut heap = self.heap.lock();
                if heap.domains.get(&domid).is_none_or(|pages| pages.is_dying) {
                    return Err(Error::NoSuchDomain(domid));
                }
                if let Some((mfn, is_first)) = heap.take() {
                    if is_first {
                        self.clear_m2p_frame(mfn);
                    }
                    let pages = heap.domains.get_mut(&domid).ok_or(Error::NoSuchDomain(domid))?;
                    let index = u32::try_from(pages.shared.len()).unwrap_or(NOT_LISTED);
                    pages.shared.push(short(mfn));
                    let word = Word(ALLOCATED | SHARED | ONE).retyped(PageType::Writable).0;
                    self.hand_out(mfn, domid, index, word | ONE_TYPE | VALIDATED);
                    return Ok(mfn);
                }
                if drained {
                    return Err(Error::NoMemory("machine memory"));
                }
            }
            self.drain_limbo();
            drained = true;
        }
    }

    /// Gives up the hypervisor's hold on a frame of [`FrameTable::alloc_shared`]; it is freed when the guest's
    /// mappings are gone too.
    pub fn free_shared(&self, mfn: Mfn) {
        let Ok(frame) = self.frame(mfn) else { return };
        if Word(frame.word.load(Ordering::Acquire)).has(SHARED)
            && frame.word.fetch_and(!ALLOCATED, Ordering::AcqRel) & ALLOCATED != 0
        {
            self.put_page_and_type(mfn, PageType::Writable);
        }
    }

    pub(super) fn hand_out(&self, mfn: Mfn, domid: Domid, index: u32, word: u64) {
        if let Ok(frame) = self.frame(mfn) {
            frame.stamp.store(0, Ordering::Relaxed);
            frame.list_index.store(index, Ordering::Relaxed);
            frame.owner.store(u32::from(domid) + 1, Ordering::Release);
            frame.word.store(word, Ordering::Release);
        }
    }

    /// The general count reached zero: takes the frame off its owner's list and puts it in limbo.
    pub(super) fn free_frame(&self, mfn: Mfn, frame: &Frame) {
        let word = Word(frame.word.load(Ordering::Acquire));
        debug_assert!(word.type_count() == 0, "{mfn:?} freed while typed");
        let mut heap = self.heap.lock();
        let owner = Self::owner_of(frame);
        let index = frame.list_index.swap(NOT_LISTED, Ordering::Relaxed);
        if let Some(domid) = owner {
            if word.has(SHARED) {
                heap.unlist_shared(self, mfn, domid, index);
            } else {
                heap.unlist(self, mfn, domid, index);
            }
            if !heap.limbo_owners.contains(&domid) {
                heap.limbo_owners.push(domid);
            }
        }
        self.set_m2p(mfn, INVALID_M2P_ENTRY);
        frame.word.store(0, Ordering::Release);
        frame.owner.store(0, Ordering::Release);
        // Nobody knows any more who may hold a translation of a frame that outlived its owner.
        heap.limbo_foreign |= word.has(FOREIGN) || owner.is_none();
        heap.limbo.push(short(mfn));
    }

    /// Makes the frames in limbo allocatable: flushes those who may still reach them, drops code translated from them
    /// and gives their contents back to the host.
    pub fn drain_limbo(&self) {
        let (mut frames, owners, is_foreign) = {
            let mut heap = self.heap.lock();
            let frames = std::mem::take(&mut heap.limbo);
            heap.nr_draining += frames.len() as u64;
            (frames, std::mem::take(&mut heap.limbo_owners), std::mem::take(&mut heap.limbo_foreign))
        };
        if frames.is_empty() {
            return;
        }
        if is_foreign {
            if let Some(sink) = self.sink() {
                sink.flush_all_tlbs();
            }
        } else {
            owners.iter().for_each(|&domid| self.flush_domain(domid));
        }
        for mfn in frames.iter().map(|&mfn| Mfn(u64::from(mfn))) {
            self.wrote(mfn);
            self.machine.code().unshare(mfn);
        }
        // Descending, so that the next allocations get ascending numbers.
        frames.sort_unstable_by(|a, b| b.cmp(a));
        for run in frames.chunk_by(|high, low| *high == *low + 1) {
            let first = Mfn(u64::from(run[run.len() - 1]));
            if self.machine.discard(first, run.len() as u64).is_err() {
                // The host could not punch a hole: scrub by hand.
                run.iter().for_each(|&mfn| drop(self.machine.zero(Mfn(u64::from(mfn)))));
            }
        }
        let mut heap = self.heap.lock();
        heap.nr_draining -= frames.len() as u64;
        heap.free.append(&mut frames);
    }
}

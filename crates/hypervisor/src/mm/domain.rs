//! The memory of one domain: reservation, numbers, teardown.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use ring3_abi::arch_x86::{MACH2PHYS_VIRT_END, MACH2PHYS_VIRT_START};
use ring3_abi::memory::xen_machphys_mapping;
use ring3_abi::xen::DOMID_FIRST_RESERVED;
use ring3_machine::{Machine, Mfn};

use super::frame::{ALLOCATED, SHARED, Word};
use super::heap::{DomainPages, NOT_LISTED};
use super::upper::{StaleSlots, UpperChanges};
use super::{Domid, Error, FrameTable, Result};

/// The memory of one domain. Its page-table operations are in `update`, `ptwr`, `pin` and `segdesc`.
#[derive(Debug)]
pub struct DomainMm {
    table: Arc<FrameTable>,
    domid: Domid,
    is_dying: AtomicBool,
    is_gone: AtomicBool,
    /// Changes that may leave stale translations of the upper half in a TLB.
    pub(super) upper: UpperChanges,
    /// See `board`.
    pub(super) registers: Mutex<Option<Mfn>>,
}

impl DomainMm {
    /// Registers a domain with an empty reservation of at most `max_pages` frames.
    ///
    /// # Errors
    /// [`Error::DomainExists`], [`Error::Invalid`] for a reserved domid.
    pub fn new(table: &Arc<FrameTable>, domid: Domid, max_pages: u64) -> Result<Self> {
        if domid >= DOMID_FIRST_RESERVED {
            return Err(Error::Invalid("reserved domid"));
        }
        match table.heap.lock().domains.entry(domid) {
            std::collections::btree_map::Entry::Occupied(_) => return Err(Error::DomainExists(domid)),
            std::collections::btree_map::Entry::Vacant(slot) => {
                slot.insert(DomainPages { max_pages, ..DomainPages::default() });
            }
        }
        Ok(Self {
            table: Arc::clone(table),
            domid,
            is_dying: AtomicBool::new(false),
            is_gone: AtomicBool::new(false),
            upper: UpperChanges::default(),
            registers: Mutex::new(None),
        })
    }

    /// The frame table of the machine.
    pub fn table(&self) -> &FrameTable {
        &self.table
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.table.machine
    }

    /// The domain.
    pub fn domid(&self) -> Domid {
        self.domid
    }

    /// How often a mapping that may belong to the upper half of the address space was taken away or narrowed. A vCPU
    /// that has dropped its translations of the upper half since then has no stale one.
    pub fn upper_changes(&self) -> u64 {
        self.upper.count()
    }

    /// What a vCPU must drop of the upper half (nothing: all of it) that has dropped what was stale when there were `seen`
    /// changes; and how many there are now.
    pub fn stale_since(&self, seen: u64) -> (Option<StaleSlots>, u64) {
        self.upper.since(seen)
    }

    /// Whether teardown has begun.
    pub fn is_dying(&self) -> bool {
        self.is_dying.load(Ordering::SeqCst)
    }

    fn with_pages<T: Default>(&self, look: impl FnOnce(&DomainPages) -> T) -> T {
        self.table.heap.lock().domains.get(&self.domid).map(look).unwrap_or_default()
    }

    /// Frames in the reservation (XENMEM_current_reservation, tot_pages).
    pub fn nr_pages(&self) -> u64 {
        self.with_pages(|pages| pages.nr_pages)
    }

    /// Limit of the reservation (XENMEM_maximum_reservation).
    pub fn max_pages(&self) -> u64 {
        self.with_pages(|pages| pages.max_pages)
    }

    /// Sets the limit; it may be below what is in use, which then only cannot grow.
    pub fn set_max_pages(&self, max_pages: u64) {
        if let Some(pages) = self.table.heap.lock().domains.get_mut(&self.domid) {
            pages.max_pages = max_pages;
        }
    }

    /// MFNs of the reservation, at most `nr_max`, in no order (XEN_DOMCTL_getmemlist).
    pub fn page_list(&self, nr_max: usize) -> Vec<Mfn> {
        self.with_pages(|pages| pages.list.iter().take(nr_max).map(|&mfn| Mfn(u64::from(mfn))).collect())
    }

    /// XENMEM_machphys_mapping: where the guest sees the machine-to-phys table.
    pub fn machphys_mapping() -> xen_machphys_mapping {
        let (v_start, v_end) = (MACH2PHYS_VIRT_START, MACH2PHYS_VIRT_END);
        xen_machphys_mapping { v_start, v_end, max_mfn: (v_end - v_start) / 8 - 1 }
    }

    /// XENMEM_populate_physmap: one zeroed frame for each of `pfns`, in order, entered in the machine-to-phys table.
    /// Appends the frames to `mfns`; returns how many were allocated before the reservation or the machine was
    /// exhausted.
    pub fn populate(&self, pfns: &[u64], mfns: &mut Vec<Mfn>) -> usize {
        self.table.allocate(self.domid, pfns, mfns).unwrap_or(0)
    }

    /// XENMEM_decrease_reservation: gives up frames; returns how many, stopping at the first that is not one of the
    /// reservation. A frame that is still mapped is freed when the last mapping goes.
    pub fn decrease_reservation(&self, mfns: &[Mfn]) -> usize {
        let nr_done = mfns.iter().take_while(|&&mfn| self.give_up(mfn)).count();
        self.table.drain_limbo();
        nr_done
    }

    /// Gives up a frame. One that was given up before, and is only mapped still, is so again: Xen does not tell.
    pub(super) fn give_up(&self, mfn: Mfn) -> bool {
        if self.table.get_page(mfn, self.domid).is_err() {
            return false;
        }
        let is_shared = self.table.frame(mfn).is_ok_and(|frame| Word(frame.word.load(Ordering::Acquire)).has(SHARED));
        let was_allocated = !is_shared
            && self
                .table
                .frame(mfn)
                .is_ok_and(|frame| frame.word.fetch_and(!ALLOCATED, Ordering::AcqRel) & ALLOCATED != 0);
        if was_allocated {
            self.table.put_page(mfn);
        }
        self.table.put_page(mfn);
        !is_shared
    }

    /// Gives back every frame. The domain's vCPUs no longer run, and whoever took references for them (roots, GDT,
    /// vcpu_info, grant maps) has dropped them. Returns how many frames others still hold: those are freed when they
    /// let go, and belong to nobody until then, so that the domid may be used again.
    pub fn teardown(&self) -> u64 {
        self.is_dying.store(true, Ordering::SeqCst);
        if self.is_gone.swap(true, Ordering::SeqCst) {
            return 0;
        }
        let (list, shared) = {
            let mut heap = self.table.heap.lock();
            let Some(pages) = heap.domains.get_mut(&self.domid) else { return 0 };
            pages.is_dying = true;
            let taken = (std::mem::take(&mut pages.list), std::mem::take(&mut pages.shared));
            for &mfn in taken.0.iter().chain(&taken.1) {
                self.table.frames[mfn as usize].list_index.store(NOT_LISTED, Ordering::Relaxed);
            }
            taken
        };
        let frames = |list: &[u32]| list.iter().map(|&mfn| Mfn(u64::from(mfn))).collect::<Vec<_>>();
        let (list, shared) = (frames(&list), frames(&shared));
        // Pins first: they hold up whole trees of references between the domain's own frames.
        for &mfn in &list {
            if self.owns(mfn) {
                self.drop_pin(mfn);
            }
        }
        for &mfn in &list {
            if self.owns(mfn) {
                self.give_up(mfn);
            }
        }
        for &mfn in &shared {
            if self.owns(mfn) {
                self.table.free_shared(mfn);
            }
        }
        let nr_left = list.iter().chain(&shared).filter(|&&mfn| self.disown(mfn)).count() as u64;
        self.table.heap.lock().domains.remove(&self.domid);
        self.table.forget_linear(self.domid);
        self.table.drain_limbo();
        nr_left
    }

    fn owns(&self, mfn: Mfn) -> bool {
        self.table.frame(mfn).is_ok_and(|frame| FrameTable::owner_of(frame) == Some(self.domid))
    }

    /// Makes a frame that outlives the domain nobody's; returns whether it was still the domain's.
    fn disown(&self, mfn: Mfn) -> bool {
        let _heap = self.table.heap.lock();
        self.table.frame(mfn).is_ok_and(|frame| {
            FrameTable::owner_of(frame) == Some(self.domid) && {
                frame.owner.store(0, Ordering::SeqCst);
                true
            }
        })
    }
}

impl Drop for DomainMm {
    fn drop(&mut self) {
        self.teardown();
    }
}

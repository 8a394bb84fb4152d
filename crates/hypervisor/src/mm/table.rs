//! The frame table: construction, ownership and general references.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use ring3_machine::{Machine, Mfn, PAGE_SIZE, PAGE_SIZE_BYTES};

use super::frame::{Frame, PINNED, PageType, SHARED, VALIDATED, Word};
use super::heap::Heap;
use super::linear::Linear;
use super::{Domid, Error, FlushSink, Result};

/// Entry of the machine-to-phys table for a frame that is nobody's memory.
pub(super) const INVALID_M2P_ENTRY: u64 = u64::MAX;
/// Entries of the machine-to-phys table in one frame.
const M2P_PER_FRAME: u64 = PAGE_SIZE / 8;

/// One per machine; shared by all domains.
#[derive(Debug)]
pub struct FrameTable {
    pub(super) machine: Arc<Machine>,
    pub(super) frames: Box<[Frame]>,
    pub(super) heap: Mutex<Heap>,
    pub(super) sink: OnceLock<Box<dyn FlushSink>>,
    pub(super) flushes_started: AtomicU64,
    /// By domid: number of the last complete flush.
    pub(super) flushes_done: Box<[AtomicU64]>,
    /// By domid: number up to which no page walk can be under way.
    pub(super) walks_done: Box<[AtomicU64]>,
    pub(super) linear: Linear,
    nr_m2p: u64,
}

/// A snapshot of one frame, for reports and tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameInfo {
    /// Owner, if any; DOMID_XEN for the hypervisor's own.
    pub owner: Option<Domid>,
    pub page_type: PageType,
    pub type_count: u64,
    pub count: u64,
    pub is_pinned: bool,
    pub is_validated: bool,
    pub is_shared: bool,
}

impl FrameTable {
    /// Builds the table of a machine and reserves the machine-to-phys table in its first frames (MFN 0 is never used).
    ///
    /// # Errors
    /// [`Error::NoMemory`] when the machine has no room for more than the table, or the host has none for us.
    pub fn new(machine: Arc<Machine>) -> Result<Arc<Self>> {
        let nr_frames = machine.nr_frames();
        let nr_m2p = nr_frames.div_ceil(M2P_PER_FRAME);
        if nr_m2p + 1 >= nr_frames || nr_frames >= u64::from(u32::MAX) {
            return Err(Error::NoMemory("machine size"));
        }
        let len = usize::try_from(nr_frames).map_err(|_| Error::NoMemory("machine size"))?;
        // Zeroed by the host on first touch: a large sparse machine costs only what is used.
        let frames = bytemuck::allocation::try_zeroed_slice_box(len).map_err(|()| Error::NoMemory("frame table"))?;
        let clocks =
            || bytemuck::allocation::try_zeroed_slice_box(1 << 15).map_err(|()| Error::NoMemory("flush clocks"));
        let (flushes_done, walks_done) = (clocks()?, clocks()?);
        let table = Self {
            machine,
            frames,
            heap: Mutex::new(Heap::new(nr_m2p + 1, nr_frames)),
            sink: OnceLock::new(),
            flushes_started: AtomicU64::new(0),
            flushes_done,
            walks_done,
            linear: Linear::new()?,
            nr_m2p,
        };
        for mfn in 0..=nr_m2p {
            table.reserve_for_xen(Mfn(mfn));
        }
        Ok(Arc::new(table))
    }

    /// Names the one who flushes; once, before the first vCPU runs. Until then nothing is flushed.
    pub fn set_flush_sink(&self, sink: Box<dyn FlushSink>) {
        let _ = self.sink.set(sink);
    }

    /// The machine memory it describes.
    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    /// First frame and length in frames of the machine-to-phys table.
    pub fn m2p(&self) -> (Mfn, u64) {
        (Mfn(1), self.nr_m2p)
    }

    /// State of a frame; `None` past the end of memory.
    pub fn info(&self, mfn: Mfn) -> Option<FrameInfo> {
        let frame = self.frame(mfn).ok()?;
        let word = Word(frame.word.load(Ordering::SeqCst));
        Some(FrameInfo {
            owner: Self::owner_of(frame),
            page_type: word.page_type(),
            type_count: word.type_count(),
            count: word.count(),
            is_pinned: word.has(PINNED),
            is_validated: word.has(VALIDATED),
            is_shared: word.has(SHARED),
        })
    }

    pub(super) fn frame(&self, mfn: Mfn) -> Result<&Frame> {
        usize::try_from(mfn.0).ok().and_then(|i| self.frames.get(i)).ok_or(Error::NotOwned(mfn))
    }

    pub(super) fn owner_of(frame: &Frame) -> Option<Domid> {
        frame.owner.load(Ordering::Acquire).checked_sub(1).and_then(|domid| Domid::try_from(domid).ok())
    }

    /// Takes a general reference to a frame of `owner`.
    ///
    /// # Errors
    /// [`Error::NotOwned`], [`Error::TooManyReferences`].
    pub fn get_page(&self, mfn: Mfn, owner: Domid) -> Result<()> {
        let frame = self.frame(mfn)?;
        let mut x = frame.word.load(Ordering::Acquire);
        loop {
            if Word(x).count() == 0 || Self::owner_of(frame) != Some(owner) {
                return Err(Error::NotOwned(mfn));
            }
            if Word(x).is_full() {
                return Err(Error::TooManyReferences(mfn));
            }
            match frame.word.compare_exchange_weak(x, x + super::frame::ONE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => x = now,
            }
        }
        // Between the look at the owner and the reference the frame may have been freed and given to another.
        if Self::owner_of(frame) != Some(owner) {
            self.put_page(mfn);
            return Err(Error::NotOwned(mfn));
        }
        Ok(())
    }

    /// Drops a general reference; the last one frees the frame.
    pub fn put_page(&self, mfn: Mfn) {
        let Ok(frame) = self.frame(mfn) else { return };
        let mut x = frame.word.load(Ordering::Acquire);
        loop {
            if Word(x).count() == 0 {
                debug_assert!(false, "general count of {mfn:?} below zero");
                return;
            }
            match frame.word.compare_exchange_weak(x, x - super::frame::ONE, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => x = now,
            }
        }
        if Word(x).count() == 1 {
            self.free_frame(mfn, frame);
        }
    }

    /// The domain's own number of a frame, as the machine-to-phys table has it.
    pub fn m2p_entry(&self, mfn: Mfn) -> Option<u64> {
        let (table, index) = Self::m2p_place(mfn);
        (mfn.0 < self.machine.nr_frames()).then(|| self.machine.entry(table, index).ok()).flatten()
    }

    /// Writes a machine-to-phys entry.
    pub(super) fn set_m2p(&self, mfn: Mfn, pfn: u64) {
        let (table, index) = Self::m2p_place(mfn);
        if let Ok(word) = self.machine.word64(table, index * 8) {
            word.store(pfn, Ordering::Release);
        }
    }

    /// Marks a whole frame of machine-to-phys entries, those of `mfn` and its neighbours, as nobody's.
    pub(super) fn clear_m2p_frame(&self, mfn: Mfn) {
        let (table, _) = Self::m2p_place(mfn);
        // Cannot fail: the table covers every frame.
        let _ = self.machine.write(table, 0, &[0xff; PAGE_SIZE_BYTES]);
    }

    #[allow(clippy::cast_possible_truncation)]
    const fn m2p_place(mfn: Mfn) -> (Mfn, usize) {
        (Mfn(1 + mfn.0 / M2P_PER_FRAME), (mfn.0 % M2P_PER_FRAME) as usize)
    }
}

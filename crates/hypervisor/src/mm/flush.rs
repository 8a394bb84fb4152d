//! Which type changes need a TLB flush first, by Xen's idea of a flush clock.
//!
//! Flushes are numbered over the machine. When a writable or page-table reference goes, the frame is stamped with
//! the number of the next flush to start: only that one, or a later one, is sure to drop stale translations of it.
//! A change of type then flushes the owner's vCPUs unless such a flush is complete. Many frames thus share one flush.

use std::fmt::Debug;
use std::sync::atomic::{AtomicU64, Ordering};

use ring3_machine::Mfn;

use super::frame::{FOREIGN, Frame, Word};
use super::{Domid, FrameTable};

/// What the memory manager needs from whoever knows the vCPUs. Called without any lock of `mm` held.
pub trait FlushSink: Send + Sync + Debug {
    /// Returns once no vCPU of the domain can execute with a translation cached before the call. The caller's own
    /// vCPU, if any, is out of the guest: posting the request is enough for it. Unknown domains are ignored.
    fn flush_domain_tlb(&self, domid: Domid);

    /// Returns once no vCPU of the domain can write to the frame through a translation cached before the call.
    fn protect_frame(&self, domid: Domid, mfn: Mfn) {
        let _ = mfn;
        self.flush_domain_tlb(domid);
    }

    /// As [`FlushSink::flush_domain_tlb`] for every vCPU of the machine.
    fn flush_all_tlbs(&self);

    /// Returns once no vCPU of the domain is in a page walk that began before the call. Cached translations may stay.
    fn wait_for_walks(&self, domid: Domid) {
        self.flush_domain_tlb(domid);
    }

    /// The frame was written, or is to be reused, while `machine.code().has_code(mfn)`: `Engine::invalidate_code`.
    fn code_written(&self, mfn: Mfn);
}

impl FrameTable {
    /// Notes that a reference is about to go which may have left a translation in a TLB.
    pub(super) fn stamp(&self, frame: &Frame) {
        let next = self.flushes_started.load(Ordering::SeqCst) + 1;
        // Mostly equal already; the maximum, because a slower thread may bring an older number.
        if frame.stamp.load(Ordering::SeqCst) < next {
            frame.stamp.fetch_max(next, Ordering::SeqCst);
        }
    }

    /// Starts a flush: everything stamped so far is covered by it.
    ///
    /// For callers that flush all vCPUs of a domain anyway and want the memory manager to profit.
    pub fn begin_flush(&self) -> u64 {
        self.flushes_started.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Tells that flush `number` is complete for every vCPU of a domain.
    pub fn end_flush(&self, domid: Domid, number: u64) {
        if let Some(done) = self.flushes_done.get(usize::from(domid)) {
            done.fetch_max(number, Ordering::SeqCst);
        }
    }

    /// Flushes a domain's TLBs, numbered.
    pub(super) fn flush_domain(&self, domid: Domid) {
        let number = self.begin_flush();
        if let Some(sink) = self.sink() {
            sink.flush_domain_tlb(domid);
        }
        self.end_flush(domid, number);
    }

    /// Flushes before a frame of `owner` is used as another type, if stale translations may exist. The frame's type
    /// count is 1 and it is not validated: nobody else can map it writable or use it as a table.
    pub(super) fn flush_before_retype(&self, mfn: Mfn, frame: &Frame, word: Word, owner: Domid) {
        let stamp = frame.stamp.load(Ordering::SeqCst);
        if stamp == 0 {
            return;
        }
        if word.has(FOREIGN) {
            if let Some(sink) = self.sink() {
                sink.flush_all_tlbs();
            }
            return;
        }
        let done = |clock: &[AtomicU64]| clock.get(usize::from(owner)).map_or(0, |n| n.load(Ordering::SeqCst));
        if done(&self.flushes_done) >= stamp {
            return;
        }
        if word.page_type().level().is_none() {
            // Reading it does no harm, whatever it becomes.
            if let Some(sink) = self.sink() {
                sink.protect_frame(owner, mfn);
            }
            return;
        }
        // It was a table: since it became one there is no writable translation of it, and read-only ones do no harm. But
        // an engine may be in a walk that has found it, and would take what it holds from now on for entries.
        if done(&self.walks_done) < stamp {
            let number = self.begin_flush();
            if let Some(sink) = self.sink() {
                sink.wait_for_walks(owner);
            }
            if let Some(clock) = self.walks_done.get(usize::from(owner)) {
                clock.fetch_max(number, Ordering::SeqCst);
            }
        }
    }

    pub(super) fn sink(&self) -> Option<&dyn FlushSink> {
        self.sink.get().map(|sink| &**sink)
    }

    /// Tells the engine about a store of ours. Cheap unless the frame holds translated code.
    pub(super) fn wrote(&self, mfn: Mfn) {
        if self.machine.code().has_code_now(mfn)
            && let Some(sink) = self.sink()
        {
            sink.code_written(mfn);
        }
    }
}

//! Frames that hold zeros only go back to the host, which hands out zeros when they are touched again.
//!
//! Nobody notices, unless a store falls between the look at a frame and its return. So callers see to it that nothing
//! stores to the frames meanwhile (`crate::idle`), and the heap's lock keeps each with its owner.

use std::ops::Range;
use std::sync::atomic::Ordering;

use ring3_machine::Mfn;

use super::frame::{ALLOCATED, FOREIGN, SHARED, Word};
use super::{Domid, FrameTable, PageType};

impl FrameTable {
    /// Gives back those frames of a range that are a domain's ordinary memory and hold zeros, but for those that `is_held`
    /// names. Returns how many. Nobody may store to the others meanwhile. Frames that another domain has mapped, page tables
    /// and segment descriptors stay: others than the domain's vCPUs write to them.
    pub fn give_back_zeros(&self, domid: Domid, frames: Range<u64>, is_held: impl Fn(Mfn) -> bool) -> u64 {
        let _heap = self.heap.lock();
        let is_spare = |mfn: Mfn| {
            let Ok(frame) = self.frame(mfn) else { return false };
            let word = Word(frame.word.load(Ordering::SeqCst));
            let is_ordinary = word.has(ALLOCATED)
                && !word.has(SHARED | FOREIGN)
                && matches!(word.page_type(), PageType::None | PageType::Writable);
            is_ordinary
                && Self::owner_of(frame) == Some(domid)
                && !is_held(mfn)
                && self.machine.is_zero(mfn).unwrap_or(false)
        };
        let mut nr = 0;
        let mut run = frames.start..frames.start;
        let mut give_back = |run: &Range<u64>| {
            let len = run.end - run.start;
            if len > 0 && self.machine.discard(Mfn(run.start), len).is_ok() {
                nr += len;
            }
        };
        for number in frames {
            if !is_spare(Mfn(number)) {
                continue;
            }
            if run.end == number {
                run.end += 1;
            } else {
                give_back(&run);
                run = number..number + 1;
            }
        }
        give_back(&run);
        nr
    }
}

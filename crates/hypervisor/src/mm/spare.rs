//! Frames go back to the host: those that hold one byte all over, and those whose bytes are kept packed. Zeros the host hands out
//! when they are touched again, others the machine makes anew.
//!
//! Nobody notices, unless a store falls between the look at a frame and its return. So callers see to it that nothing
//! stores to the frames meanwhile (`crate::idle`), and the heap's lock keeps each with its owner.

use std::ops::Range;
use std::sync::atomic::Ordering;

use ring3_machine::Mfn;

use super::frame::{ALLOCATED, FOREIGN, SHARED, Word};
use super::{Domid, FrameTable, PageType};

impl FrameTable {
    /// Gives back those frames of a range that are a domain's ordinary memory and hold one byte all over, but for those that
    /// `is_held` names. Returns how many. Nobody may store to the others meanwhile, and addresses that are known of them must be
    /// forgotten before they are used. Frames that another domain has mapped, page tables and segment descriptors stay:
    /// others than the domain's vCPUs write to them.
    pub fn give_back_uniform(&self, domid: Domid, frames: Range<u64>, is_held: impl Fn(Mfn) -> bool) -> u64 {
        let _heap = self.heap.lock();
        let spare_byte = |mfn: Mfn| {
            let is_spare = self.is_spare(mfn, domid, &is_held);
            if is_spare { self.machine.uniform_byte(mfn).ok()? } else { None }
        };
        let (mut nr, mut run, mut of) = (0, frames.start..frames.start, 0);
        let mut give_back = |run: &Range<u64>, byte| {
            if !run.is_empty() && self.machine.fold(run.clone(), byte) {
                nr += run.end - run.start;
            }
        };
        for number in frames {
            let Some(byte) = spare_byte(Mfn(number)) else { continue };
            if run.end == number && of == byte {
                run.end += 1;
            } else {
                give_back(&run, of);
                (run, of) = (number..number + 1, byte);
            }
        }
        give_back(&run, of);
        nr
    }

    /// Gives back those of the same frames that are worth packing. Who has host memory only: others would get some.
    pub fn give_back_packed(&self, domid: Domid, frames: Range<u64>, is_held: impl Fn(Mfn) -> bool) -> u64 {
        let _heap = self.heap.lock();
        let mut nr = 0;
        let mut rest = frames;
        while let Some(start) = rest.find(|&number| self.is_spare(Mfn(number), domid, &is_held)) {
            let end = rest.find(|&number| !self.is_spare(Mfn(number), domid, &is_held)).unwrap_or(rest.end);
            nr += self.machine.pack(start..end);
        }
        nr
    }

    /// Whether a frame is a domain's ordinary memory, and not held.
    fn is_spare(&self, mfn: Mfn, domid: Domid, is_held: impl Fn(Mfn) -> bool) -> bool {
        let Ok(frame) = self.frame(mfn) else { return false };
        let word = Word(frame.word.load(Ordering::SeqCst));
        let is_ordinary = word.has(ALLOCATED)
            && !word.has(SHARED | FOREIGN)
            && matches!(word.page_type(), PageType::None | PageType::Writable);
        is_ordinary && Self::owner_of(frame) == Some(domid) && !is_held(mfn)
    }
}

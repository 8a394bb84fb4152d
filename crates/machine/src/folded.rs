//! Frames that have no host memory of their own: those that hold the same byte all over, and those that are kept packed.
//!
//! A frame of zeros needs no note: a hole in the memfd reads as zeros. One of another byte (Linux fills what it frees of its
//! image with 0xcc), or whose bytes a packer made fewer of (`packed.rs`), is noted here, and gets its memory back before anybody
//! learns its address (`Machine::frame`). Who reaches frames by the memfd instead has them exposed first: such a frame is
//! folded no more until it is free.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::contents::{Content, Contents};
use crate::packed::Packed;
use crate::{Mfn, PAGE_SIZE_BYTES};

/// A bit for each frame.
#[derive(Debug)]
struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new(nr_frames: usize) -> Self {
        Self((0..nr_frames.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline]
    fn get(&self, number: u64) -> bool {
        let word = usize::try_from(number / 64).ok().and_then(|at| self.0.get(at));
        word.is_some_and(|word| word.load(Ordering::Acquire) >> (number % 64) & 1 != 0)
    }

    /// The numbers of those that are set.
    fn numbers(&self) -> impl Iterator<Item = u64> {
        let words = (0..).step_by(64).zip(&self.0);
        words
            .filter(|(_, word)| word.load(Ordering::Acquire) != 0)
            .flat_map(|(first, _)| first..first + 64)
            .filter(|&n| self.get(n))
    }

    fn set(&self, number: u64, value: bool) {
        let bit = 1 << (number % 64);
        if let Some(word) = usize::try_from(number / 64).ok().and_then(|at| self.0.get(at)) {
            if value {
                word.fetch_or(bit, Ordering::SeqCst)
            } else {
                word.fetch_and(!bit, Ordering::SeqCst)
            };
        }
    }
}

/// Which frames are folded, and which must not be.
#[derive(Debug)]
pub(crate) struct Folded {
    is_folded: Bits,
    is_exposed: Bits,
    /// Whoever folds or unfolds holds this.
    contents: Mutex<Contents>,
}

impl Folded {
    pub fn new(nr_frames: usize) -> Self {
        let contents = Mutex::new(Contents::new(nr_frames));
        Self { is_folded: Bits::new(nr_frames), is_exposed: Bits::new(nr_frames), contents }
    }

    fn contents(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub fn contains(&self, mfn: Mfn) -> bool {
        self.is_folded.get(mfn.0)
    }

    pub fn frames(&self) -> Vec<Mfn> {
        self.is_folded.numbers().map(Mfn).collect()
    }

    pub fn is_exposed(&self, mfn: Mfn) -> bool {
        self.is_exposed.get(mfn.0)
    }

    /// Notes that a frame is reached by the memfd from now on. The caller then unfolds it.
    pub fn expose(&self, mfn: Mfn) {
        if !self.is_exposed.get(mfn.0) {
            // Not between another's look and its note.
            let _contents = self.contents();
            self.is_exposed.set(mfn.0, true);
        }
    }

    /// Notes frames as folded if none is exposed and `discard` gives their memory back. Returns whether that was done.
    pub fn fold(&self, frames: Range<u64>, byte: u8, discard: impl FnOnce() -> bool) -> bool {
        let contents = frames.clone().map(|_| Content::Byte(byte));
        self.fold_as(frames.clone(), contents, discard)
    }

    /// The same for frames that are packed.
    pub fn fold_packed(&self, first: u64, packed: Vec<Packed>, discard: impl FnOnce() -> bool) -> bool {
        let frames = first..first + packed.len() as u64;
        self.fold_as(frames, packed.into_iter().map(Content::Packed), discard)
    }

    fn fold_as(
        &self,
        frames: Range<u64>,
        holding: impl Iterator<Item = Content>,
        discard: impl FnOnce() -> bool,
    ) -> bool {
        let mut contents = self.contents();
        if frames.clone().any(|number| self.is_exposed.get(number)) {
            return false;
        }
        frames.clone().for_each(|number| self.is_folded.set(number, true));
        let is_done = discard();
        for (number, content) in frames.zip(holding) {
            if is_done {
                contents.insert(number, content);
            } else {
                self.is_folded.set(number, false);
            }
        }
        is_done
    }

    /// Has `fill` write what a folded frame holds.
    #[cold]
    pub fn unfold(&self, mfn: Mfn, fill: impl FnOnce(&[u8; PAGE_SIZE_BYTES])) {
        let mut contents = self.contents();
        if contents.remove(mfn.0, |content| fill(&content.copy())) {
            self.is_folded.set(mfn.0, false);
        }
    }

    /// Forgets frames, which are about to become zeros.
    pub fn forget(&self, frames: Range<u64>) {
        let mut contents = self.contents();
        for number in frames {
            if self.is_folded.get(number) {
                contents.remove(number, |_| ());
                self.is_folded.set(number, false);
            }
            self.is_exposed.set(number, false);
        }
    }
}

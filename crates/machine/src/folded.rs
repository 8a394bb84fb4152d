//! Frames that hold the same byte all over and have no host memory.
//!
//! A frame of zeros needs no note: a hole in the memfd reads as zeros. One of another byte (Linux fills what it frees of its
//! image with 0xcc) is noted here, and gets its memory back before anybody learns its address (`Machine::frame`). Who
//! reaches frames by the memfd instead has them exposed first: such a frame is folded no more until it is free.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Mfn;

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
    /// The byte of each folded frame. Whoever folds or unfolds holds this.
    bytes: Mutex<HashMap<u64, u8>>,
}

impl Folded {
    pub fn new(nr_frames: usize) -> Self {
        Self { is_folded: Bits::new(nr_frames), is_exposed: Bits::new(nr_frames), bytes: Mutex::default() }
    }

    fn bytes(&self) -> MutexGuard<'_, HashMap<u64, u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    pub fn contains(&self, mfn: Mfn) -> bool {
        self.is_folded.get(mfn.0)
    }

    pub fn frames(&self) -> Vec<Mfn> {
        self.bytes().keys().map(|&number| Mfn(number)).collect()
    }

    /// Notes that a frame is reached by the memfd from now on. The caller then unfolds it.
    pub fn expose(&self, mfn: Mfn) {
        if !self.is_exposed.get(mfn.0) {
            // Not between another's look and its note.
            let _bytes = self.bytes();
            self.is_exposed.set(mfn.0, true);
        }
    }

    /// Notes frames as folded if none is exposed and `discard` gives their memory back. Returns whether that was done.
    pub fn fold(&self, frames: Range<u64>, byte: u8, discard: impl FnOnce() -> bool) -> bool {
        let mut bytes = self.bytes();
        if frames.clone().any(|number| self.is_exposed.get(number)) {
            return false;
        }
        frames.clone().for_each(|number| self.is_folded.set(number, true));
        let is_done = discard();
        for number in frames {
            if is_done {
                bytes.insert(number, byte);
            } else {
                self.is_folded.set(number, false);
            }
        }
        is_done
    }

    /// Has `fill` write a folded frame's byte all over it.
    #[cold]
    pub fn unfold(&self, mfn: Mfn, fill: impl FnOnce(u8)) {
        let mut bytes = self.bytes();
        if let Some(byte) = bytes.remove(&mfn.0) {
            fill(byte);
            self.is_folded.set(mfn.0, false);
        }
    }

    /// Forgets frames, which are about to become zeros.
    pub fn forget(&self, frames: Range<u64>) {
        let mut bytes = self.bytes();
        for number in frames {
            bytes.remove(&number);
            self.is_folded.set(number, false);
            self.is_exposed.set(number, false);
        }
    }
}

//! Which frames hold translated code.
//!
//! An engine marks a frame before it reads instructions from it; whoever writes to a marked frame must tell the
//! engine (`DomainEngine::invalidate_code`), and the engine never hands out a fast-path write mapping to one.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::Mfn;

/// One flag per frame.
#[derive(Debug)]
pub struct CodeMap {
    flags: Box<[AtomicU8]>,
}

impl CodeMap {
    pub(crate) fn new(nr_frames: usize) -> Self {
        Self { flags: (0..nr_frames).map(|_| AtomicU8::new(0)).collect() }
    }

    #[inline]
    fn flag(&self, mfn: Mfn) -> Option<&AtomicU8> {
        self.flags.get(usize::try_from(mfn.0).ok()?)
    }

    /// Whether translated code was made from this frame and is still live.
    #[inline]
    pub fn has_code(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.load(Ordering::SeqCst) != 0)
    }

    /// Marks the frame; returns whether it was marked before.
    pub fn mark(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.swap(1, Ordering::SeqCst) != 0)
    }

    /// Clears the mark; returns whether it was set.
    pub fn clear(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.swap(0, Ordering::SeqCst) != 0)
    }
}

//! Which frames hold translated code.
//!
//! An engine marks a frame before it reads instructions from it; whoever writes to a marked frame must tell the
//! engine (`DomainEngine::invalidate_code`), and the engine never hands out a fast-path write mapping to one.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering, fence};
use std::sync::{Mutex, PoisonError};

use crate::Mfn;

/// The frame holds translated code.
const CODE: u8 = 1;
/// Nobody has write access cached any more that is older than the mark.
const SETTLED: u8 = 4;
/// Somebody outside the engine may write to the frame at any time.
const WRITER: u8 = 2;
/// vCPUs of more than one domain may map the frame.
const SHARED: u8 = 8;

/// Flags of each frame.
#[derive(Debug)]
pub struct CodeMap {
    flags: Box<[AtomicU8]>,
    /// How many outside writers frames have.
    writers: Mutex<HashMap<u64, u32>>,
}

impl CodeMap {
    pub(crate) fn new(nr_frames: usize) -> Self {
        Self { flags: (0..nr_frames).map(|_| AtomicU8::new(0)).collect(), writers: Mutex::default() }
    }

    #[inline]
    fn flag(&self, mfn: Mfn) -> Option<&AtomicU8> {
        self.flags.get(usize::try_from(mfn.0).ok()?)
    }

    /// Whether translated code was made from this frame and is still live.
    #[inline]
    pub fn has_code(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.load(Ordering::SeqCst) & CODE != 0)
    }

    /// As [`CodeMap::has_code`], for who has just written to the frame: either this sees the mark, or who sets it finds what was
    /// written.
    #[inline]
    pub fn has_code_now(&self, mfn: Mfn) -> bool {
        // The store must be visible before the mark is looked at; a CPU by itself puts loads before stores.
        fence(Ordering::SeqCst);
        self.has_code(mfn)
    }

    /// Notes that another domain than the owner is about to map the frame: who marks it as code asks every domain's vCPUs to
    /// give up write access.
    pub fn share(&self, mfn: Mfn) {
        self.flag(mfn).inspect(|f| _ = f.fetch_or(SHARED, Ordering::SeqCst));
    }

    /// Whether several domains may map the frame. To be asked after it was marked: who maps it later finds the mark.
    pub fn is_shared(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.load(Ordering::SeqCst) & SHARED != 0)
    }

    /// Takes back [`CodeMap::share`]: nobody maps the frame any more.
    pub fn unshare(&self, mfn: Mfn) {
        self.flag(mfn).inspect(|f| _ = f.fetch_and(!SHARED, Ordering::SeqCst));
    }

    /// Marks the frame; returns whether it was marked before.
    pub fn mark(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.fetch_or(CODE, Ordering::SeqCst) & CODE != 0)
    }

    /// Notes that whoever had write access cached when the frame was marked has given it up: it may be translated. No
    /// effect if the mark was cleared meanwhile. The caller has seen to it that nobody else has marked it anew since.
    pub fn settle(&self, mfn: Mfn) {
        let settled = |flags: u8| (flags & CODE != 0).then_some(flags | SETTLED);
        self.flag(mfn).inspect(|f| _ = f.fetch_update(Ordering::SeqCst, Ordering::SeqCst, settled));
    }

    /// Whether the frame is marked, and [`CodeMap::settle`] was called since.
    #[inline]
    pub fn is_settled(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.load(Ordering::SeqCst) & SETTLED != 0)
    }

    /// Clears the mark; returns whether it was set.
    pub fn clear(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.fetch_and(!(CODE | SETTLED), Ordering::SeqCst) & CODE != 0)
    }

    /// Notes one more mapping by which somebody who cannot tell the engine writes to the frame (a process of domain 0).
    /// No code is kept of it from now on; what there is the caller has dropped (`Engine::invalidate_code`).
    pub fn add_writer(&self, mfn: Mfn) {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        *writers.entry(mfn.0).or_default() += 1;
        self.flag(mfn).inspect(|f| _ = f.fetch_or(WRITER, Ordering::SeqCst));
    }

    /// Takes back one [`CodeMap::add_writer`].
    pub fn remove_writer(&self, mfn: Mfn) {
        let mut writers = self.writers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(count) = writers.get_mut(&mfn.0) else { return };
        *count -= 1;
        if *count == 0 {
            writers.remove(&mfn.0);
            self.flag(mfn).inspect(|f| _ = f.fetch_and(!WRITER, Ordering::SeqCst));
        }
    }

    /// Whether the frame may change without the engine being told.
    #[inline]
    pub fn has_writer(&self, mfn: Mfn) -> bool {
        self.flag(mfn).is_some_and(|f| f.load(Ordering::SeqCst) & WRITER != 0)
    }
}

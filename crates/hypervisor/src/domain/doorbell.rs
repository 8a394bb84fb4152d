//! Events that a dom0 process sends without a packet, which would take a wake-up of the connection's thread: it sets a
//! bit in its last page, where somebody of ours looks anyway; docs/design/0012-doorbells.md.

use std::sync::atomic::Ordering;

use super::connection::{BELLS_OFFSET, Connection};

/// Not 0 while a worker without work looks at the bells.
const ATTENTION: usize = BELLS_OFFSET;
/// A bit for each word of bells that is not 0.
const SELECTOR: usize = BELLS_OFFSET + 0x40;
/// A bit for each port: the event is to be sent.
const BELLS: usize = BELLS_OFFSET + 0x200;
/// A bit for each port: the vCPU that it notifies runs, and looks at the bell before it blocks.
const BUSY: usize = BELLS_OFFSET + 0x400;
/// Bytes of the page that are in use.
pub(super) const BELLS_BYTES: usize = 0x600;

impl Connection {
    /// Tells the process whether its bells are looked at.
    pub fn attend(&self, is_looking: bool) {
        if let Some(word) = self.memory.word64(ATTENTION) {
            word.store(u64::from(is_looking), Ordering::SeqCst);
        }
    }

    /// Whether a bell may have been rung.
    pub fn has_rung(&self) -> bool {
        self.memory.word64(SELECTOR).is_some_and(|word| word.load(Ordering::Relaxed) != 0)
    }

    /// Takes the ports whose bells were rung.
    pub fn take_bells(&self, mut each: impl FnMut(u32)) {
        let Some(selector) = self.memory.word64(SELECTOR) else { return };
        let mut selected = selector.swap(0, Ordering::SeqCst);
        while selected != 0 {
            let index = selected.trailing_zeros();
            selected &= selected - 1;
            let word = self.memory.word64(BELLS + index as usize * 8);
            let mut rung = word.map_or(0, |word| word.swap(0, Ordering::SeqCst));
            while rung != 0 {
                each(index * 64 + rung.trailing_zeros());
                rung &= rung - 1;
            }
        }
    }

    /// Takes one bell; whether it was rung.
    pub fn take_bell(&self, port: u32) -> bool {
        let Some((word, bit)) = self.bit(BELLS, port) else { return false };
        word.fetch_and(!bit, Ordering::SeqCst) & bit != 0
    }

    /// Tells the process whether the vCPU that a port notifies looks at its bell before it blocks.
    pub fn set_busy(&self, port: u32, is_busy: bool) {
        if let Some((word, bit)) = self.bit(BUSY, port) {
            if is_busy {
                word.fetch_or(bit, Ordering::SeqCst);
            } else {
                word.fetch_and(!bit, Ordering::SeqCst);
            }
        }
    }
}

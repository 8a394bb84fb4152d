//! Telling the hypervisor of an event without a packet, where somebody of it looks anyway; see docs/design/0012-doorbells.md.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::shared_unsafe::{Shared, send_now};

const ATTENTION: usize = 0;
const SELECTOR: usize = 0x40;
const BELLS: usize = 0x200;
const BUSY: usize = 0x400;

/// The bell of a port, in the page of its connection.
#[derive(Debug)]
pub struct Bell {
    memory: Shared,
    /// Where the page is.
    page: usize,
    port: u32,
}

/// Who has heard a bell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A worker without work: the event is sent now.
    Now,
    /// The vCPU, which looks before it blocks.
    Later,
    /// Nobody: it takes a packet. The bell is rung all the same.
    No,
}

impl Bell {
    /// The bell of `port`, in the page at `page`. None if that is not there.
    pub fn new(memory: Shared, page: usize, port: u32) -> Option<Self> {
        let bell = Self { memory, page, port };
        bell.word(BUSY).map(|_| ())?;
        Some(bell)
    }

    fn at(&self, offset: usize) -> Option<&AtomicU64> {
        self.memory.word64(self.page + offset)
    }

    /// The port's word and bit of an array.
    fn word(&self, array: usize) -> Option<(&AtomicU64, u64)> {
        let index = usize::try_from(self.port / 64).ok().filter(|&index| index < 64)?;
        Some((self.at(array + index * 8)?, 1 << (self.port % 64)))
    }

    /// Rings.
    pub fn ring(&self) -> Heard {
        let (Some((bells, bit)), Some(selector)) = (self.word(BELLS), self.at(SELECTOR)) else { return Heard::No };
        bells.fetch_or(bit, Ordering::SeqCst);
        selector.fetch_or(1 << (self.port / 64), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let is_set = |word: &AtomicU64, bits: u64| word.load(Ordering::SeqCst) & bits != 0;
        if self.at(ATTENTION).is_some_and(|word| is_set(word, u64::MAX)) {
            Heard::Now
        } else if self.word(BUSY).is_some_and(|(word, bit)| is_set(word, bit)) {
            Heard::Later
        } else {
            Heard::No
        }
    }

    /// Whether nobody has answered yet.
    pub fn is_rung(&self) -> bool {
        self.word(BELLS).is_some_and(|(word, bit)| word.load(Ordering::SeqCst) & bit != 0)
    }

    /// Takes the ringing back; false if somebody has answered.
    pub fn take_back(&self) -> bool {
        self.word(BELLS).is_some_and(|(word, bit)| word.fetch_and(!bit, Ordering::SeqCst) & bit != 0)
    }
}

/// How the front end is told of answers: a packet on the control socket that raises its event, at once or as soon as its
/// vCPU has nothing else to do.
#[derive(Debug)]
pub struct Notice {
    pub socket: OwnedFd,
    pub packet: Vec<u8>,
    /// One for a bell that was rung.
    pub lazy_packet: Vec<u8>,
    pub bell: Option<Bell>,
}

impl Notice {
    /// Raises the event; None if that is not possible, else whether it may be that the front end is told only later.
    pub(crate) fn raise(&self, may_wait: bool) -> Option<bool> {
        let Some(bell) = &self.bell else {
            return send_now(self.socket.as_fd(), &self.packet).then_some(false);
        };
        match bell.ring() {
            Heard::Now => Some(false),
            Heard::Later if may_wait => Some(true),
            Heard::No if may_wait => send_now(self.socket.as_fd(), &self.lazy_packet).then_some(true),
            // Unless somebody has answered meanwhile.
            Heard::Later | Heard::No => {
                (!bell.take_back() || send_now(self.socket.as_fd(), &self.packet)).then_some(false)
            }
        }
    }

    /// Whether an event that was to wait has been sent.
    pub(crate) fn is_sent(&self) -> bool {
        self.bell.as_ref().is_none_or(|bell| !bell.is_rung())
    }
}

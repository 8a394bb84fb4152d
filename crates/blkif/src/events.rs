//! Waiting for the front end's event, so that a process whose disks are all idle but one need not wake Python for it.
//!
//! The connection's `shared_info` is looked at as `ring3.libs.evtchn` does: flag, selector, then words; an event that is
//! set after a step is announced by the next upcall.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::shared_unsafe::{Shared, drain, ready};

const UPCALL_PENDING: usize = 0;
const PENDING_SEL: usize = 8;
const EVTCHN_PENDING: usize = 0x800;
const EVTCHN_MASK: usize = 0xa00;

/// The events of a connection, one port of which is the ring's.
#[derive(Debug)]
pub struct Events {
    pub shared_info: Shared,
    /// Readable when an event may be pending.
    pub upcall: OwnedFd,
    /// What the descriptor is called in the epoll set of [`Events::wait`].
    pub upcall_name: u32,
    pub port: u32,
}

/// What ended a wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Woken {
    /// The ring's event.
    Ring,
    /// These ports, which were taken, or (none) another descriptor of the set.
    Others(Vec<u32>),
    /// The end of the time, or a signal.
    Nothing,
}

impl Events {
    /// Whether there may be events: of others, while the ring asks for none.
    pub fn is_any(&self) -> bool {
        self.shared_info.byte(UPCALL_PENDING).is_some_and(|pending| pending.load(Ordering::Relaxed) != 0)
    }

    /// Waits for the ring's event, and for everything else that is in an epoll set.
    pub fn wait(&self, set: BorrowedFd<'_>, timeout_ms: i32) -> Woken {
        match ready(set, timeout_ms).as_slice() {
            [] => return Woken::Nothing,
            [name] if *name == self.upcall_name => {}
            _ => return Woken::Others(Vec::new()),
        }
        let ports = self.take();
        if ports == [self.port] { Woken::Ring } else { Woken::Others(ports) }
    }

    /// Takes the ports with a pending, unmasked event.
    fn take(&self) -> Vec<u32> {
        drain(self.upcall.as_fd());
        let mut ports = Vec::new();
        let word = |at: usize| self.shared_info.word64(at);
        let (Some(upcall), Some(selector)) = (self.shared_info.byte(UPCALL_PENDING), word(PENDING_SEL)) else {
            return ports;
        };
        upcall.swap(0, Ordering::SeqCst);
        let mut selected = selector.swap(0, Ordering::SeqCst);
        while selected != 0 {
            let index = selected.trailing_zeros();
            selected &= selected - 1;
            let offset = index as usize * 8;
            let (Some(pending), Some(mask)) = (word(EVTCHN_PENDING + offset), word(EVTCHN_MASK + offset)) else {
                continue;
            };
            let wanted = pending.load(Ordering::SeqCst) & !mask.load(Ordering::SeqCst);
            let mut raised = wanted & pending.fetch_and(!wanted, Ordering::SeqCst);
            while raised != 0 {
                ports.push(index * 64 + raised.trailing_zeros());
                raised &= raised - 1;
            }
        }
        ports
    }
}

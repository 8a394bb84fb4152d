//! Finding loops that are worth a block of their own (see `translate::trace`).
//!
//! The scheduler has vCPUs look up from their work every few milliseconds (`VcpuControl::sample`). One that was at a jump back is in
//! a loop that takes a good part of its time. It then executes instruction by instruction until it is back at the same place,
//! or it is plain that it does not come back soon; and what it executed becomes a block.

use ring3_engine::{Requests, VcpuControl};
use ring3_machine::{PAGE_SIZE, PAGE_SIZE_BYTES};

use super::vcpu::BtVcpu;
use crate::cache::{Key, Source};

/// Most instructions of a loop.
const MAX_PATH: usize = 96;

/// A way through a page's code, as far as it was gone.
#[derive(Debug)]
pub(super) struct Path {
    /// Linear address of its first instruction.
    head: u64,
    offsets: Vec<u16>,
}

/// Where a vCPU that follows a loop has got to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// At another instruction of the path.
    OnPath,
    /// Back at its head.
    AtHead,
    /// Elsewhere: this is no loop, or too large a one.
    Lost,
}

impl Path {
    pub fn new(head: u64) -> Self {
        Self { head, offsets: Vec::new() }
    }

    /// Takes the instruction at `rip`, which comes next.
    pub fn take(&mut self, rip: u64) -> Place {
        if rip == self.head && !self.offsets.is_empty() {
            return Place::AtHead;
        }
        let offset = (rip % PAGE_SIZE) as u16;
        let is_lost = rip / PAGE_SIZE != self.head / PAGE_SIZE
            || self.offsets.len() == MAX_PATH
            || self.offsets.contains(&offset);
        if is_lost {
            return Place::Lost;
        }
        self.offsets.push(offset);
        Place::OnPath
    }
}

impl BtVcpu {
    /// The vCPU left translated code at a jump back to `rip`, or for the first time at a jump there. If it is to look where it goes
    /// from there: the path, which has nothing yet.
    pub(super) fn path_from(&mut self, rip: u64, is_turn: bool) -> Option<Path> {
        let follows = if is_turn { self.is_sampled() } else { self.domain().shared().follows_all };
        if !follows {
            return None;
        }
        let mfn = self.fetch_frame(rip).ok()?;
        let key = Key::new(mfn, (rip % PAGE_SIZE) as usize, self.variant());
        self.domain().cache().may_follow(key).then(|| Path::new(rip))
    }

    /// Whether nothing was asked of the vCPU but to look up. Whoever has an event to take would not come around.
    fn is_sampled(&self) -> bool {
        self.shared_control().requested().0 & !Requests::ENGINE.0 == 0
    }

    /// Makes a block of a path that came back to its head. In the guest.
    pub(super) fn make_trace(&mut self, path: &Path) {
        let Ok(mfn) = self.fetch_frame(path.head) else { return };
        let domain = self.domain();
        let mut cache = domain.cache();
        let marks = self.machine().code();
        if !marks.is_settled(mfn) || marks.has_writer(mfn) {
            return;
        }
        let mut bytes = [0u8; 2 * PAGE_SIZE_BYTES];
        let len = self.copy_code(&mut bytes, mfn, None);
        cache.add_trace(&Source {
            mfn,
            second: None,
            offset: (path.head % PAGE_SIZE) as usize,
            rip: path.head,
            variant: self.variant(),
            grouped: true,
            path: &path.offsets,
            code: bytes.get(..len).unwrap_or_default(),
        });
    }
}

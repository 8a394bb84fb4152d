//! Grant tables, version 1: the shared frames and their limits. Mapping and copying are not here yet.
//! Source: xen/include/public/grant_table.h.

use ring3_machine::{Machine, Mfn};

use crate::mm::FrameTable;

/// Frames that a new table has. Linux assumes 4 until it asks.
pub const INITIAL_FRAMES: u32 = 1;

/// The grant table of one domain.
#[derive(Debug, Default)]
pub struct GrantTable {
    frames: Vec<Mfn>,
    max_frames: u32,
}

impl GrantTable {
    /// An empty table of at most `max_frames` frames.
    pub fn new(max_frames: u32) -> Self {
        Self { frames: Vec::new(), max_frames }
    }

    /// Frames in use.
    pub fn frames(&self) -> &[Mfn] {
        &self.frames
    }

    /// Limit of frames.
    pub fn max_frames(&self) -> u32 {
        self.max_frames
    }

    /// Grows the table to `nr_frames`.
    ///
    /// # Errors
    /// The limit, when it or machine memory is exhausted; frames that were added stay.
    pub fn grow(&mut self, table: &FrameTable, domid: u16, nr_frames: u32) -> Result<(), u32> {
        if nr_frames > self.max_frames {
            return Err(self.max_frames);
        }
        while (self.frames.len() as u64) < u64::from(nr_frames) {
            let Ok(mfn) = table.alloc_shared(domid) else { return Err(self.max_frames) };
            self.frames.push(mfn);
        }
        Ok(())
    }

    /// Reads a version 1 entry, as one snapshot.
    pub fn entry(&self, machine: &Machine, gref: u32) -> Option<u64> {
        let frame = *self.frames.get((gref / 512) as usize)?;
        machine.entry(frame, (gref % 512) as usize).ok()
    }

    /// Forgets the frames; their owner's teardown frees them.
    pub fn clear(&mut self) {
        self.frames.clear();
    }
}

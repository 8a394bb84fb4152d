//! Grant tables: what a domain lets others do with its frames, versions 1 and 2 of the ABI.
//!
//! Each side has its half. The *granter's* [`GrantTable`] has the frames that it shares with its guest and, for each
//! grant in use, how often it is pinned and as what. The *mapper's* [`Maptrack`] has a handle for each mapping, which
//! says whose grant it is. A pin holds references to the frame, so that it stays the granter's, and writable if it is
//! pinned for writing; the page-table entry of a mapping holds references of its own, as every entry does.
//!
//! Lock order: `Domain::maptrack` of the mapper → `Domain::gnttab` of the granter → the memory manager's. A guest
//! changes its entries at any time: flags change by compare-and-swap, everything else is read once.
//! Source: xen/include/public/grant_table.h.

mod audit;
mod copy;
mod entry;
mod map;
mod maptrack;
mod transfer;
mod unmap;
mod version;

use std::collections::HashMap;

use ring3_abi::grant_table::*;
use ring3_machine::{Machine, Mfn};

pub(crate) use audit::audit;
pub(crate) use copy::{CopyBuffers, copy_one};
pub(crate) use map::Mapper;
pub use maptrack::Maptrack;
pub(crate) use transfer::transfer_one;
pub(crate) use unmap::{UnmapRequest, Unmapped};

use crate::mm::FrameTable;

/// GNTST_* of a refused operation.
pub(crate) type Status<T> = Result<T, i16>;

/// Entries of version 1 are in frames of which there is always one, as the toolstack's reserved entries are.
const INITIAL_FRAMES: u32 = 1;

/// How often a grant in use is pinned, by who reaches the frame (a CPU by a page table, or by bus address) and how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pins {
    host_reads: u32,
    host_writes: u32,
    bus_reads: u32,
    bus_writes: u32,
}

/// Greatest count, as on Xen.
const PIN_LIMIT: u32 = 0x80;

impl Pins {
    fn is_none(self) -> bool {
        self == Self::default()
    }

    fn has_writes(self) -> bool {
        self.host_writes + self.bus_writes != 0
    }

    fn is_full(mut self, flags: u32) -> bool {
        self.counts(flags).any(|count| *count >= PIN_LIMIT)
    }

    fn counts(&mut self, flags: u32) -> impl Iterator<Item = &mut u32> {
        let is_readonly = flags & GNTMAP_readonly != 0;
        let host = if is_readonly { &mut self.host_reads } else { &mut self.host_writes };
        let bus = if is_readonly { &mut self.bus_reads } else { &mut self.bus_writes };
        let wanted = [(GNTMAP_host_map, host), (GNTMAP_device_map, bus)];
        wanted.into_iter().filter(move |(flag, _)| flags & flag != 0).map(|(_, count)| count)
    }
}

/// A grant in use.
#[derive(Clone, Copy, Debug)]
struct Active {
    grantee: u16,
    mfn: Mfn,
    /// The part of the page that may be copied.
    start: u32,
    length: u32,
    is_sub_page: bool,
    pins: Pins,
}

/// The grant table of one domain.
#[derive(Debug)]
pub struct GrantTable {
    version: u32,
    max_version: u32,
    max_frames: u32,
    frames: Vec<Mfn>,
    status_frames: Vec<Mfn>,
    active: HashMap<u32, Active>,
}

impl GrantTable {
    /// An empty table of at most `max_frames` frames.
    pub fn new(max_frames: u32, max_version: u32) -> Self {
        Self {
            version: 1,
            max_version,
            max_frames,
            frames: Vec::new(),
            status_frames: Vec::new(),
            active: HashMap::new(),
        }
    }

    /// Frames in use.
    pub fn frames(&self) -> &[Mfn] {
        &self.frames
    }

    /// Status frames of version 2.
    pub fn status_frames(&self) -> &[Mfn] {
        &self.status_frames
    }

    /// Limit of frames.
    pub fn max_frames(&self) -> u32 {
        self.max_frames
    }

    /// Version of the entries.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Number of grants that somebody has pinned.
    pub fn nr_active(&self) -> usize {
        self.active.len()
    }

    /// Number of entries.
    fn nr_entries(&self) -> u32 {
        let per_frame = if self.version == 1 { GRANT_ENTRIES_V1_PER_FRAME } else { GRANT_ENTRIES_V2_PER_FRAME };
        u32::try_from(self.frames.len()).unwrap_or(0) * per_frame
    }

    /// Grows the table to `nr_frames`, and what version 2 needs beside them.
    ///
    /// # Errors
    /// GNTST_general_error when the limit or machine memory is exhausted; frames that were added stay.
    pub fn grow(&mut self, table: &FrameTable, domid: u16, nr_frames: u32) -> Result<(), i16> {
        let wanted = nr_frames.max(INITIAL_FRAMES.min(self.max_frames));
        if wanted > self.max_frames {
            return Err(GNTST_general_error);
        }
        let nr_status = if self.version == 2 { status_frames_for(wanted) } else { 0 };
        for (frames, nr) in [(&mut self.status_frames, nr_status), (&mut self.frames, wanted)] {
            while (frames.len() as u64) < u64::from(nr) {
                frames.push(table.alloc_shared(domid).map_err(|_| GNTST_general_error)?);
            }
        }
        Ok(())
    }

    /// Forgets the frames, at the end of the domain; their owner's teardown frees them. No grant can be used any more.
    pub fn clear(&mut self) {
        self.frames.clear();
        self.status_frames.clear();
        self.active.clear();
        self.max_frames = 0;
    }

    /// Whether `grantee` has a frame pinned.
    pub(crate) fn is_pinned_by(&self, grantee: u16, mfn: Mfn) -> bool {
        self.active.values().any(|active| active.grantee == grantee && active.mfn == mfn)
    }

    /// Takes back pins; the caller has dropped or drops the references that they held. Clears the flags by which the
    /// guest sees them.
    fn unpin(&mut self, machine: &Machine, gref: u32, flags: u32) {
        let Some(active) = self.active.get_mut(&gref) else { return };
        active.pins.counts(flags).for_each(|count| *count = count.saturating_sub(1));
        self.settle(machine, gref, flags & GNTMAP_readonly != 0);
    }

    /// Makes what the guest sees of an entry agree with its pins, after an access that is over.
    fn settle(&mut self, machine: &Machine, gref: u32, was_readonly: bool) {
        let pins = self.active.get(&gref).map(|active| active.pins).unwrap_or_default();
        let mut cleared = if was_readonly || pins.has_writes() { 0 } else { GTF_writing };
        if pins.is_none() {
            cleared |= GTF_reading;
            self.active.remove(&gref);
        }
        if cleared != 0 {
            self.clear_flags(machine, gref, cleared);
        }
    }
}

const fn status_frames_for(nr_frames: u32) -> u32 {
    (nr_frames * GRANT_ENTRIES_V2_PER_FRAME).div_ceil(GRANT_STATUS_PER_FRAME)
}

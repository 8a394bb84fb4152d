//! The entries that a guest writes: their places, and the flags by which it sees that a grant is in use.

use std::sync::atomic::{AtomicU32, Ordering, fence};

use ring3_abi::grant_table::*;
use ring3_machine::{Machine, Mfn};

use super::{GrantTable, Status};

/// Times that a guest may change an entry under our hands before it counts as hostile.
const MAX_TRIES: u32 = 5;

/// Flags and grantee, which change together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub flags: u16,
    pub domid: u16,
}

impl Header {
    pub(super) fn of(raw: u32) -> Self {
        Self { flags: (raw & 0xffff) as u16, domid: (raw >> 16) as u16 }
    }

    pub(super) fn raw(self) -> u32 {
        u32::from(self.flags) | u32::from(self.domid) << 16
    }

    /// Whether `grantee` may use it so. Grants of a part of a page and transitive ones cannot be mapped.
    fn permits(self, grantee: u16, is_readonly: bool, is_mapping: bool) -> bool {
        let mask = if is_mapping { GTF_type_mask | GTF_sub_page } else { GTF_type_mask };
        self.flags & mask == GTF_permit_access && self.domid == grantee && self.permits_access(is_readonly)
    }

    fn permits_access(self, is_readonly: bool) -> bool {
        is_readonly || self.flags & GTF_readonly == 0
    }
}

/// What an entry grants, read once.
#[derive(Clone, Copy)]
pub(super) struct Granted {
    pub mfn: Mfn,
    pub start: u32,
    pub length: u32,
    pub is_sub_page: bool,
}

impl GrantTable {
    /// Frame and offset of an entry.
    pub(super) fn place(&self, gref: u32) -> Option<(Mfn, usize)> {
        let (per_frame, size) = if self.version == 1 {
            (GRANT_ENTRIES_V1_PER_FRAME, size_of::<grant_entry_v1>())
        } else {
            (GRANT_ENTRIES_V2_PER_FRAME, size_of::<grant_entry_v2>())
        };
        let frame = *self.frames.get((gref / per_frame) as usize)?;
        Some((frame, (gref % per_frame) as usize * size))
    }

    /// The word of 32 bits that holds an entry's header.
    pub(super) fn header_word<'a>(&self, machine: &'a Machine, gref: u32) -> Status<&'a AtomicU32> {
        let (frame, offset) = self.place(gref).ok_or(GNTST_bad_gntref)?;
        machine.word32(frame, offset).map_err(|_| GNTST_bad_gntref)
    }

    /// Frame and offset of the 16 bits with GTF_reading and GTF_writing.
    pub(super) fn status_place(&self, gref: u32) -> Option<(Mfn, usize)> {
        if self.version == 1 {
            return self.place(gref);
        }
        let frame = *self.status_frames.get((gref / GRANT_STATUS_PER_FRAME) as usize)?;
        Some((frame, (gref % GRANT_STATUS_PER_FRAME) as usize * 2))
    }

    /// Clears flags in the status of an entry.
    pub(super) fn clear_flags(&self, machine: &Machine, gref: u32, flags: u16) {
        if let Some((frame, offset)) = self.status_place(gref)
            && let Ok(word) = machine.word16(frame, offset)
        {
            word.fetch_and(!flags, Ordering::SeqCst);
        }
    }

    /// Checks that an entry permits an access, and shows the guest that it is in use. `is_pinned`: it was checked
    /// before, and only writing is new.
    pub(super) fn set_status(
        &self,
        machine: &Machine,
        gref: u32,
        grantee: u16,
        is_readonly: bool,
        is_mapping: bool,
        is_pinned: bool,
    ) -> Status<()> {
        let word = self.header_word(machine, gref)?;
        let permits = |header: Header| {
            if is_pinned {
                header.permits_access(is_readonly)
            } else {
                header.permits(grantee, is_readonly, is_mapping)
            }
        };
        let used = GTF_reading | if is_readonly { 0 } else { GTF_writing };
        let mut header = Header::of(word.load(Ordering::SeqCst));
        if self.version == 2 {
            if !permits(header) {
                return Err(GNTST_general_error);
            }
            let (frame, offset) = self.status_place(gref).ok_or(GNTST_general_error)?;
            let status = machine.word16(frame, offset).map_err(|_| GNTST_general_error)?;
            status.fetch_or(used, Ordering::SeqCst);
            // The guest sees the status before we look again: it revokes in the opposite order.
            fence(Ordering::SeqCst);
            header = Header::of(word.load(Ordering::SeqCst));
            if permits(header) {
                return Ok(());
            }
            status.fetch_and(!if is_pinned { GTF_writing } else { used }, Ordering::SeqCst);
            return Err(GNTST_general_error);
        }
        for _ in 0..MAX_TRIES {
            if !permits(header) {
                return Err(GNTST_general_error);
            }
            let next = Header { flags: header.flags | used, ..header };
            match word.compare_exchange(header.raw(), next.raw(), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Ok(()),
                Err(now) => header = Header::of(now),
            }
        }
        Err(GNTST_general_error)
    }

    /// Reads what an entry grants. Its header permits access: the caller has checked.
    pub(super) fn granted(&self, machine: &Machine, gref: u32) -> Status<Granted> {
        const PAGE: u32 = 4096;
        let (frame, offset) = self.place(gref).ok_or(GNTST_bad_gntref)?;
        let whole = |mfn| Granted { mfn: Mfn(mfn), start: 0, length: PAGE, is_sub_page: false };
        if self.version == 1 {
            let word = machine.word32(frame, offset + 4).map_err(|_| GNTST_bad_gntref)?;
            return Ok(whole(u64::from(word.load(Ordering::SeqCst))));
        }
        let header = Header::of(self.header_word(machine, gref)?.load(Ordering::SeqCst));
        let part = machine.word32(frame, offset + 4).map_err(|_| GNTST_bad_gntref)?.load(Ordering::SeqCst);
        let mfn = machine.word64(frame, offset + 8).map_err(|_| GNTST_bad_gntref)?.load(Ordering::SeqCst);
        if header.flags & GTF_sub_page == 0 {
            return Ok(whole(mfn));
        }
        Ok(Granted { mfn: Mfn(mfn), start: part & 0xffff, length: part >> 16, is_sub_page: true })
    }

    /// Whether an entry of version 2 grants what another domain granted.
    pub(super) fn is_transitive(&self, machine: &Machine, gref: u32) -> bool {
        self.version == 2
            && self
                .header_word(machine, gref)
                .is_ok_and(|word| Header::of(word.load(Ordering::SeqCst)).flags & GTF_type_mask == GTF_transitive)
    }
}

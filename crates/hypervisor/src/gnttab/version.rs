//! GNTTABOP_set_version and GNTTABOP_swap_grant_ref: changes of entries that nobody uses.

use ring3_abi::errno;
use ring3_abi::grant_table::*;
use ring3_machine::Machine;

use super::{GrantTable, Status, status_frames_for};
use crate::mm::FrameTable;

/// A reserved entry, as both versions can say it.
#[derive(Clone, Copy, Default)]
struct Kept {
    flags: u16,
    domid: u16,
    frame: u64,
}

impl GrantTable {
    fn read_kept(&self, machine: &Machine, gref: u32) -> Kept {
        let Some((frame, offset)) = self.place(gref) else { return Kept::default() };
        let word32 =
            |at: usize| machine.word32(frame, offset + at).map_or(0, |w| w.load(std::sync::atomic::Ordering::SeqCst));
        let header = word32(0);
        let mut kept = Kept { flags: (header & 0xffff) as u16, domid: (header >> 16) as u16, frame: 0 };
        if self.version == 1 {
            kept.frame = u64::from(word32(4));
            return kept;
        }
        let mut raw = [0u8; 8];
        let _ = machine.read(frame, offset + 8, &mut raw);
        kept.frame = u64::from_le_bytes(raw);
        kept.flags |= self.status_place(gref).map_or(0, |(frame, offset)| {
            machine.word16(frame, offset).map_or(0, |w| w.load(std::sync::atomic::Ordering::SeqCst))
        });
        kept
    }

    fn write_kept(&self, machine: &Machine, gref: u32, kept: Kept) {
        const IN_USE: u16 = GTF_reading | GTF_writing;
        let Some((frame, offset)) = self.place(gref) else { return };
        if self.version == 1 {
            let entry = grant_entry_v1 {
                flags: kept.flags,
                domid: kept.domid,
                // It fits: `set_version` has looked.
                frame: u32::try_from(kept.frame).unwrap_or(0),
            };
            let _ = machine.write(frame, offset, bytemuck::bytes_of(&entry));
            return;
        }
        if let Some((status_frame, at)) = self.status_place(gref) {
            let _ = machine.write(status_frame, at, &(kept.flags & IN_USE).to_le_bytes());
        }
        let entry = grant_entry_v2 {
            flags: kept.flags & !IN_USE,
            domid: kept.domid,
            frame: kept.frame,
            ..grant_entry_v2::default()
        };
        let _ = machine.write(frame, offset, bytemuck::bytes_of(&entry));
    }

    /// Changes the version of all entries. The reserved ones are kept, and may be in use; all others are cleared.
    ///
    /// # Errors
    /// EINVAL for a version that there is not, ENOSYS for one that the toolstack forbade, EBUSY while grants are in use or
    /// the guest maps status frames that would go, ERANGE for a kept entry that version 1 cannot say, ENOMEM.
    pub(crate) fn set_version(&mut self, frames: &FrameTable, domid: u16, version: u32) -> Result<(), i64> {
        match version {
            1 => {}
            2 if self.max_version < 2 => return Err(errno::ENOSYS),
            2 => {}
            _ => return Err(errno::EINVAL),
        }
        if version == self.version {
            return Ok(());
        }
        if self.active.keys().any(|&gref| gref >= GNTTAB_NR_RESERVED_ENTRIES) {
            return Err(errno::EBUSY);
        }
        let machine = frames.machine();
        let mut kept = [Kept::default(); GNTTAB_NR_RESERVED_ENTRIES as usize];
        for (gref, slot) in (0u32..).zip(&mut kept) {
            *slot = self.read_kept(machine, gref);
            if self.version == 2 {
                let kind = slot.flags & GTF_type_mask;
                if kind == GTF_transitive || kind == GTF_permit_access && slot.frame >> 32 != 0 {
                    return Err(errno::ERANGE);
                }
                if kind != GTF_permit_access {
                    *slot = Kept::default();
                }
            }
        }
        if version == 2 {
            let nr = status_frames_for(u32::try_from(self.frames.len()).unwrap_or(0));
            while self.status_frames.len() < nr as usize {
                self.status_frames.push(frames.alloc_shared(domid).map_err(|_| errno::ENOMEM)?);
            }
        } else {
            let is_mapped = |mfn| frames.info(mfn).is_some_and(|info| info.count > 1);
            if self.status_frames.iter().any(|&mfn| is_mapped(mfn)) {
                return Err(errno::EBUSY);
            }
            self.status_frames.drain(..).for_each(|mfn| frames.free_shared(mfn));
        }
        for &mfn in &self.frames {
            let _ = machine.zero(mfn);
        }
        self.version = version;
        for (gref, &slot) in (0u32..).zip(&kept) {
            self.write_kept(machine, gref, slot);
        }
        Ok(())
    }

    /// Swaps two entries that nobody uses.
    pub(crate) fn swap(&mut self, machine: &Machine, a: u32, b: u32) -> Status<()> {
        if a.max(b) >= self.nr_entries() {
            return Err(GNTST_bad_gntref);
        }
        if a == b {
            return Ok(());
        }
        if self.active.contains_key(&a) || self.active.contains_key(&b) {
            return Err(GNTST_eagain);
        }
        let len = if self.version == 1 { size_of::<grant_entry_v1>() } else { size_of::<grant_entry_v2>() };
        let places = [(self.place(a), self.place(b), len), (self.status_place(a), self.status_place(b), 2)];
        // Of version 1 the status is part of the entry.
        for (from, to, len) in places.into_iter().take(self.version as usize) {
            let (Some(from), Some(to)) = (from, to) else { return Err(GNTST_bad_gntref) };
            let (mut x, mut y) = ([0u8; 16], [0u8; 16]);
            let (Some(x), Some(y)) = (x.get_mut(..len), y.get_mut(..len)) else { return Err(GNTST_general_error) };
            let swapped = machine
                .read(from.0, from.1, x)
                .and_then(|()| machine.read(to.0, to.1, y))
                .and_then(|()| machine.write(from.0, from.1, y))
                .and_then(|()| machine.write(to.0, to.1, x));
            swapped.map_err(|_| GNTST_general_error)?;
        }
        Ok(())
    }
}

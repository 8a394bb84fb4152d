//! References that L1 entries hold.

use std::sync::atomic::Ordering;

use ring3_engine::pte;

use super::entry::{check_bits, is_present};
use super::frame::{FOREIGN, PageType};
use super::{Domid, Error, FrameTable, Result};

impl FrameTable {
    /// Takes the reference for `entry` in a table of `l1_owner`; the frame must be of `pg_owner`.
    ///
    /// # Errors
    /// [`Error::ForbiddenBits`], [`Error::NotMemory`], [`Error::MappingRefused`].
    pub(super) fn get_page_from_l1e(&self, entry: u64, l1_owner: Domid, pg_owner: Domid) -> Result<()> {
        if !is_present(entry) {
            return Ok(());
        }
        check_bits(entry, 1)?;
        let mfn = pte::mfn(entry);
        if mfn.0 >= self.machine.nr_frames() {
            return Err(Error::NotMemory(mfn));
        }
        let taken = if entry & pte::RW == 0 {
            self.get_page(mfn, pg_owner)
        } else {
            self.get_page_and_type(mfn, pg_owner, PageType::Writable)
        };
        taken.map_err(|_| Error::MappingRefused(mfn))?;
        if l1_owner != pg_owner
            && let Ok(frame) = self.frame(mfn)
        {
            frame.word.fetch_or(FOREIGN, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Drops the reference of an entry that was taken out of an L1 table.
    pub(super) fn put_page_from_l1e(&self, entry: u64) {
        if !is_present(entry) {
            return;
        }
        if entry & pte::RW == 0 {
            self.put_page(pte::mfn(entry));
        } else {
            self.put_page_and_type(pte::mfn(entry), PageType::Writable);
        }
    }
}

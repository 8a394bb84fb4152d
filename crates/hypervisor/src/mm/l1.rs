//! References that L1 entries hold.

use std::sync::atomic::Ordering;

use ring3_engine::pte;
use ring3_machine::Mfn;

use super::entry::{check_bits, is_present};
use super::frame::{FOREIGN, PageType, Word};
use super::{Domid, Error, FrameTable, Result};

/// A frame that nobody may map, device or not: all address bits set.
const INVALID: Mfn = pte::mfn(pte::FRAME);

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
        if mfn == INVALID {
            return Err(Error::Invalid("a frame number of all ones"));
        }
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
            self.machine.code().share(mfn);
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

    /// Takes the references of an entry by which a process of domain 0 maps a frame of `pg_owner`, past all page tables and
    /// TLBs.
    ///
    /// # Errors
    /// As for an L1 entry.
    pub fn get_foreign(&self, entry: u64, pg_owner: Domid) -> Result<()> {
        self.get_page_from_l1e(entry, pg_owner, pg_owner)
    }

    /// Drops what [`FrameTable::get_foreign`] took.
    pub fn put_foreign(&self, entry: u64) {
        self.put_page_from_l1e(entry);
    }

    /// Takes the reference that an L1 entry for `mfn` would hold, whoever owns the frame, if the frame may be in
    /// use so. For copies to and from guest memory by linear address on a domain with several vCPUs: walk, hold,
    /// walk again, and copy only if the second walk finds the same frame; it then stays what it is until
    /// [`FrameTable::put_mapped`].
    pub fn hold_mapped(&self, mfn: Mfn, is_write: bool) -> bool {
        let Ok(frame) = self.frame(mfn) else { return false };
        let Some(owner) = Self::owner_of(frame) else { return false };
        if !is_write {
            return self.get_page(mfn, owner).is_ok();
        }
        let word = Word(frame.word.load(Ordering::Acquire));
        word.page_type() == PageType::Writable && self.get_page_and_type(mfn, owner, PageType::Writable).is_ok()
    }

    /// Drops what [`FrameTable::hold_mapped`] took.
    pub fn put_mapped(&self, mfn: Mfn, is_write: bool) {
        if is_write {
            self.put_page_and_type(mfn, PageType::Writable);
        } else {
            self.put_page(mfn);
        }
    }
}

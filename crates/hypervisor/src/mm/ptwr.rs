//! Writable page tables: a guest's store to a read-only mapped L1 table is emulated as a checked update.

use std::sync::atomic::Ordering;

use ring3_engine::pte;
use ring3_machine::{Mfn, PAGE_SIZE_BYTES};

use super::entry::{adjusted, is_present};
use super::frame::{PageType, VALIDATED, Word};
use super::{DomainMm, Error, FrameTable, Result};

impl DomainMm {
    /// The L1 table frame that `va` is mapped to, read-only: a faulting store there may be emulated with
    /// `Vcpu::step`, whose intercept calls [`DomainMm::ptwr_update`].
    pub fn ptwr_target(&self, root: Mfn, va: u64) -> Option<Mfn> {
        let entry = self.l1_entry(root, va).filter(|&entry| entry & pte::RW == 0)?;
        let mfn = pte::mfn(entry);
        let frame = self.table().frame(mfn).ok()?;
        let word = Word(frame.word.load(Ordering::Acquire));
        let is_l1 = word.type_count() != 0 && word.page_type() == PageType::L1 && word.has(VALIDATED);
        (is_l1 && FrameTable::owner_of(frame) == Some(self.domid())).then_some(mfn)
    }

    /// Performs the guest's store of `new` over `old` at `offset` of an L1 table: up to 8 bytes within one entry.
    ///
    /// # Errors
    /// [`Error::Raced`] if the entry is no longer `old` (the guest should run the instruction again), -EINVAL for a
    /// store that is not within an entry or a frame that is no L1 table, else as [`DomainMm::mmu_update`].
    pub fn ptwr_update(&self, mfn: Mfn, offset: usize, old: &[u8], new: &[u8]) -> Result<()> {
        let len = new.len();
        let within = offset % 8;
        if offset >= PAGE_SIZE_BYTES || len == 0 || len != old.len() || within + len > 8 {
            return Err(Error::Invalid("store is not within a page-table entry"));
        }
        let frames = self.table();
        let page_type = frames.hold(mfn, self.domid())?;
        let result = match page_type {
            PageType::L1 => self.replace_l1e(mfn, offset - within, within, old, new),
            _ => Err(Error::TypeInUse(mfn)),
        };
        frames.put_page_and_type(mfn, page_type);
        result
    }

    fn replace_l1e(&self, mfn: Mfn, at: usize, within: usize, old: &[u8], new: &[u8]) -> Result<()> {
        let frames = self.table();
        let word = self.machine().word64(mfn, at).map_err(|_| Error::Invalid("offset"))?;
        let present = word.load(Ordering::Acquire);
        let with = |bytes: &[u8]| {
            let mut image = present.to_le_bytes();
            image[within..within + bytes.len()].copy_from_slice(bytes);
            u64::from_le_bytes(image)
        };
        if with(old) != present {
            return Err(Error::Raced);
        }
        let wanted = self.with_board(with(new))?;
        frames.get_page_from_l1e(wanted, self.domid(), self.domid())?;
        let value = adjusted(wanted, 1);
        if word.compare_exchange(present, value, Ordering::AcqRel, Ordering::Acquire).is_err() {
            if is_present(wanted) {
                frames.put_page_from_l1e(wanted);
            }
            return Err(Error::Raced);
        }
        self.note_change(1, at / 8, present, value);
        frames.wrote(mfn);
        frames.put_page_from_l1e(present);
        Ok(())
    }
}

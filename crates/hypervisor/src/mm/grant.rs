//! L1 entries that grant mappings made: taking them out, and moving an entry with the references it holds.

use std::sync::atomic::Ordering;

use ring3_engine::pte;
use ring3_machine::Mfn;

use super::entry::is_present;
use super::frame::PageType;
use super::{DomainMm, Error, Result, Slot};

/// Bits in which an entry must agree with the grant that made it.
const COMPARED: u64 = pte::FRAME | pte::PRESENT | pte::RW;

impl DomainMm {
    /// Replaces an entry that maps `mfn`, present and with exactly this permission to write, by `new`; the references
    /// of the old entry are dropped, those of `new` are the caller's gift.
    ///
    /// # Errors
    /// [`Error::MappingRefused`] if the entry is another, [`Error::TypeInUse`] if the frame is no L1 table of the
    /// domain's. `new` is then still the caller's.
    pub fn replace_granted(&self, slot: Slot, mfn: Mfn, is_writable: bool, new: u64) -> Result<()> {
        let expected = mfn.address() | pte::PRESENT | if is_writable { pte::RW } else { 0 };
        let old = self.swap_entry(slot, new, |entry| (entry ^ expected) & COMPARED == 0)?;
        self.drop_entry(old);
        Ok(())
    }

    /// Takes an entry out of an L1 table together with the references that it holds.
    ///
    /// # Errors
    /// As [`DomainMm::replace_granted`].
    pub fn steal_entry(&self, slot: Slot) -> Result<u64> {
        self.swap_entry(slot, 0, |_| true)
    }

    /// Drops the references of an entry that is in no table any more.
    pub fn drop_entry(&self, entry: u64) {
        self.table().put_page_from_l1e(entry);
    }

    fn swap_entry(&self, slot: Slot, new: u64, is_expected: impl Fn(u64) -> bool) -> Result<u64> {
        let table = self.table();
        let page_type = table.hold(slot.table, self.domid())?;
        let result = if page_type == PageType::L1 {
            self.swap_l1(slot, new, is_expected)
        } else {
            Err(Error::TypeInUse(slot.table))
        };
        table.put_page_and_type(slot.table, page_type);
        result
    }

    fn swap_l1(&self, slot: Slot, new: u64, is_expected: impl Fn(u64) -> bool) -> Result<u64> {
        let word = self.machine().word64(slot.table, slot.index * 8).map_err(|_| Error::Invalid("slot"))?;
        let mut old = word.load(Ordering::Acquire);
        loop {
            if !is_expected(old) {
                return Err(Error::MappingRefused(pte::mfn(old)));
            }
            match word.compare_exchange_weak(old, new, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break,
                Err(now) => old = now,
            }
        }
        if is_present(old) {
            self.note_change(1, slot.index, old, new);
        }
        self.table().wrote(slot.table);
        Ok(old)
    }
}

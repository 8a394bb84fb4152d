//! Validation of page tables and descriptor pages, and the release of what a page table holds.

use std::sync::atomic::Ordering;

use ring3_engine::pte;
use ring3_machine::Mfn;

use super::entry::{XEN_SLOTS, adjusted, check_bits, is_present};
use super::frame::PageType;
use super::{Domid, Error, FrameTable, Result};

/// Entries of a page table.
pub(super) const NR_ENTRIES: usize = 512;

impl FrameTable {
    /// Checks the contents of a frame against the type it is about to have, takes the references that its entries
    /// hold, and rewrites entries as Xen does. On error no reference is left.
    pub(super) fn validate(&self, mfn: Mfn, owner: Domid, page_type: PageType) -> Result<()> {
        match page_type {
            PageType::SegDesc => self.validate_segdesc(mfn),
            PageType::L1 => self.validate_table(mfn, 1, owner),
            PageType::L2 => self.validate_table(mfn, 2, owner),
            PageType::L3 => self.validate_table(mfn, 3, owner),
            PageType::L4 => self.validate_table(mfn, 4, owner),
            PageType::None | PageType::Writable => Ok(()),
        }
    }

    fn validate_table(&self, table: Mfn, level: u32, owner: Domid) -> Result<()> {
        let entries = self.entries(table)?;
        // The hypervisor's slots: by a linear entry they would be followed as any other.
        let mut has_written = level == 4 && self.clear_xen_slots(table)?;
        let mut result = Ok(());
        let mut nr_done = NR_ENTRIES;
        for (index, entry) in present(&entries, level) {
            if let Err(error) = self.get_page_from_entry(entry, level, table, owner, owner) {
                result = Err(error);
                nr_done = index;
                break;
            }
            let rewritten = adjusted(entry, level);
            if rewritten != entry
                && let Ok(word) = self.machine.word64(table, index * 8)
            {
                word.store(rewritten, Ordering::Release);
                has_written = true;
            }
        }
        if has_written {
            self.wrote(table);
        }
        if result.is_err() {
            self.release_entries(table, level, &entries[..nr_done]);
        }
        result
    }

    /// Returns whether there was anything in them.
    fn clear_xen_slots(&self, table: Mfn) -> Result<bool> {
        let mut was_used = false;
        for index in XEN_SLOTS {
            let word = self.machine.word64(table, index * 8).map_err(|_| Error::NotOwned(table))?;
            was_used |= word.swap(0, Ordering::AcqRel) != 0;
        }
        Ok(was_used)
    }

    /// Drops what a page table holds; its contents stay.
    pub(super) fn invalidate(&self, table: Mfn, page_type: PageType) {
        if let Some(level) = page_type.level()
            && let Ok(entries) = self.entries(table)
        {
            self.release_entries(table, level, &entries);
        }
    }

    fn release_entries(&self, table: Mfn, level: u32, entries: &[u64]) {
        for (_, entry) in present(entries, level) {
            self.put_page_from_entry(entry, level, table);
        }
    }

    /// A copy of a table that is typed but not validated: nobody can change it meanwhile, A/D bits aside.
    pub(super) fn entries(&self, table: Mfn) -> Result<[u64; NR_ENTRIES]> {
        let mut entries = [0; NR_ENTRIES];
        self.machine.read(table, 0, bytemuck::bytes_of_mut(&mut entries)).map_err(|_| Error::NotOwned(table))?;
        Ok(entries)
    }

    /// Takes the references of a present entry in `table`, a table of `level` and of domain `owner`. Only L1 entries
    /// may map frames of another domain, `pg_owner`.
    pub(super) fn get_page_from_entry(
        &self,
        entry: u64,
        level: u32,
        table: Mfn,
        owner: Domid,
        pg_owner: Domid,
    ) -> Result<()> {
        if level == 1 {
            return self.get_page_from_l1e(entry, owner, pg_owner);
        }
        check_bits(entry, level)?;
        let child = pte::mfn(entry);
        let child_type = PageType::table(level - 1).ok_or(Error::Invalid("level"))?;
        match self.get_page_and_type(child, owner, child_type) {
            Err(Error::TypeInUse(at)) if at == child => {
                self.get_linear(entry, level, table, owner, Error::TypeInUse(child))
            }
            taken => taken,
        }
    }

    /// Drops the references of an entry that was taken out of `table`.
    pub(super) fn put_page_from_entry(&self, entry: u64, level: u32, table: Mfn) {
        let child = pte::mfn(entry);
        match PageType::table(level - 1) {
            _ if !is_present(entry) => {}
            None => self.put_page_from_l1e(entry),
            // A linear entry of itself, which holds nothing.
            Some(_) if child == table => {}
            Some(child_type) => {
                let page_type = self.take_out_of(table, child, level).unwrap_or(child_type);
                self.put_page_and_type(child, page_type);
            }
        }
    }
}

/// The present entries of the guest's own slots.
pub(super) fn present(entries: &[u64], level: u32) -> impl Iterator<Item = (usize, u64)> {
    // Most tables are sparse: eight entries, a cache line, are passed over at once.
    let is_guest = move |index: &usize| level != 4 || !XEN_SLOTS.contains(index);
    entries
        .chunks(8)
        .enumerate()
        .filter(|(_, line)| line.iter().fold(0, |or, entry| or | entry) & pte::PRESENT != 0)
        .flat_map(move |(nr, line)| {
            line.iter()
                .enumerate()
                .map(move |(i, &entry)| (nr * 8 + i, entry))
                .filter(move |(index, entry)| is_present(*entry) && is_guest(index))
        })
}

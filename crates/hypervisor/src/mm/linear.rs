//! Linear page tables: a table as one of the next lower level, of itself or of its like, read-only (NetBSD's recursive
//! mapping). Xen's rules: a table that uses others so is not used so, and the other way round; so there are no circles.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};

use parking_lot::Mutex;
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::frame::PageType;
use super::{Domid, Error, FrameTable, Result};

/// The linear entries of all tables. Few domains have any.
#[derive(Debug)]
pub(super) struct Linear {
    /// By table: how many entries it has that lead to its like; below zero: how many such entries lead to it.
    counts: Mutex<HashMap<Mfn, i64>>,
    /// By domid: whether it ever had one.
    users: Box<[AtomicU8]>,
}

impl Linear {
    pub fn new() -> Result<Self> {
        let users =
            bytemuck::allocation::try_zeroed_slice_box(1 << 15).map_err(|()| Error::NoMemory("linear tables"))?;
        Ok(Self { counts: Mutex::default(), users })
    }

    /// Counts one more entry of `table` that leads to `child`, if that may be.
    fn enter(&self, table: Mfn, child: Mfn) -> bool {
        let mut counts = self.counts.lock();
        let count = |mfn| counts.get(&mfn).copied().unwrap_or_default();
        let (entries, uses) = (count(table), count(child));
        if entries < 0 || uses > 0 {
            return false;
        }
        counts.insert(table, entries + 1);
        counts.insert(child, uses - 1);
        true
    }

    /// Whether these are the entries that there are.
    pub fn agrees(&self, found: &HashMap<Mfn, i64>) -> bool {
        *self.counts.lock() == *found
    }

    fn leave(&self, table: Mfn, child: Mfn) {
        let mut counts = self.counts.lock();
        for (mfn, step) in [(table, -1), (child, 1)] {
            let count = counts.get(&mfn).copied().unwrap_or_default() + step;
            if count == 0 {
                counts.remove(&mfn)
            } else {
                counts.insert(mfn, count)
            };
        }
    }
}

impl FrameTable {
    /// Takes the references of an entry in `table` that leads to a table of the same level, `level`; `refused` is why it
    /// cannot be an ordinary one.
    pub(super) fn get_linear(&self, entry: u64, level: u32, table: Mfn, owner: Domid, refused: Error) -> Result<()> {
        let child = pte::mfn(entry);
        let (true, Some(page_type)) = (entry & pte::RW == 0, PageType::table(level)) else { return Err(refused) };
        // Itself: no reference, because the entry cannot outlive the table.
        if child != table {
            if !self.take_validated(child, owner, page_type) {
                return Err(refused);
            }
            if !self.linear.enter(table, child) {
                self.put_page_and_type(child, page_type);
                return Err(refused);
            }
        }
        if let Some(user) = self.linear.users.get(usize::from(owner)) {
            user.store(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Whether an entry whose references are held leads to a table of its own table's level.
    pub(super) fn is_linear(&self, child: Mfn, level: u32) -> bool {
        self.info(child).is_some_and(|info| Some(info.page_type) == PageType::table(level))
    }

    /// Takes an entry out of `table` that leads to `child`: the type of which it holds references, if it is linear.
    pub(super) fn take_out_of(&self, table: Mfn, child: Mfn, level: u32) -> Option<PageType> {
        let page_type = PageType::table(level).filter(|_| self.is_linear(child, level))?;
        self.linear.leave(table, child);
        Some(page_type)
    }

    /// Whether entries of a domain's upper tables may have been used as those of pages.
    pub(super) fn has_linear(&self, domid: Domid) -> bool {
        self.linear.users.get(usize::from(domid)).is_some_and(|user| user.load(Ordering::SeqCst) != 0)
    }

    /// Forgets a domain that is gone.
    pub(super) fn forget_linear(&self, domid: Domid) {
        if let Some(user) = self.linear.users.get(usize::from(domid)) {
            user.store(0, Ordering::SeqCst);
        }
    }
}

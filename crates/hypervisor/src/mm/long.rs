//! Long operations in pieces: the validation of a tree of tables before it is used, and the release of one that is not
//! used any more. A vCPU that is wanted elsewhere stops between two tables, and goes on when its hypercall is made again.
//!
//! All that a stopped operation leaves are references: to tables that are valid already, bottom up, or to ones that are to
//! be let go, top down. So nobody waits for it, and who never comes back only holds what is its own.

use ring3_engine::pte;
use ring3_machine::Mfn;

use super::entry::{check_bits, is_present};
use super::frame::{PageType, VALIDATED, Word};
use super::validate::present;
use super::{DomainMm, Domid, Error, FrameTable, Held, Result, Slot};

/// What a vCPU holds in the middle of an operation.
#[derive(Debug, Default)]
pub struct LongWork {
    /// The table that is to become one.
    goal: Option<(Mfn, PageType)>,
    /// Tables below it, children before their parents.
    made: Vec<(Mfn, PageType)>,
    /// References that are to be dropped, the next one last.
    dropped: Vec<(Mfn, PageType)>,
}

/// How far a preparation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prepared {
    All,
    /// Something is wrong: the operation itself will find what.
    Refused,
    Stopped,
}

impl LongWork {
    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.goal.is_none() && self.made.is_empty() && self.dropped.is_empty()
    }

    /// Whether nothing is left but what is to be dropped.
    pub fn is_draining(&self) -> bool {
        self.goal.is_none() && self.made.is_empty() && !self.dropped.is_empty()
    }

    /// The goal was reached, or given up: what was made for it is to be dropped.
    pub fn finish(&mut self) {
        self.goal = None;
        self.dropped.append(&mut self.made);
    }

    /// Has references to a frame dropped.
    pub(super) fn drop_later(&mut self, mfn: Mfn, page_type: PageType) {
        self.dropped.push((mfn, page_type));
    }

    /// Adds what is held.
    pub(crate) fn hold(&self, held: &mut Held) {
        self.made.iter().chain(&self.dropped).for_each(|&(mfn, _)| held.typed_by(mfn, "a long operation"));
    }
}

impl FrameTable {
    /// Makes everything below `goal` valid that it needs to become a table of `page_type`, as far as nothing is wrong with
    /// it. `false`: stopped, after a piece at least; the caller comes again with the same goal.
    pub fn prepare(
        &self,
        work: &mut LongWork,
        goal: Mfn,
        owner: Domid,
        page_type: PageType,
        stop: &mut dyn FnMut() -> bool,
    ) -> bool {
        if work.goal != Some((goal, page_type)) {
            work.finish();
            work.goal = Some((goal, page_type));
        }
        let level = page_type.level().unwrap_or(1);
        self.prepare_below(work, goal, owner, level, stop) != Prepared::Stopped
    }

    fn prepare_below(
        &self,
        work: &mut LongWork,
        table: Mfn,
        owner: Domid,
        level: u32,
        stop: &mut dyn FnMut() -> bool,
    ) -> Prepared {
        let Some(child_type) = PageType::table(level - 1).filter(|_| !self.is_valid(table, level)) else {
            return Prepared::All;
        };
        let Ok(entries) = self.entries(table) else { return Prepared::Refused };
        for (_, entry) in present(&entries, level) {
            let child = pte::mfn(entry);
            if child == table || self.is_valid(child, level - 1) || self.is_valid(child, level) {
                continue;
            }
            if check_bits(entry, level).is_err() {
                return Prepared::Refused;
            }
            match self.prepare_below(work, child, owner, level - 1, stop) {
                Prepared::All => {}
                other => return other,
            }
            if self.get_page_and_type(child, owner, child_type).is_err() {
                return Prepared::Refused;
            }
            work.made.push((child, child_type));
            if stop() {
                return Prepared::Stopped;
            }
        }
        Prepared::All
    }

    fn is_valid(&self, mfn: Mfn, level: u32) -> bool {
        self.info(mfn).is_some_and(|info| {
            info.type_count != 0 && info.is_validated && Some(info.page_type) == PageType::table(level)
        })
    }

    /// Takes references to what was prepared. Tables were made bottom up: an entry that maps a table above it writable has
    /// been let in then, and stands in the way of what Xen would find, from the top down. So it is looked at once more.
    pub(super) fn get_prepared(&self, work: &mut LongWork, get: impl Fn() -> Result<()>) -> Result<()> {
        match get() {
            Err(Error::TypeInUse(_)) if !work.made.is_empty() => {
                self.drain_all(work);
                get()
            }
            result => result,
        }
    }

    /// Drops what is to be dropped. `false`: stopped, after a piece at least; the caller comes again.
    pub fn drain(&self, work: &mut LongWork, stop: &mut dyn FnMut() -> bool) -> bool {
        while let Some((mfn, page_type)) = work.dropped.pop() {
            self.hold_children(mfn, page_type, work);
            self.put_page_and_type(mfn, page_type);
            if !work.dropped.is_empty() && stop() {
                return false;
            }
        }
        true
    }

    /// Ends an operation that does not stop.
    pub fn drain_all(&self, work: &mut LongWork) {
        work.finish();
        self.drain(work, &mut || false);
    }

    /// Takes references to the tables that a table leads to, if it is about to lose its last: they go after it, each by
    /// itself. What somebody links or takes away meanwhile is only done in one piece then.
    fn hold_children(&self, table: Mfn, page_type: PageType, work: &mut LongWork) {
        let Some(level @ 2..=4) = page_type.level() else { return };
        let Ok(frame) = self.frame(table) else { return };
        let word = Word(frame.word.load(std::sync::atomic::Ordering::Acquire));
        let (1, true, Some(owner), Ok(entries)) =
            (word.type_count(), word.has(VALIDATED), Self::owner_of(frame), self.entries(table))
        else {
            return;
        };
        for (_, entry) in present(&entries, level) {
            let child = pte::mfn(entry);
            let types = [PageType::table(level - 1), PageType::table(level)];
            let taken = types
                .into_iter()
                .flatten()
                .find(|&child_type| child != table && self.take_validated(child, owner, child_type));
            work.dropped.extend(taken.map(|child_type| (child, child_type)));
        }
    }

    /// Drops the references of an entry that was taken out of a table, those of a table later.
    pub(super) fn put_entry_later(&self, entry: u64, level: u32, table: Mfn, work: &mut LongWork) {
        let child = pte::mfn(entry);
        match PageType::table(level - 1) {
            Some(child_type) if is_present(entry) && child != table => {
                let page_type = self.take_out_of(table, child, level).unwrap_or(child_type);
                work.drop_later(child, page_type);
            }
            _ => self.put_page_from_entry(entry, level, table),
        }
    }
}

impl DomainMm {
    /// Prepares a request of mmu_update, as [`FrameTable::prepare`].
    pub fn prepare_update(&self, ptr: u64, val: u64, work: &mut LongWork, stop: &mut dyn FnMut() -> bool) -> bool {
        let slot = Slot::at(ptr);
        let info =
            self.table().info(slot.table).filter(|info| info.owner == Some(self.domid()) && info.type_count != 0);
        let Some(level @ 3..=4) = info.and_then(|info| info.page_type.level()) else { return true };
        let is_table = is_present(val) && check_bits(val, level).is_ok() && ptr & 7 != 1;
        match PageType::table(level - 1).filter(|_| is_table) {
            Some(child_type) => self.table().prepare(work, pte::mfn(val), self.domid(), child_type, stop),
            None => true,
        }
    }

    /// Prepares the use of a table of a level, as [`FrameTable::prepare`].
    pub fn prepare_table(&self, level: u32, mfn: Mfn, work: &mut LongWork, stop: &mut dyn FnMut() -> bool) -> bool {
        let is_own = self.table().info(mfn).is_some_and(|info| info.owner == Some(self.domid()));
        match PageType::table(level).filter(|_| is_own) {
            Some(page_type) => self.table().prepare(work, mfn, self.domid(), page_type, stop),
            None => true,
        }
    }

    /// Prepares both roots of a vCPU, as [`FrameTable::prepare`]; frame 0 as user root is none.
    pub fn prepare_roots(&self, [kernel, user]: [Mfn; 2], work: &mut LongWork, stop: &mut dyn FnMut() -> bool) -> bool {
        let table = self.table();
        let is_own = |mfn| table.info(mfn).is_some_and(|info| info.owner == Some(self.domid()));
        if !is_own(kernel) || !table.prepare(work, kernel, self.domid(), PageType::L4, stop) {
            return !is_own(kernel);
        }
        if user == kernel || !is_own(user) {
            return true;
        }
        // What was made for the first one stays while the second is made.
        if !table.is_valid(kernel, 4) && table.get_page_and_type(kernel, self.domid(), PageType::L4).is_ok() {
            work.made.push((kernel, PageType::L4));
        }
        table.prepare_below(work, user, self.domid(), 4, stop) != Prepared::Stopped
    }

    /// [`DomainMm::mmu_update`] at once.
    ///
    /// # Errors
    /// The same.
    pub fn mmu_update(&self, caller: Domid, pg_owner: Domid, ptr: u64, val: u64) -> Result<()> {
        self.at_once(|work| self.mmu_update_in(caller, pg_owner, ptr, val, work))
    }

    /// [`DomainMm::pin_table_in`] at once.
    ///
    /// # Errors
    /// The same.
    pub fn pin_table(&self, level: u32, mfn: Mfn) -> Result<()> {
        self.at_once(|work| self.pin_table_in(level, mfn, work))
    }

    /// [`DomainMm::unpin_table_in`] at once.
    ///
    /// # Errors
    /// The same.
    pub fn unpin_table(&self, mfn: Mfn) -> Result<()> {
        self.at_once(|work| self.unpin_table_in(mfn, work))
    }

    /// [`DomainMm::new_baseptr_in`] at once.
    ///
    /// # Errors
    /// The same.
    pub fn new_baseptr(&self, old: Mfn, new: Mfn) -> Result<()> {
        self.at_once(|work| self.new_baseptr_in(old, new, work))
    }

    /// [`DomainMm::new_user_baseptr_in`] at once.
    ///
    /// # Errors
    /// The same.
    pub fn new_user_baseptr(&self, old: Mfn, new: Mfn) -> Result<()> {
        self.at_once(|work| self.new_user_baseptr_in(old, new, work))
    }

    fn at_once<T>(&self, operation: impl FnOnce(&mut LongWork) -> T) -> T {
        let mut work = LongWork::default();
        let result = operation(&mut work);
        self.table().drain_all(&mut work);
        result
    }
}

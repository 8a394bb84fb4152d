//! Changes of page-table entries: mmu_update, update_va_mapping.

use std::sync::atomic::{AtomicU64, Ordering};

use ring3_abi::xen::{
    MMU_MACHPHYS_UPDATE, MMU_NORMAL_PT_UPDATE, MMU_PT_UPDATE_NO_TRANSLATE, MMU_PT_UPDATE_PRESERVE_AD,
};
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::entry::{GUEST_KERNEL, XEN_SLOTS, adjusted, can_leave_stale, check_bits, is_present, maps_the_same};
use super::frame::PageType;
use super::walk::l1_slot;
use super::{DomainMm, Domid, Error, LongWork, Result, Slot};

const ACCESSED_DIRTY: u64 = pte::ACCESSED | pte::DIRTY;

impl DomainMm {
    /// One request of mmu_update on page tables of this domain (PFD). `pg_owner` is the domain whose frames an
    /// L1 entry may map (FD); `caller` is who asks. The caller of this function has resolved and authorised both.
    ///
    /// # Errors
    /// Xen's: -EINVAL for a frame that is not the domain's or an entry that fails validation, -EBUSY for an L1
    /// entry whose frame may not be mapped so, -EPERM, -ENOSYS. The old entry is then unchanged.
    pub fn mmu_update_in(&self, caller: Domid, pg_owner: Domid, ptr: u64, val: u64, work: &mut LongWork) -> Result<()> {
        match ptr & 7 {
            command @ (MMU_NORMAL_PT_UPDATE | MMU_PT_UPDATE_PRESERVE_AD | MMU_PT_UPDATE_NO_TRANSLATE) => {
                self.update_entry(Slot::at(ptr), val, pg_owner, command == MMU_PT_UPDATE_PRESERVE_AD, work)
            }
            MMU_MACHPHYS_UPDATE => {
                if caller != self.domid() {
                    return Err(Error::NotPermitted("MMU_MACHPHYS_UPDATE with a foreign page-table owner"));
                }
                self.machphys_update(pg_owner, Mfn::containing(ptr), val)
            }
            command => Err(Error::NoSuchCommand(command)),
        }
    }

    fn machphys_update(&self, pg_owner: Domid, mfn: Mfn, pfn: u64) -> Result<()> {
        let table = self.table();
        table.get_page(mfn, pg_owner)?;
        table.set_m2p(mfn, pfn);
        table.put_page(mfn);
        Ok(())
    }

    /// Stores an entry: checked if the frame is a page table, plainly if it is ordinary memory.
    fn update_entry(
        &self,
        slot: Slot,
        val: u64,
        pg_owner: Domid,
        preserve_ad: bool,
        work: &mut LongWork,
    ) -> Result<()> {
        let page_type = self.table().hold(slot.table, self.domid())?;
        let result = match page_type {
            PageType::L1 => self.modify(slot, 1, val, pg_owner, preserve_ad, work),
            PageType::L2 | PageType::L3 | PageType::L4 if pg_owner == self.domid() => {
                self.modify(slot, page_type as u32, val, pg_owner, preserve_ad, work)
            }
            PageType::Writable => self.store(slot, val),
            _ => Err(Error::TypeInUse(slot.table)),
        };
        self.table().put_page_and_type(slot.table, page_type);
        result
    }

    fn store(&self, slot: Slot, val: u64) -> Result<()> {
        let word = self.machine().word64(slot.table, slot.index * 8).map_err(|_| Error::Invalid("slot"))?;
        word.store(val, Ordering::Release);
        self.table().wrote(slot.table);
        Ok(())
    }

    /// Changes an entry of a table of `level`, whose type the caller holds.
    fn modify(
        &self,
        slot: Slot,
        level: u32,
        new: u64,
        pg_owner: Domid,
        preserve_ad: bool,
        work: &mut LongWork,
    ) -> Result<()> {
        let Slot { table, index } = slot;
        if level == 4 && XEN_SLOTS.contains(&index) {
            return Err(Error::Invalid("L4 slot of the hypervisor"));
        }
        let frames = self.table();
        let word = self.machine().word64(table, index * 8).map_err(|_| Error::Invalid("slot"))?;
        let new = if level == 1 && pg_owner == self.domid() { self.with_board(new)? } else { new };
        let value = adjusted(new, level);
        let kept = if preserve_ad { ACCESSED_DIRTY } else { 0 };
        let mut old = word.load(Ordering::Acquire);
        if is_present(new) {
            check_bits(new, level)?;
            while maps_the_same(old, new) {
                match word.compare_exchange_weak(old, value | old & kept, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => {
                        self.note_change(level, index, old, value);
                        frames.wrote(table);
                        return Ok(());
                    }
                    Err(now) => old = now,
                }
            }
            frames.get_prepared(work, || frames.get_page_from_entry(new, level, table, self.domid(), pg_owner))?;
        }
        // Compare and swap: the engines set accessed and dirty bits at any time, and of two vCPUs that replace the
        // same entry each must drop exactly what it took out.
        while let Err(now) = word.compare_exchange_weak(old, value | old & kept, Ordering::AcqRel, Ordering::Acquire) {
            old = now;
        }
        self.note_change(level, index, old, value);
        frames.wrote(table);
        frames.put_entry_later(old, level, table, work);
        Ok(())
    }

    /// Notes changes that may leave stale translations of the upper half.
    pub(super) fn note_change(&self, level: u32, index: usize, old: u64, new: u64) {
        if !can_leave_stale(old, new) {
            return;
        }
        // Where there are linear tables, an entry of any table may have been one of a page somewhere else.
        let is_linear = level > 1 && self.table().has_linear(self.domid());
        if is_linear || self.concerns_upper_half(level, index, old) {
            if level == 1 { self.upper.note_level1(index, old) } else { self.upper.note_table() }
        }
    }

    /// Whether a present entry that changes may have led to translations of the upper half: by the kernel's mark at
    /// level 1, by the slot at level 4. Between them the table does not tell its half, but what lies under the entry
    /// does: what was taken out from there before was counted then.
    fn concerns_upper_half(&self, level: u32, index: usize, old: u64) -> bool {
        let under = |wanted: u64| {
            let child = pte::mfn(old);
            (0..512).any(|i| self.machine().entry(child, i).is_ok_and(|entry| entry & wanted == wanted))
        };
        match level {
            1 => old & GUEST_KERNEL != 0,
            2 => under(pte::PRESENT | GUEST_KERNEL),
            3 => under(pte::PRESENT),
            _ => index >= XEN_SLOTS.end,
        }
    }

    /// Whether two roots have the same entries in the upper half of the address space, accessed bits aside.
    pub fn shares_upper_half(&self, a: Mfn, b: Mfn) -> bool {
        let (Ok(one), Ok(other)) = (self.machine().words(a), self.machine().words(b)) else { return false };
        let differ = |(x, y): (&AtomicU64, &AtomicU64)| {
            (x.load(Ordering::Acquire) ^ y.load(Ordering::Acquire)) & !pte::ACCESSED != 0
        };
        a == b || !one.iter().zip(other).skip(XEN_SLOTS.end).any(differ)
    }

    /// Where the L1 entry for `va` is, if the upper levels are present.
    pub fn l1_slot(&self, root: Mfn, va: u64) -> Option<Slot> {
        l1_slot(self.machine(), root, va)
    }

    /// Replaces an entry of a frame that must be in use as an L1 table; `pg_owner` as for [`DomainMm::mmu_update`].
    /// Also for grant mappings: the entry holds references of its own.
    ///
    /// # Errors
    /// As [`DomainMm::mmu_update`].
    pub fn update_l1(&self, slot: Slot, val: u64, pg_owner: Domid) -> Result<()> {
        let page_type = self.table().hold(slot.table, self.domid())?;
        let result = match page_type {
            // Level 1 leads to no table: there is nothing to be done later.
            PageType::L1 => self.modify(slot, 1, val, pg_owner, false, &mut LongWork::default()),
            _ => Err(Error::TypeInUse(slot.table)),
        };
        self.table().put_page_and_type(slot.table, page_type);
        result
    }

    /// update_va_mapping in the address space `root`. Flushing as the flags ask is the caller's, on success.
    ///
    /// # Errors
    /// -EINVAL if no L1 table maps the address, else as [`DomainMm::mmu_update`].
    pub fn update_va_mapping(&self, root: Mfn, va: u64, val: u64, pg_owner: Domid) -> Result<()> {
        let slot = self.l1_slot(root, va).ok_or(Error::Invalid("no L1 table maps the address"))?;
        self.update_l1(slot, val, pg_owner)
    }

    /// The present L1 entry for `va`, as it is in the table.
    pub fn l1_entry(&self, root: Mfn, va: u64) -> Option<u64> {
        let slot = self.l1_slot(root, va)?;
        self.machine().entry(slot.table, slot.index).ok().filter(|&entry| is_present(entry))
    }
}

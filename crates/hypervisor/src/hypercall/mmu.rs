//! mmu_update and update_va_mapping.

use std::sync::Arc;

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_mmu_update;
use ring3_abi::xen::*;
use ring3_engine::{Flush, GuestMode, Requests};

use super::batch::Batch;
use super::{Caller, HypercallResult, Served};
use crate::domain::{Connection, Domain};
use crate::mm::LongWork;
use crate::vcpu::bounce::Running;

/// The domains that an update is about.
struct Owners {
    /// PFD, whose tables change; `None` is the caller.
    tables: Option<Arc<Domain>>,
    /// FD, whose frames may be mapped.
    pages: u16,
    /// Whether the caller may do with these tables, and with these frames, what it likes.
    may_use: [bool; 2],
}

const MMU_UPDATE_BYTES: u64 = size_of::<mmu_update>() as u64;

/// Number of requests between looks at whether the pCPU is wanted.
const PREEMPT_MASK: u32 = 63;

impl Caller<'_> {
    /// FD of mmu_update, mmuext_op and update_va_mapping_otherdomain. Whether the caller may use its frames is another
    /// question.
    ///
    /// # Errors
    /// ESRCH, also for the caller by number: it is no other domain.
    pub(super) fn page_owner(&self, foreigndom: u16) -> Result<u16, i64> {
        match foreigndom {
            DOMID_SELF => Ok(self.domain.domid),
            DOMID_IO | DOMID_XEN => Ok(foreigndom),
            domid if domid == self.domain.domid => Err(errno::ESRCH),
            domid => self.hv.domain(domid).map(|domain| domain.domid).ok_or(errno::ESRCH),
        }
    }

    /// Whether the caller may use what belongs to a domain.
    pub(super) fn may_use(&self, owner: u16) -> bool {
        owner == self.domain.domid || self.domain.is_privileged
    }

    /// PFD; `None` is the caller.
    fn tables_owner(&self, foreigndom: u32) -> Result<Option<Arc<Domain>>, i64> {
        match foreigndom >> 16 {
            0 => Ok(None),
            x => {
                let found = u16::try_from(x - 1).ok().and_then(|domid| self.hv.domain(domid));
                found.map(Some).ok_or(errno::ESRCH)
            }
        }
    }

    fn owners(&self, tables: Option<Arc<Domain>>, foreigndom: u32) -> Result<Owners, i64> {
        let pages = self.page_owner((foreigndom & 0xffff) as u16)?;
        let may_use_tables = tables.as_ref().is_none_or(|domain| self.may_use(domain.domid));
        Ok(Owners { tables, pages, may_use: [may_use_tables, self.may_use(pages)] })
    }

    /// Makes one request; `false` if it was stopped half way, and is to be made again.
    fn one_update(
        &self,
        owners: &Owners,
        handle: u64,
        index: u32,
        work: &mut LongWork,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<bool, i64> {
        let request: mmu_update = self.read(Self::element::<mmu_update>(handle, u64::from(index)))?;
        self.hv.table.count(__HYPERVISOR_mmu_update, (request.ptr & 3) as u32);
        let [may_use_tables, may_use_pages] = owners.may_use;
        let is_allowed = match request.ptr & 7 {
            MMU_MACHPHYS_UPDATE => may_use_pages || owners.pages == DOMID_IO,
            0..=3 => may_use_tables && (may_use_pages || owners.pages == DOMID_IO),
            _ => true,
        };
        if !is_allowed {
            return Err(errno::EPERM);
        }
        let tables = owners.tables.as_deref().unwrap_or(self.domain);
        if !tables.mm.prepare_update(request.ptr, request.val, work, stop) {
            return Ok(false);
        }
        let (caller, pages) = (self.domain.domid, owners.pages);
        let result = tables.mm.mmu_update_in(caller, pages, request.ptr, request.val, work);
        work.finish();
        result.map(|()| true).map_err(|e| -e.errno())
    }

    /// mmu_update without preemption, for dom0 processes.
    pub(super) fn mmu_update_all(&self, handle: u64, count: u32, pdone: u64, foreigndom: u32) -> HypercallResult {
        let owners = self.owners(self.tables_owner(foreigndom)?, foreigndom)?;
        self.all_requests(count, pdone, |index, work| {
            self.one_update(&owners, handle, index, work, &mut || false).map(|_| ())
        })
    }
}

impl Caller<'_> {
    /// update_va_mapping_otherdomain of a dom0 process. What it has cached of the old entry is its own affair.
    pub(super) fn map_foreign(&self, connection: &Connection, va: u64, val: u64, domid: u32) -> HypercallResult {
        let owner = self.page_owner((domid & 0xffff) as u16)?;
        self.hv.map_foreign(connection, va, val, owner).map(|()| 0).map_err(|e| -e.errno())
    }
}

impl Running<'_> {
    /// mmu_update.
    pub(super) fn mmu_update(&mut self, handle: u64, count: u32, pdone: u64, foreigndom: u32) -> Served {
        if let Some(served) = self.begin_batch(handle, count, foreigndom) {
            return served;
        }
        let caller = Caller::of_guest(self);
        let before = Batch::done_before(&caller, count, pdone);
        let count = count & !MMU_UPDATE_PREEMPTED;
        let checked = caller.check_array(handle, u64::from(count), MMU_UPDATE_BYTES);
        let tables = match checked.and_then(|()| caller.tables_owner(foreigndom)) {
            Ok(tables) => tables,
            Err(errno) => return Served::Done(-errno),
        };
        let owners = match caller.owners(tables, foreigndom) {
            Ok(owners) => owners,
            Err(errno) => {
                let _ = caller.write(pdone, &before);
                return Served::Done(-errno);
            }
        };
        let vcpu = self.vcpu;
        let mut stop = || vcpu.is_wanted_elsewhere();
        let mut batch = Batch::new(self, count, before);
        while batch.goes_on(PREEMPT_MASK, &mut stop) {
            let made = caller.one_update(&owners, handle, batch.done, &mut batch.work, &mut stop);
            batch.note(made);
        }
        let next = Caller::element::<mmu_update>(handle, u64::from(batch.done));
        batch.end(self, next, pdone, foreigndom)
    }

    /// update_va_mapping.
    pub(super) fn update_va_mapping(&mut self, va: u64, val: u64, flags: u64) -> HypercallResult {
        self.change_mapping(va, val, flags, self.domain.domid)
    }

    /// update_va_mapping_otherdomain: maps a frame of another domain.
    pub(super) fn update_va_mapping_otherdomain(
        &mut self,
        va: u64,
        val: u64,
        flags: u64,
        domid: u64,
    ) -> HypercallResult {
        let caller = Caller::of_guest(self);
        let owner = caller.page_owner((domid & 0xffff) as u16)?;
        if !caller.may_use(owner) {
            return Err(errno::EPERM);
        }
        self.change_mapping(va, val, flags, owner)
    }

    fn change_mapping(&mut self, va: u64, val: u64, flags: u64, owner: u16) -> HypercallResult {
        let root = self.state.root(GuestMode::Kernel);
        let before = self.domain.mm.upper_changes();
        self.domain.mm.update_va_mapping(root, va, val, owner).map_err(|e| -e.errno())?;
        let after = self.domain.mm.upper_changes();
        if after != before {
            // Flushed here whether asked or not, so that the next change of root need not flush everything.
            self.state.cpu.flush(Flush::Page(va));
            if self.state.upper_seen == before && after == before + 1 {
                self.state.upper_seen = after;
            }
        }
        let targets = flags & !UVMF_FLUSHTYPE_MASK;
        match flags & UVMF_FLUSHTYPE_MASK {
            UVMF_TLB_FLUSH => self.flush_targets(targets, Flush::All)?,
            UVMF_INVLPG => self.flush_targets(targets, Flush::Page(va))?,
            _ => {}
        }
        Ok(0)
    }

    /// UVMF_LOCAL (0), UVMF_ALL, or a pointer to a vCPU bitmap.
    fn flush_targets(&mut self, targets: u64, what: Flush) -> Result<(), i64> {
        match targets {
            0 => self.flush_local(what),
            UVMF_ALL => self.flush_vcpus(u128::MAX, what),
            pointer => {
                let mask = self.read_vcpu_mask(pointer)?;
                self.flush_vcpus(mask, what);
            }
        }
        Ok(())
    }

    /// Flushes this vCPU. Of a whole flush, what cannot be stale of the upper half is left out.
    pub(super) fn flush_local(&mut self, what: Flush) {
        if what == Flush::All {
            self.flush_stale();
        } else {
            self.state.cpu.flush(what);
        }
    }

    /// Drops what this vCPU cached of everything but the upper half, and of that what may be stale.
    pub(super) fn flush_stale(&mut self) {
        let (stale, now) = self.domain.mm.stale_since(self.state.upper_seen);
        match stale {
            Some(slots) => {
                self.state.cpu.flush(Flush::LowerHalf);
                slots.iter().for_each(|flush| self.state.cpu.flush(flush));
            }
            None => self.state.cpu.flush(Flush::All),
        }
        self.state.upper_seen = now;
    }

    /// Reads a vCPU bitmap, as many words as the domain's vCPUs need.
    pub(super) fn read_vcpu_mask(&self, handle: u64) -> Result<u128, i64> {
        let mut raw = [0u8; 16];
        let nr_bytes = (self.domain.vcpus.len().div_ceil(64) * 8).min(raw.len());
        let part = raw.get_mut(..nr_bytes).ok_or(errno::EINVAL)?;
        Caller::of_guest(self).read_bytes(handle, part)?;
        Ok(u128::from_le_bytes(raw))
    }

    /// Flushes the TLBs of the vCPUs in `mask`; returns when all have dropped their translations.
    pub(super) fn flush_vcpus(&mut self, mask: u128, what: Flush) {
        let is_in = |id: u32| id < 128 && mask & (1 << id) != 0;
        if is_in(self.vcpu.id) {
            self.flush_local(what);
        }
        let others = || self.domain.vcpus.iter().filter(|v| v.id != self.vcpu.id && is_in(v.id));
        others().for_each(|vcpu| vcpu.control.request(Requests::FLUSH_TLB));
        others().filter(|vcpu| vcpu.control.is_in_guest()).for_each(|vcpu| {
            vcpu.control.request_and_wait(Requests::FLUSH_TLB);
        });
    }
}

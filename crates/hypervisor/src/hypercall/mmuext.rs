//! mmuext_op: pinning, roots, TLB flushes, LDT, whole-page operations.

use std::sync::Arc;

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_mmuext_op;
use ring3_abi::xen::*;
use ring3_engine::{Flush, GuestMode};
use ring3_machine::Mfn;

use super::batch::Batch;
use super::{Caller, HypercallResult, Served};
use crate::domain::{Domain, set_root};
use crate::memory::{is_canonical, is_reserved};
use crate::mm::LongWork;
use crate::vcpu::bounce::Running;

/// Number of operations between looks at whether the pCPU is wanted.
const PREEMPT_MASK: u32 = 15;

impl Caller<'_> {
    /// The domain whose tables are pinned.
    fn mmuext_owner(&self, foreigndom: u32) -> Result<Option<Arc<Domain>>, i64> {
        let domid = self.page_owner((foreigndom & 0xffff) as u16)?;
        if domid == DOMID_IO || domid == DOMID_XEN || !self.may_use(domid) {
            return Err(errno::EPERM);
        }
        if domid == self.domain.domid { Ok(None) } else { self.target(domid).map(Some) }
    }

    /// An operation that needs no vCPU; `None` if it does.
    fn mmuext_pages(&self, op: &mmuext_op, owner: Option<&Domain>, work: &mut LongWork) -> Option<Result<(), i64>> {
        let mm = &owner.unwrap_or(self.domain).mm;
        let mfn = Mfn(op.arg1);
        let result = match op.cmd {
            MMUEXT_PIN_L1_TABLE | MMUEXT_PIN_L2_TABLE | MMUEXT_PIN_L3_TABLE | MMUEXT_PIN_L4_TABLE => {
                mm.pin_table_in(op.cmd + 1, mfn, work)
            }
            MMUEXT_UNPIN_TABLE => mm.unpin_table_in(mfn, work),
            MMUEXT_CLEAR_PAGE => mm.clear_page(mfn),
            MMUEXT_COPY_PAGE => mm.copy_page(Mfn(op.arg2), mfn),
            _ => return None,
        };
        Some(result.map_err(|e| -e.errno()))
    }

    /// mmuext_op of a dom0 process: page operations only.
    pub(super) fn mmuext_op_all(&self, handle: u64, count: u32, pdone: u64, foreigndom: u32) -> HypercallResult {
        let owner = self.mmuext_owner(foreigndom)?;
        self.all_requests(count, pdone, |index, work| {
            let op: mmuext_op = self.read(Self::element::<mmuext_op>(handle, u64::from(index)))?;
            self.hv.table.count(__HYPERVISOR_mmuext_op, op.cmd);
            // No vCPU here whose TLB or roots could change.
            self.mmuext_pages(&op, owner.as_deref(), work).unwrap_or(Err(errno::EOPNOTSUPP))
        })
    }
}

impl Running<'_> {
    /// mmuext_op.
    pub(super) fn mmuext_op(&mut self, handle: u64, count: u32, pdone: u64, foreigndom: u32) -> Served {
        if let Some(served) = self.begin_batch(handle, count, foreigndom) {
            return served;
        }
        let mut caller = Caller::of_guest(self);
        let before = Batch::done_before(&caller, count, pdone);
        let count = count & !MMU_UPDATE_PREEMPTED;
        let checked = caller.check_array(handle, u64::from(count), size_of::<mmuext_op>() as u64);
        let owner = match checked.and_then(|()| caller.mmuext_owner(foreigndom)) {
            Ok(owner) => owner,
            Err(errno) => return Served::Done(-errno),
        };
        let vcpu = self.vcpu;
        let mut stop = || vcpu.is_wanted_elsewhere();
        let mut batch = Batch::new(self, count, before);
        while batch.goes_on(PREEMPT_MASK, &mut stop) {
            let at = Caller::element::<mmuext_op>(handle, u64::from(batch.done));
            let made = match caller.read::<mmuext_op>(at) {
                Ok(op) => self.one_mmuext(&caller, &op, owner.as_deref(), &mut batch.work, &mut stop),
                Err(errno) => Err(errno),
            };
            batch.note(made);
            // The root may have changed, and with it what handles mean.
            caller = Caller::of_guest(self);
        }
        let next = Caller::element::<mmuext_op>(handle, u64::from(batch.done));
        batch.end(self, next, pdone, foreigndom)
    }

    /// One operation; `false` if it was stopped half way, and is to be made again.
    fn one_mmuext(
        &mut self,
        caller: &Caller<'_>,
        op: &mmuext_op,
        owner: Option<&Domain>,
        work: &mut LongWork,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<bool, i64> {
        self.hv.table.count(__HYPERVISOR_mmuext_op, op.cmd);
        let level = match op.cmd {
            MMUEXT_PIN_L1_TABLE..=MMUEXT_PIN_L4_TABLE => Some(op.cmd + 1),
            MMUEXT_NEW_BASEPTR | MMUEXT_NEW_USER_BASEPTR => Some(4),
            _ => None,
        };
        let mm = &owner.unwrap_or(self.domain).mm;
        if level.is_some_and(|level| !mm.prepare_table(level, Mfn(op.arg1), work, stop)) {
            return Ok(false);
        }
        let result = match caller.mmuext_pages(op, owner, work) {
            Some(result) => result,
            None => self.mmuext_of_vcpu(op, owner, work),
        };
        work.finish();
        result.map(|()| true)
    }

    /// An operation on the vCPU that asks, or on the TLBs of all.
    fn mmuext_of_vcpu(&mut self, op: &mmuext_op, owner: Option<&Domain>, work: &mut LongWork) -> Result<(), i64> {
        match op.cmd {
            MMUEXT_MARK_SUPER | MMUEXT_UNMARK_SUPER => return Err(errno::EOPNOTSUPP),
            _ if owner.is_some() => return Err(errno::EPERM),
            MMUEXT_NEW_BASEPTR => self.new_baseptr_in(Mfn(op.arg1), work)?,
            MMUEXT_NEW_USER_BASEPTR => {
                let new = Mfn(op.arg1);
                let old = self.state.root(GuestMode::User);
                self.domain.mm.new_user_baseptr_in(old, new, work).map_err(|e| -e.errno())?;
                self.set_root(GuestMode::User, new);
                self.state.cpu.flush(Flush::User);
            }
            MMUEXT_TLB_FLUSH_LOCAL => self.flush_local(Flush::All),
            MMUEXT_INVLPG_LOCAL => self.state.cpu.flush(Flush::Page(op.arg1)),
            MMUEXT_TLB_FLUSH_MULTI => {
                let mask = self.read_vcpu_mask(op.arg2).map_err(|_| errno::EINVAL)?;
                self.flush_vcpus(mask, Flush::All);
            }
            MMUEXT_INVLPG_MULTI => {
                let mask = self.read_vcpu_mask(op.arg2).map_err(|_| errno::EINVAL)?;
                self.flush_vcpus(mask, Flush::Page(op.arg1));
            }
            MMUEXT_TLB_FLUSH_ALL => self.flush_vcpus(u128::MAX, Flush::All),
            MMUEXT_INVLPG_ALL => self.flush_vcpus(u128::MAX, Flush::Page(op.arg1)),
            // Only domains with devices may flush caches.
            MMUEXT_FLUSH_CACHE | MMUEXT_FLUSH_CACHE_GLOBAL => return Err(errno::EACCES),
            MMUEXT_SET_LDT => {
                let nr_ents = (op.arg2 & 0xffff_ffff) as u32;
                let base = if nr_ents == 0 { 0 } else { op.arg1 };
                if !base.is_multiple_of(4096) || nr_ents > 8192 || !is_canonical(base) || is_reserved(base) {
                    return Err(errno::EINVAL);
                }
                // The same one again keeps its frames.
                if (self.state.ldt_base, self.state.ldt_ents) != (base, nr_ents) {
                    self.state.set_ldt(&self.domain.mm, base, nr_ents);
                }
            }
            _ => return Err(errno::ENOSYS),
        }
        Ok(())
    }

    fn set_root(&mut self, mode: GuestMode, root: Mfn) {
        set_root(self.state, self.domain, self.hv.m2p(), mode, root);
    }

    /// A new kernel root by `mov` to CR3. `false`: stopped half way, and to be made again. What is to be let go afterwards is,
    /// before the guest goes on.
    pub(crate) fn new_baseptr(&mut self, new: Mfn) -> Result<bool, i64> {
        let (vcpu, mut work) = (self.vcpu, std::mem::take(&mut self.state.long));
        let is_ready = self.domain.mm.prepare_table(4, new, &mut work, &mut || vcpu.is_wanted_elsewhere());
        let result = if is_ready { self.new_baseptr_in(new, &mut work) } else { Ok(()) };
        if is_ready {
            work.finish();
        }
        self.state.long = work;
        result.map(|()| is_ready)
    }

    /// A new kernel root.
    fn new_baseptr_in(&mut self, new: Mfn, work: &mut LongWork) -> Result<(), i64> {
        let old = self.state.root(GuestMode::Kernel);
        // Compared before `old` loses its reference. What is cached of an upper half that both roots share is as good as
        // new, but for mappings that the guest changed without a flush: it may rely on this one.
        let shares_upper = self.domain.mm.shares_upper_half(old, new);
        let changes = self.domain.mm.upper_changes();
        self.domain.mm.new_baseptr_in(old, new, work).map_err(|e| -e.errno())?;
        self.set_root(GuestMode::Kernel, new);
        if shares_upper {
            self.flush_stale();
        } else {
            self.state.cpu.flush(Flush::All);
            self.state.upper_seen = changes;
        }
        Ok(())
    }
}

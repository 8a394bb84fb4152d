//! mmuext_op: pinning, roots, TLB flushes, LDT, whole-page operations.

use std::sync::Arc;

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_mmuext_op;
use ring3_abi::xen::*;
use ring3_engine::{Flush, GuestMode};
use ring3_machine::Mfn;

use super::{Caller, HypercallResult, Served, should_preempt};
use crate::domain::Domain;
use crate::memory::{is_canonical, is_reserved};
use crate::vcpu::bounce::Running;

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
    fn mmuext_pages(&self, op: &mmuext_op, owner: Option<&Domain>) -> Option<Result<(), i64>> {
        let mm = &owner.unwrap_or(self.domain).mm;
        let mfn = Mfn(op.arg1);
        let result = match op.cmd {
            MMUEXT_PIN_L1_TABLE | MMUEXT_PIN_L2_TABLE | MMUEXT_PIN_L3_TABLE | MMUEXT_PIN_L4_TABLE => {
                mm.pin_table(op.cmd + 1, mfn)
            }
            MMUEXT_UNPIN_TABLE => mm.unpin_table(mfn),
            MMUEXT_CLEAR_PAGE => mm.clear_page(mfn),
            MMUEXT_COPY_PAGE => mm.copy_page(Mfn(op.arg2), mfn),
            _ => return None,
        };
        Some(result.map_err(|e| -e.errno()))
    }

    /// mmuext_op of a dom0 process: page operations only.
    pub(super) fn mmuext_op_all(&self, handle: u64, count: u32, pdone: u64, foreigndom: u32) -> HypercallResult {
        let owner = self.mmuext_owner(foreigndom)?;
        let mut result = Ok(0);
        let mut done = 0u32;
        while done < count {
            let op: mmuext_op = self.read(Self::element::<mmuext_op>(handle, u64::from(done)))?;
            self.hv.table.count(__HYPERVISOR_mmuext_op, op.cmd);
            // No vCPU here whose TLB or roots could change.
            if let Err(errno) = self.mmuext_pages(&op, owner.as_deref()).unwrap_or(Err(errno::EOPNOTSUPP)) {
                result = Err(errno);
                break;
            }
            done += 1;
        }
        if pdone != 0 {
            self.write(pdone, &done)?;
        }
        result
    }
}

impl Running<'_> {
    /// mmuext_op.
    pub(super) fn mmuext_op(&mut self, handle: u64, count: u32, pdone: u64, foreigndom: u32) -> Served {
        if handle == 0 && count == MMU_UPDATE_PREEMPTED {
            return Served::Done(i64::from(foreigndom as i32));
        }
        let mut caller = Caller::of_guest(self);
        let before: u32 =
            if count & MMU_UPDATE_PREEMPTED != 0 && pdone != 0 { caller.read(pdone).unwrap_or(0) } else { 0 };
        let count = count & !MMU_UPDATE_PREEMPTED;
        let checked = caller.check_array(handle, u64::from(count), size_of::<mmuext_op>() as u64);
        let owner = match checked.and_then(|()| caller.mmuext_owner(foreigndom)) {
            Ok(owner) => owner,
            Err(errno) => return Served::Done(-errno),
        };
        let mut result = 0;
        let mut done = 0u32;
        let mut again = false;
        while done < count {
            if done & 15 == 15 && should_preempt(self) {
                again = true;
                break;
            }
            let step = caller
                .read::<mmuext_op>(Caller::element::<mmuext_op>(handle, u64::from(done)))
                .and_then(|op| self.one_mmuext(&caller, &op, owner.as_deref()));
            if let Err(errno) = step {
                result = -errno;
                break;
            }
            // The root may have changed, and with it what handles mean.
            caller = Caller::of_guest(self);
            done += 1;
        }
        if pdone != 0 {
            let _ = caller.write(pdone, &before.wrapping_add(done));
        }
        if again {
            let next = Caller::element::<mmuext_op>(handle, u64::from(done));
            let left = (count - done) | MMU_UPDATE_PREEMPTED;
            return Served::Again([next, u64::from(left), pdone, u64::from(foreigndom)]);
        }
        Served::Done(result)
    }

    fn one_mmuext(&mut self, caller: &Caller<'_>, op: &mmuext_op, owner: Option<&Domain>) -> Result<(), i64> {
        self.hv.table.count(__HYPERVISOR_mmuext_op, op.cmd);
        if let Some(result) = caller.mmuext_pages(op, owner) {
            return result;
        }
        match op.cmd {
            MMUEXT_MARK_SUPER | MMUEXT_UNMARK_SUPER => return Err(errno::EOPNOTSUPP),
            _ if owner.is_some() => return Err(errno::EPERM),
            MMUEXT_NEW_BASEPTR => self.new_baseptr(Mfn(op.arg1))?,
            MMUEXT_NEW_USER_BASEPTR => {
                let new = Mfn(op.arg1);
                let old = self.state.root(GuestMode::User);
                self.domain.mm.new_user_baseptr(old, new).map_err(|e| -e.errno())?;
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
                let end = op.arg1.wrapping_add(u64::from(nr_ents) * 8);
                let is_valid = op.arg1.is_multiple_of(4096)
                    && nr_ents <= 8192
                    && is_canonical(op.arg1)
                    && !is_reserved(op.arg1)
                    && !is_reserved(end);
                if !is_valid && nr_ents != 0 {
                    return Err(errno::EINVAL);
                }
                (self.state.ldt_base, self.state.ldt_ents) = (op.arg1, nr_ents);
            }
            _ => return Err(errno::ENOSYS),
        }
        Ok(())
    }

    fn set_root(&mut self, mode: GuestMode, root: Mfn) {
        let mut space = self.state.cpu.address_space(mode);
        space.root = root;
        (space.m2p, space.nr_m2p) = self.hv.m2p();
        self.state.cpu.set_address_space(mode, space);
    }

    /// A new kernel root: MMUEXT_NEW_BASEPTR, and `mov` to CR3.
    pub(crate) fn new_baseptr(&mut self, new: Mfn) -> Result<(), i64> {
        let old = self.state.root(GuestMode::Kernel);
        // Compared before `old` loses its reference. What is cached of an upper half that both roots share is as good as
        // new, but for mappings that the guest changed without a flush: it may rely on this one.
        let shares_upper = self.domain.mm.shares_upper_half(old, new);
        let changes = self.domain.mm.upper_changes();
        self.domain.mm.new_baseptr(old, new).map_err(|e| -e.errno())?;
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

//! Hypercalls that a paravirtualized domU cannot use, with the answers that Xen has for it. Those of domain 0's that are not
//! here go to a cold handler, or are unknown.

use ring3_abi::errno;
use ring3_abi::hypercall::*;
use ring3_abi::xen::DOMID_SELF;

use super::{Caller, HypercallResult, int};

/// Source: xen/include/public/hvm/hvm_op.h.
mod hvmop {
    pub const set_param: u32 = 0;
    pub const get_param: u32 = 1;
    pub const flush_tlbs: u32 = 5;
    pub const get_time: u32 = 10;
    pub const guest_request_vm_event: u32 = 24;
    pub const altp2m: u32 = 25;
}

impl Caller<'_> {
    /// The answer of a hypercall that this caller cannot use; `None` if that is not known here.
    pub(super) fn refused(&self, number: u32, args: &super::Args) -> Option<HypercallResult> {
        let &[a1, a2, ..] = args;
        Some(match number {
            // Without hardware counters for guests.
            __HYPERVISOR_xenpmu_op => Err(errno::EOPNOTSUPP),
            __HYPERVISOR_hvm_op => self.hvm_op(int(a1), a2),
            __HYPERVISOR_kexec_op | __HYPERVISOR_hypfs_op | __HYPERVISOR_arch_0 if !self.domain.is_privileged => {
                Err(errno::EPERM)
            }
            __HYPERVISOR_dm_op => self.dm_op((a1 & 0xffff) as u16, int(a2)),
            _ => return None,
        })
    }

    /// Operations on domains with hardware virtualization, of which there are none.
    fn hvm_op(&self, op: u32, arg: u64) -> HypercallResult {
        match op {
            hvmop::set_param | hvmop::get_param => {
                let domid = self.read::<[u16; 8]>(arg)?.first().copied().unwrap_or(DOMID_SELF);
                self.target(domid)?;
                Err(errno::EINVAL)
            }
            hvmop::flush_tlbs => Err(errno::EINVAL),
            hvmop::get_time => {
                self.write(arg, &self.hv.clock.now_ns())?;
                Ok(0)
            }
            hvmop::guest_request_vm_event => Ok(0),
            hvmop::altp2m => Err(errno::EOPNOTSUPP),
            _ => Err(errno::ENOSYS),
        }
    }

    /// A device model's operations, which are on another domain, and one with hardware virtualization.
    fn dm_op(&self, domid: u16, nr_buffers: u32) -> HypercallResult {
        match nr_buffers {
            0 => Err(errno::ENODATA),
            1 | 2 if domid == DOMID_SELF || domid == self.domain.domid => Err(errno::EPERM),
            1 | 2 if self.hv.domain(domid).is_none() => Err(errno::ESRCH),
            1 | 2 => Err(errno::EINVAL),
            _ => Err(errno::E2BIG),
        }
    }
}

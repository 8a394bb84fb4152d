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
    pub const pagetable_dying: u32 = 9;
    pub const get_time: u32 = 10;
    pub const xentrace: u32 = 11;
    pub const get_mem_type: u32 = 15;
    pub const set_evtchn_upcall_vector: u32 = 23;
    pub const guest_request_vm_event: u32 = 24;
    pub const altp2m: u32 = 25;
    /// Source: xen/include/public/hvm/params.h, HVM_NR_PARAMS.
    pub const NR_PARAMS: u32 = 39;
}

/// Source: xen/include/public/domctl.h of Xen 4.17.
mod domctl {
    pub const createdomain: u32 = 1;
    pub const getdomaininfo: u32 = 5;
}

/// Sizes and versions of the three structures. Sources: domctl.h, sysctl.h, platform.h.
const DOMCTL_BYTES: usize = 144;
const DOMCTL_VERSION: u32 = 0x15;
const SYSCTL_BYTES: usize = 136;
const SYSCTL_VERSION: u32 = 0x15;
const PLATFORM_OP_BYTES: usize = 136;
const PLATFORM_OP_VERSION: u32 = 0x0300_0001;

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
            __HYPERVISOR_domctl | __HYPERVISOR_sysctl | __HYPERVISOR_platform_op if !self.domain.is_privileged => {
                self.control_op(number, a1)
            }
            __HYPERVISOR_arch_1 if !self.domain.is_privileged => self.paging_domctl(a1),
            __HYPERVISOR_dm_op => self.dm_op((a1 & 0xffff) as u16, int(a2)),
            _ => return None,
        })
    }

    /// Operations of the toolstack's and of domain 0's kernel: privilege is looked at last.
    fn control_op(&self, number: u32, arg: u64) -> HypercallResult {
        let (size, version) = match number {
            __HYPERVISOR_domctl => (DOMCTL_BYTES, DOMCTL_VERSION),
            __HYPERVISOR_sysctl => (SYSCTL_BYTES, SYSCTL_VERSION),
            _ => (PLATFORM_OP_BYTES, PLATFORM_OP_VERSION),
        };
        let mut op = [0u32; DOMCTL_BYTES / 4];
        let op = op.get_mut(..size / 4).unwrap_or_default();
        self.read_bytes(arg, bytemuck::cast_slice_mut(op))?;
        let &mut [cmd, given, domid, ..] = op else { return Err(errno::EFAULT) };
        if given != version {
            return Err(errno::EACCES);
        }
        if number == __HYPERVISOR_domctl && !matches!(cmd, domctl::createdomain | domctl::getdomaininfo) {
            // DOMID_SELF is no domain here.
            self.hv.domain((domid & 0xffff) as u16).ok_or(errno::ESRCH)?;
        }
        Err(errno::EPERM)
    }

    /// The continuation of a domctl about shadow page tables.
    fn paging_domctl(&self, arg: u64) -> HypercallResult {
        let op: [u32; DOMCTL_BYTES / 4] = self.read(arg)?;
        if op[1] != DOMCTL_VERSION {
            return Err(errno::EOPNOTSUPP);
        }
        Err(self.hv.domain((op[2] & 0xffff) as u16).map_or(errno::ESRCH, |_| errno::EPERM))
    }

    /// Operations on domains with hardware virtualization, of which there are none.
    fn hvm_op(&self, op: u32, arg: u64) -> HypercallResult {
        match op {
            hvmop::set_param | hvmop::get_param => {
                let &[domid, _, index, ..] = &self.read::<[u16; 8]>(arg)?;
                let is_param = u32::from(index) < hvmop::NR_PARAMS;
                let is_domain = domid == DOMID_SELF || self.hv.domain(domid).is_some();
                Err(if is_param && !is_domain { errno::ESRCH } else { errno::EINVAL })
            }
            hvmop::flush_tlbs => Err(errno::EINVAL),
            hvmop::get_time => {
                self.write(arg, &self.hv.clock.now_ns())?;
                Ok(0)
            }
            hvmop::set_evtchn_upcall_vector => Err(errno::EINVAL),
            hvmop::xentrace => {
                let [event, nr_extra, ..]: [u16; 16] = self.read(arg)?;
                if event >> 12 != 0 || nr_extra > 28 { Err(errno::EINVAL) } else { Ok(0) }
            }
            hvmop::pagetable_dying | hvmop::get_mem_type => {
                let [domid, ..]: [u16; 8] = self.read(arg)?;
                let is_own = domid == DOMID_SELF || domid == self.domain.domid;
                Err(match self.hv.domain(domid) {
                    None if !is_own => errno::ESRCH,
                    _ if op == hvmop::get_mem_type && !is_own && !self.domain.is_privileged => errno::EPERM,
                    _ => errno::EINVAL,
                })
            }
            hvmop::guest_request_vm_event if arg != 0 => Err(errno::EINVAL),
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

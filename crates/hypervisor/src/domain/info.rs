//! What there is to know about a domain and its vCPUs, for the toolstack.

use std::sync::atomic::Ordering;

use ring3_abi::vcpu::{RUNSTATE_blocked, RUNSTATE_running};
use ring3_machine::Mfn;

use crate::hypervisor::{Error, Hypervisor};
use crate::mm::PageType;

/// XEN_DOMINF_*. Source: xen/include/public/domctl.h.
const XEN_DOMINF_DYING: u32 = 1 << 0;
const XEN_DOMINF_SHUTDOWN: u32 = 1 << 2;
const XEN_DOMINF_PAUSED: u32 = 1 << 3;
const XEN_DOMINF_BLOCKED: u32 = 1 << 4;
const XEN_DOMINF_RUNNING: u32 = 1 << 5;
const XEN_DOMINF_SHUTDOWNSHIFT: u32 = 16;

/// What a frame is, in bits 28 to 31. Source: xen/include/public/domctl.h.
const XEN_DOMCTL_PFINFO_LTAB_SHIFT: u32 = 28;
const XEN_DOMCTL_PFINFO_LPINTAB: u64 = 1 << 31;
const XEN_DOMCTL_PFINFO_XTAB: u64 = 0xf << 28;

/// As much of `xen_domctl_getdomaininfo` as there is.
#[derive(Clone, Debug)]
pub struct DomainInfo {
    pub domid: u16,
    pub flags: u32,
    pub nr_pages: u64,
    pub max_pages: u64,
    pub shared_info_mfn: u64,
    pub cpu_time_ns: u64,
    pub nr_online_vcpus: u32,
    pub max_vcpu_id: u32,
    pub handle: [u8; 16],
}

/// As `xen_domctl_getvcpuinfo`.
#[derive(Clone, Copy, Debug)]
pub struct VcpuSummary {
    pub online: bool,
    pub blocked: bool,
    pub running: bool,
    pub cpu_time_ns: u64,
    pub cpu: u32,
}

impl Hypervisor {
    /// XEN_DOMCTL_getpageframeinfo3: the `XEN_DOMCTL_PFINFO_*` of frames; XTAB for those that are not the domain's.
    ///
    /// # Errors
    /// ESRCH.
    pub fn page_frame_info(&self, domid: u16, mfns: &[Mfn]) -> Result<Vec<u64>, Error> {
        let owner = self.guest(domid)?.mm.domid();
        let look = |&mfn: &Mfn| {
            let Some(info) = self.frames.info(mfn).filter(|info| info.owner == Some(owner) && info.count > 0) else {
                return XEN_DOMCTL_PFINFO_XTAB;
            };
            // Who asks may be about to read it in the machine's memfd.
            let _ = self.memory.machine.expose(mfn);
            let level = match info.page_type {
                PageType::L1 => 1,
                PageType::L2 => 2,
                PageType::L3 => 3,
                PageType::L4 => 4,
                PageType::None | PageType::SegDesc | PageType::Writable => 0,
            };
            level << XEN_DOMCTL_PFINFO_LTAB_SHIFT | if info.is_pinned { XEN_DOMCTL_PFINFO_LPINTAB } else { 0 }
        };
        Ok(mfns.iter().map(look).collect())
    }

    /// Facts about a domain.
    ///
    /// # Errors
    /// ESRCH.
    pub fn domain_info(&self, domid: u16) -> Result<DomainInfo, Error> {
        let domain = self.guest(domid)?;
        let now = self.clock.now_ns();
        let life = *domain.life.lock();
        let mut flags = 0;
        let (mut nr_online, mut all_blocked, mut cpu_time_ns) = (0, true, 0u64);
        for vcpu in &domain.vcpus {
            let runstate = *vcpu.runstate.lock();
            cpu_time_ns = cpu_time_ns.wrapping_add(runstate.cpu_time_ns(now));
            if vcpu.online.load(Ordering::SeqCst) {
                nr_online += 1;
                all_blocked &= vcpu.blocked.load(Ordering::SeqCst);
            }
            if runstate.state() == RUNSTATE_running {
                flags |= XEN_DOMINF_RUNNING;
            }
        }
        if all_blocked && flags & XEN_DOMINF_RUNNING == 0 {
            flags |= XEN_DOMINF_BLOCKED;
        }
        if domain.is_dying.load(Ordering::SeqCst) {
            flags |= XEN_DOMINF_DYING;
        }
        if life.controller_pauses > 0 {
            flags |= XEN_DOMINF_PAUSED;
        }
        if let Some(reason) = life.shutdown {
            flags |= XEN_DOMINF_SHUTDOWN | (reason << XEN_DOMINF_SHUTDOWNSHIFT);
        }
        Ok(DomainInfo {
            domid,
            flags,
            nr_pages: domain.mm.nr_pages(),
            max_pages: domain.mm.max_pages(),
            shared_info_mfn: domain.shared_info.0,
            cpu_time_ns,
            nr_online_vcpus: nr_online,
            max_vcpu_id: u32::try_from(domain.vcpus.len()).unwrap_or(1).saturating_sub(1),
            handle: domain.handle,
        })
    }

    /// Facts about a vCPU.
    ///
    /// # Errors
    /// ESRCH, ENOENT.
    pub fn vcpu_summary(&self, domid: u16, vcpu: u32) -> Result<VcpuSummary, Error> {
        let (_, vcpu) = self.guest_vcpu(domid, vcpu)?;
        let runstate = *vcpu.runstate.lock();
        Ok(VcpuSummary {
            online: vcpu.online.load(Ordering::SeqCst),
            blocked: runstate.state() == RUNSTATE_blocked,
            running: runstate.state() == RUNSTATE_running,
            cpu_time_ns: runstate.cpu_time_ns(self.clock.now_ns()),
            cpu: vcpu.last_pcpu.load(Ordering::SeqCst),
        })
    }
}

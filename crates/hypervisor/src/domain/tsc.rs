//! The TSC of a domain: XEN_DOMCTL_settscinfo and its counterpart.

use ring3_abi::errno;

use crate::hypervisor::{Error, Hypervisor};
use crate::time::{Clock, GuestTsc, TscInfo};

/// A new domain's, in the default mode.
pub(super) fn new_tsc(clock: &Clock) -> GuestTsc {
    GuestTsc::new(&TscInfo::default(), clock).unwrap_or_else(|| unreachable!("the default mode exists"))
}

impl Hypervisor {
    /// Gives a domain another TSC (XEN_DOMCTL_settscinfo), and tells its vCPUs.
    ///
    /// # Errors
    /// ESRCH; EINVAL for a mode that does not exist.
    pub fn set_tsc_info(&self, domid: u16, info: &TscInfo) -> Result<(), Error> {
        let domain = self.guest(domid)?;
        let tsc = GuestTsc::new(info, &self.clock).ok_or_else(|| Error::refused(errno::EINVAL, "no such TSC mode"))?;
        self.with_paused(&domain, || {
            for vcpu in &domain.vcpus {
                let mut state = vcpu.state.lock();
                let cr4 = state.cr4;
                state.set_cr4(cr4, tsc.is_emulated());
                let (mfn, offset) = vcpu.info.place();
                let at = offset + crate::vcpu::INFO_TIME;
                crate::time::write_time_info(&self.memory.machine, &self.clock, &tsc, mfn, at);
            }
            *domain.tsc.lock() = tsc;
            Ok(())
        })
    }

    /// What a domain's TSC is (XEN_DOMCTL_gettscinfo).
    ///
    /// # Errors
    /// ESRCH.
    pub fn tsc_info(&self, domid: u16) -> Result<TscInfo, Error> {
        Ok(self.guest(domid)?.tsc.lock().info(&self.clock))
    }
}

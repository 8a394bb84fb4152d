//! The CPU policy of a domain: XEN_DOMCTL_get_cpu_policy and set_cpu_policy.

use std::sync::Arc;

use ring3_abi::errno;
use ring3_engine::Features;

use crate::cpuid::{LeafKey, Policy, Refusal};
use crate::hypervisor::{Error, Hypervisor};

impl Hypervisor {
    /// What a domain's vCPUs show of themselves.
    ///
    /// # Errors
    /// ESRCH.
    pub fn cpu_policy(&self, domid: u16) -> Result<Arc<Policy>, Error> {
        let domain = self.domain(domid).ok_or_else(|| Error::refused(errno::ESRCH, format!("no domain {domid}")))?;
        Ok(domain.policy())
    }

    /// Puts leaves and MSRs (number, flags, value) in place of those of a domain that has not run. What this machine does
    /// not have is cut off. The inner result is Xen's answer to a policy that cannot be had.
    ///
    /// # Errors
    /// ESRCH; EEXIST for a domain that has run.
    pub fn set_cpu_policy(
        &self,
        domid: u16,
        leaves: &[(LeafKey, [u32; 4])],
        msrs: &[(u32, u32, u64)],
    ) -> Result<Result<(), Refusal>, Error> {
        let domain = self.guest(domid)?;
        self.with_paused(&domain, || {
            if domain.life.lock().has_run {
                return Err(Error::refused(errno::EEXIST, "the domain has run"));
            }
            let max = &self.cpuid.max;
            let mut policy = domain.policy().as_ref().clone();
            if let Err(refusal) = policy.take(leaves, msrs).and_then(|()| policy.check(max)) {
                return Ok(Err(refusal));
            }
            policy.settle(max);
            let hidden: Features = max.instructions().without(policy.instructions());
            if let Some(engine) = &domain.engine {
                engine.hide(hidden);
            }
            let is_tsc_emulated = domain.tsc.lock().is_emulated();
            for vcpu in &domain.vcpus {
                let mut state = vcpu.state.lock();
                state.set_policy(&policy);
                let cr4 = state.cr4;
                state.set_cr4(cr4, is_tsc_emulated);
            }
            *domain.cpu_policy.write() = Arc::new(policy);
            Ok(Ok(()))
        })
    }
}

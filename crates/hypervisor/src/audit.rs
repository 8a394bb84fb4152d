//! The machine checked against itself: every reference and every channel explained by who holds it.
//!
//! For fuzzing and tests. A guest cannot ask for it; domain 0 can, by a debug key, as it can ask Xen for its dumps.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ring3_engine::GuestMode;

use crate::domain::Domain;
use crate::hypervisor::Hypervisor;
use crate::mm::Held;
use crate::{evtchn, gnttab};

/// Times that a fault must be seen again, and how far apart.
const CONFIRMATIONS: u32 = 3;
const PAUSE: Duration = Duration::from_millis(50);

impl Hypervisor {
    /// Stops every domain, looks for what does not agree, and lets them go on. Returns what it found.
    ///
    /// Domain 0's processes go on: what one of them is in the middle of, such as a service that gives up the ring of a domain
    /// that has ended, looks wrong for a moment. So only what stays wrong counts.
    pub fn audit(&self) -> Vec<String> {
        // What a domain holds goes bit by bit at its end.
        let _destroy = self.destroy.lock();
        let stopped: Vec<u16> =
            self.domain_list().into_iter().filter(|&domid| self.domain_pause(domid).is_ok()).collect();
        let mut wrong = self.audit_stopped();
        for _ in 0..CONFIRMATIONS {
            if wrong.is_empty() {
                break;
            }
            std::thread::sleep(PAUSE);
            let again = self.audit_stopped();
            wrong.retain(|one| again.contains(one));
        }
        for domid in stopped {
            // Gone since: then it needs no unpausing.
            let _ = self.domain_unpause(domid);
        }
        wrong
    }

    /// As [`Hypervisor::audit`], when no vCPU runs anyway.
    pub fn audit_stopped(&self) -> Vec<String> {
        let mut domains = vec![std::sync::Arc::clone(&self.dom0)];
        domains.extend(self.domains.read().values().cloned());
        let _bind = self.evtchn_bind.lock();
        let mut held = Held::default();
        let mut wrong = evtchn::audit(&domains, &mut held);
        wrong.extend(gnttab::audit(&domains, &mut held));
        self.dom0.connections.read().values().for_each(|connection| connection.foreign.hold(&mut held));
        for domain in &domains {
            hold_vcpus(domain, &mut held);
            wrong.extend(audit_polls(domain));
        }
        wrong.extend(self.frames.audit(held));
        wrong
    }
}

/// What a domain holds of its own frames, and its vCPUs: roots, GDT frames, vcpu_info.
pub(crate) fn hold_vcpus(domain: &Domain, held: &mut Held) {
    if let Some(mfn) = domain.life.lock().eoi_map {
        held.typed_by(mfn, "the EOI map");
    }
    for vcpu in &domain.vcpus {
        let state = vcpu.state.lock();
        for root in [GuestMode::Kernel, GuestMode::User].map(|mode| state.root(mode)) {
            if root.0 != 0 {
                held.typed_by(root, "a root");
            }
        }
        state.long.hold(held);
        let nr_gdt = state.gdt_ents.div_ceil(512) as usize;
        state.gdt_frames.iter().take(nr_gdt).for_each(|&mfn| held.typed_by(mfn, "a GDT"));
        state.ldt_frames.iter().flatten().for_each(|&mfn| held.typed_by(mfn, "an LDT"));
        if vcpu.info.is_registered() {
            held.typed_by(vcpu.info.place().0, "vcpu_info");
        }
    }
}

fn audit_polls(domain: &Domain) -> Option<String> {
    let nr = domain.vcpus.iter().filter(|vcpu| vcpu.polling.load(Ordering::SeqCst) != 0).count() as u64;
    let counted = u64::from(domain.nr_polling.load(Ordering::SeqCst));
    (nr != counted).then(|| format!("domain {}: {nr} vCPUs poll, {counted} are counted", domain.domid))
}

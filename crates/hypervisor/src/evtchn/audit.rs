//! Do the two ends of each channel, and each VIRQ and its port, know of each other?

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Binding;
use crate::domain::Domain;
use crate::mm::Held;

/// Adds the frames of the FIFO ABI to `held`; says what does not agree. Nobody may bind or close meanwhile.
pub(crate) fn audit(domains: &[Arc<Domain>], held: &mut Held) -> Vec<String> {
    domains.iter().for_each(|domain| hold_frames(domain, held));
    domains.iter().flat_map(|domain| audit_domain(domain)).collect()
}

/// Adds the frames that a domain lent for the FIFO ABI.
pub(crate) fn hold_frames(domain: &Domain, held: &mut Held) {
    domain.evtchn.with_fifo(|fifo| fifo.frames().for_each(|mfn| held.typed_by(mfn, "FIFO events")));
}

fn audit_domain(domain: &Domain) -> Vec<String> {
    let mut wrong = Vec::new();
    let domid = domain.domid;
    for port in domain.evtchn.bound(|_| true) {
        let Some(channel) = domain.evtchn.get(port) else { continue };
        let mut complain = |what: &str| wrong.push(format!("domain {domid} port {port}: {channel:?} {what}"));
        if domid != 0 && domain.vcpu(channel.notify).is_none() {
            complain("notifies a vCPU that is not there");
        }
        match &channel.binding {
            Binding::Interdomain { remote, remote_port, .. } => {
                let Some(remote) = remote.upgrade() else { continue };
                let peer = remote.evtchn.get(*remote_port).unwrap_or_default();
                let is_mutual = matches!(peer.binding, Binding::Interdomain { remote_domid, remote_port, .. }
                    if remote_domid == domid && remote_port == port);
                if !is_mutual {
                    complain(&format!("leads to {peer:?}"));
                }
            }
            Binding::Virq(virq) if domid != 0 => {
                let knows = |id: u32| {
                    domain
                        .vcpu(id)
                        .and_then(|vcpu| vcpu.virq_ports.get(*virq as usize))
                        .map(|p| p.load(Ordering::SeqCst))
                };
                let nr = (0..).map_while(knows).filter(|&known| known == port).count();
                if nr != 1 {
                    complain(&format!("is the port of {nr} vCPUs"));
                }
            }
            Binding::Free | Binding::Unbound { .. } | Binding::Ipi | Binding::Virq(_) => {}
        }
    }
    for vcpu in &domain.vcpus {
        for (virq, port) in (0u32..).zip(&vcpu.virq_ports) {
            let port = port.load(Ordering::SeqCst);
            let is_right = port == 0
                || domain.evtchn.get(port).is_some_and(|c| matches!(c.binding, Binding::Virq(bound) if bound == virq));
            if !is_right {
                wrong.push(format!("domain {domid} vCPU {}: VIRQ {virq} is at port {port}", vcpu.id));
            }
        }
    }
    wrong
}

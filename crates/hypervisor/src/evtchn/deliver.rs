//! Delivery: from a pending port to a vCPU that runs its upcall, or a dom0 process that wakes up.

use std::sync::atomic::Ordering;

use ring3_abi::errno;
use ring3_engine::Requests;

use super::Binding;
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;
use crate::vcpu::Vcpu;

const EVTCHN_PENDING: usize = 0x800;
const EVTCHN_MASK: usize = 0xa00;
/// `Vcpu::polling`: any port ends the poll.
pub const POLL_ANY: u32 = u32::MAX;

impl Hypervisor {
    /// `EVTCHNOP_send`.
    ///
    /// # Errors
    /// -EINVAL for a port that cannot be sent on.
    pub fn evtchn_send(&self, domain: &Domain, port: u32) -> Result<(), i64> {
        let channel = domain.evtchn.get(port).ok_or(errno::EINVAL)?;
        match channel.binding {
            Binding::Interdomain { remote, remote_port, .. } => {
                let Some(remote) = remote.upgrade() else { return Ok(()) };
                let Some(peer) = remote.evtchn.get(remote_port) else { return Ok(()) };
                // Closed and bound anew meanwhile: the event is for nobody.
                if matches!(peer.binding, Binding::Interdomain { remote_domid, remote_port, .. }
                    if remote_domid == domain.domid && remote_port == port)
                {
                    self.set_pending(&remote, remote_port, peer.notify);
                }
                Ok(())
            }
            Binding::Ipi => {
                self.set_pending(domain, port, channel.notify);
                Ok(())
            }
            // Nobody listens yet: dropped, as on Xen.
            Binding::Unbound { .. } => Ok(()),
            Binding::Free | Binding::Virq(_) => Err(errno::EINVAL),
        }
    }

    /// Marks a port pending and tells the vCPU or connection.
    pub fn set_pending(&self, domain: &Domain, port: u32, notify: u32) {
        if domain.domid == 0 {
            let connection = domain.connections.read().get(&notify).cloned();
            if let Some(connection) = connection {
                connection.set_pending(port);
            }
            return;
        }
        if domain.evtchn.is_fifo() {
            return self.set_pending_fifo(domain, port, notify);
        }
        let (word, bit) = ((port / 64) as usize, 1u64 << (port % 64));
        let machine = &self.memory.machine;
        let Ok(pending) = machine.word64(domain.shared_info, EVTCHN_PENDING + word * 8) else { return };
        let was_pending = pending.fetch_or(bit, Ordering::SeqCst) & bit != 0;
        // The guest may have changed to the other ABI meanwhile; whether that took the bit along is not known.
        if domain.evtchn.is_fifo() {
            return self.set_pending_fifo(domain, port, notify);
        }
        if was_pending {
            return;
        }
        let is_masked = machine
            .word64(domain.shared_info, EVTCHN_MASK + word * 8)
            .is_ok_and(|mask| mask.load(Ordering::SeqCst) & bit != 0);
        if !is_masked
            && let Some(vcpu) = domain.vcpu(notify)
            && !vcpu.info.set_pending_sel(word)
        {
            self.mark_events_pending(vcpu);
        }
        if domain.nr_polling.load(Ordering::SeqCst) != 0 {
            self.wake_pollers(domain, port);
        }
    }

    fn set_pending_fifo(&self, domain: &Domain, port: u32, notify: u32) {
        let machine = &self.memory.machine;
        let effects = domain.evtchn.with_fifo(|fifo| fifo.set_pending(machine, port, notify)).unwrap_or_default();
        if effects.is_ready
            && let Some(vcpu) = domain.vcpu(notify)
        {
            self.mark_events_pending(vcpu);
        }
        if effects.is_new && domain.nr_polling.load(Ordering::SeqCst) != 0 {
            self.wake_pollers(domain, port);
        }
    }

    fn wake_pollers(&self, domain: &Domain, port: u32) {
        for vcpu in &domain.vcpus {
            let polling = vcpu.polling.load(Ordering::SeqCst);
            if polling == POLL_ANY || polling == port + 1 {
                self.end_poll(domain, vcpu);
                self.sched.wake(vcpu, self);
            }
        }
    }

    /// Takes a vCPU out of `SCHEDOP_poll`, if it is in it.
    pub fn end_poll(&self, domain: &Domain, vcpu: &Vcpu) {
        if vcpu.polling.swap(0, Ordering::SeqCst) != 0 {
            domain.nr_polling.fetch_sub(1, Ordering::SeqCst);
            self.timers.disarm(vcpu, crate::time::TimerKind::Poll);
        }
    }

    /// Sets `evtchn_upcall_pending`, and makes the vCPU look at it.
    pub fn mark_events_pending(&self, vcpu: &std::sync::Arc<Vcpu>) {
        if !vcpu.info.set_upcall_pending() {
            self.kick(vcpu);
        }
    }

    /// Wakes a blocked vCPU, or makes a running one re-test its events.
    pub fn kick(&self, vcpu: &std::sync::Arc<Vcpu>) {
        if vcpu.blocked.load(Ordering::SeqCst) {
            if vcpu.polling.load(Ordering::SeqCst) != 0
                && let Some(domain) = vcpu.domain.upgrade()
            {
                self.end_poll(&domain, vcpu);
            }
            self.sched.wake(vcpu, self);
        } else {
            // Masked or not: a guest unmasks by a plain store and looks at "pending" by a plain load, which the CPU may do
            // first. It relies on being made to look again, as by the interrupt that Xen sends.
            vcpu.control.request(Requests::EVENT);
        }
    }

    /// Raises a VIRQ that is bound for each vCPU.
    pub fn send_vcpu_virq(&self, domain: &Domain, vcpu: &Vcpu, virq: u32) {
        let port = vcpu.virq_ports.get(virq as usize).map_or(0, |p| p.load(Ordering::SeqCst));
        if port != 0 {
            self.set_pending(domain, port, vcpu.id);
        }
    }

    /// Raises a global VIRQ at every dom0 process that bound it.
    pub fn send_global_virq(&self, virq: u32) {
        let connections: Vec<_> = self.dom0.connections.read().values().cloned().collect();
        for connection in connections {
            let port = connection.virq_ports.get(virq as usize).map_or(0, |p| p.load(Ordering::SeqCst));
            if port != 0 {
                connection.set_pending(port);
            }
        }
    }

    /// `EVTCHNOP_unmask`.
    ///
    /// # Errors
    /// -EINVAL for a port that is not in use.
    pub fn evtchn_unmask(&self, domain: &Domain, port: u32) -> Result<(), i64> {
        let channel = domain.evtchn.get(port).ok_or(errno::EINVAL)?;
        if domain.domid == 0 {
            let connection = domain.connections.read().get(&channel.notify).cloned();
            if let Some(connection) = connection {
                connection.unmask(port);
            }
            return Ok(());
        }
        let machine = &self.memory.machine;
        if let Some(is_pending) = domain.evtchn.with_fifo(|fifo| fifo.unmask(machine, port)) {
            if is_pending {
                self.set_pending_fifo(domain, port, channel.notify);
            }
            return Ok(());
        }
        let (word, bit) = ((port / 64) as usize, 1u64 << (port % 64));
        let was_masked = machine
            .word64(domain.shared_info, EVTCHN_MASK + word * 8)
            .is_ok_and(|mask| mask.fetch_and(!bit, Ordering::SeqCst) & bit != 0);
        let is_pending = machine
            .word64(domain.shared_info, EVTCHN_PENDING + word * 8)
            .is_ok_and(|pending| pending.load(Ordering::SeqCst) & bit != 0);
        if was_masked
            && is_pending
            && let Some(vcpu) = domain.vcpu(channel.notify)
            && !vcpu.info.set_pending_sel(word)
        {
            self.mark_events_pending(vcpu);
        }
        Ok(())
    }

    /// (pending, masked) of a port, for reports.
    pub fn evtchn_bits(&self, domain: &Domain, port: u32) -> (bool, bool) {
        if let Some(bits) = domain.evtchn.with_fifo(|fifo| fifo.bits(&self.memory.machine, port)) {
            return bits;
        }
        let (word, bit) = ((port / 64) as usize, 1u64 << (port % 64));
        let test = |array: usize| {
            self.memory
                .machine
                .word64(domain.shared_info, array + word * 8)
                .is_ok_and(|w| w.load(Ordering::SeqCst) & bit != 0)
        };
        (test(EVTCHN_PENDING), test(EVTCHN_MASK))
    }

    /// Clears the pending bit of a port that was closed.
    pub(super) fn clear_pending(&self, domain: &Domain, port: u32, notify: u32) {
        if domain.domid == 0 {
            let connection = domain.connections.read().get(&notify).cloned();
            if let Some(connection) = connection {
                connection.clear_pending(port);
            }
            return;
        }
        if domain.evtchn.with_fifo(|fifo| fifo.clear_pending(&self.memory.machine, port)).is_some() {
            return;
        }
        let (word, bit) = ((port / 64) as usize, 1u64 << (port % 64));
        if let Ok(pending) = self.memory.machine.word64(domain.shared_info, EVTCHN_PENDING + word * 8) {
            pending.fetch_and(!bit, Ordering::SeqCst);
        }
    }
}

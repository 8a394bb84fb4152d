//! Binding and closing ports. Errors are those of xen/include/public/event_channel.h and Xen's practice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ring3_abi::errno;
use ring3_abi::xen::{NR_VIRQS, VIRQ_DEBUG, VIRQ_TIMER, VIRQ_XENOPROF, VIRQ_XENPMU};

use super::{Binding, Channel};
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;

/// Ports that a reset closes before it looks whether it shall make room.
const PORTS_AT_ONCE: usize = 64;

/// Whether a VIRQ is bound for each vCPU. The others are global: any domain may bind one, but only domain 0 is sent it.
pub const fn is_per_vcpu(virq: u32) -> bool {
    matches!(virq, VIRQ_TIMER | VIRQ_DEBUG | VIRQ_XENOPROF | VIRQ_XENPMU)
}

impl Hypervisor {
    /// `EVTCHNOP_alloc_unbound`: a port of `domain` for `remote` to bind; `notify` is who hears of it.
    ///
    /// # Errors
    /// -ENOSPC.
    pub fn evtchn_alloc_unbound(&self, domain: &Domain, remote: u16, notify: u32) -> Result<u32, i64> {
        let channel = Channel { binding: Binding::Unbound { remote }, notify };
        domain.evtchn.allocate(&self.memory.machine, channel).ok_or(errno::ENOSPC)
    }

    /// `EVTCHNOP_bind_interdomain`: connects a new port of `domain` to an unbound port of `remote`.
    ///
    /// # Errors
    /// -EINVAL if the remote port does not wait for this domain, -ENOSPC.
    pub fn evtchn_bind_interdomain(
        &self,
        domain: &Arc<Domain>,
        notify: u32,
        remote: &Arc<Domain>,
        remote_port: u32,
    ) -> Result<u32, i64> {
        let _bind = self.evtchn_bind.lock();
        let peer = remote.evtchn.get(remote_port).ok_or(errno::EINVAL)?;
        if !matches!(peer.binding, Binding::Unbound { remote } if remote == domain.domid) {
            return Err(errno::EINVAL);
        }
        let mine = Channel {
            binding: Binding::Interdomain { remote: Arc::downgrade(remote), remote_domid: remote.domid, remote_port },
            notify,
        };
        let port = domain.evtchn.allocate(&self.memory.machine, mine).ok_or(errno::ENOSPC)?;
        let binding =
            Binding::Interdomain { remote: Arc::downgrade(domain), remote_domid: domain.domid, remote_port: port };
        remote.evtchn.set(remote_port, Channel { binding, notify: peer.notify });
        // Events sent while the port was unbound were dropped: make the binder look once.
        self.set_pending(domain, port, notify);
        Ok(port)
    }

    fn virq_slot(slots: &[AtomicU32], virq: u32) -> Result<&AtomicU32, i64> {
        slots.get(virq as usize).ok_or(errno::EINVAL)
    }

    /// `EVTCHNOP_bind_virq`.
    ///
    /// # Errors
    /// -EINVAL, also for a global VIRQ on another vCPU than 0; -ENOENT for a vCPU that is not there, -EEXIST, -ENOSPC.
    pub fn evtchn_bind_virq(&self, domain: &Domain, virq: u32, vcpu: u32) -> Result<u32, i64> {
        if virq >= NR_VIRQS {
            return Err(errno::EINVAL);
        }
        if domain.domid != 0 && !is_per_vcpu(virq) && vcpu != 0 {
            return Err(errno::EINVAL);
        }
        let bind = |slots: &[AtomicU32]| {
            let slot = Self::virq_slot(slots, virq)?;
            let _bind = self.evtchn_bind.lock();
            if slot.load(Ordering::SeqCst) != 0 {
                return Err(errno::EEXIST);
            }
            let channel = Channel { binding: Binding::Virq(virq), notify: vcpu };
            let port = domain.evtchn.allocate(&self.memory.machine, channel).ok_or(errno::ENOSPC)?;
            slot.store(port, Ordering::SeqCst);
            Ok(port)
        };
        if domain.domid == 0 {
            let connection = domain.connections.read().get(&vcpu).cloned().ok_or(errno::ENOENT)?;
            return bind(&connection.virq_ports);
        }
        bind(&domain.vcpu(vcpu).ok_or(errno::ENOENT)?.virq_ports)
    }

    /// `EVTCHNOP_bind_ipi`.
    ///
    /// # Errors
    /// -ENOENT for a vCPU that is not there, -ENOSPC.
    pub fn evtchn_bind_ipi(&self, domain: &Domain, vcpu: u32) -> Result<u32, i64> {
        if domain.domid != 0 && domain.vcpu(vcpu).is_none() {
            return Err(errno::ENOENT);
        }
        domain
            .evtchn
            .allocate(&self.memory.machine, Channel { binding: Binding::Ipi, notify: vcpu })
            .ok_or(errno::ENOSPC)
    }

    /// `EVTCHNOP_bind_vcpu`.
    ///
    /// # Errors
    /// -ENOENT for a vCPU that is not there, -EINVAL for a port that is bound to its vCPU for good or not in use.
    pub fn evtchn_bind_vcpu(&self, domain: &Domain, port: u32, vcpu: u32) -> Result<(), i64> {
        let exists =
            if domain.domid == 0 { domain.connections.read().contains_key(&vcpu) } else { domain.vcpu(vcpu).is_some() };
        if !exists {
            return Err(errno::ENOENT);
        }
        let channel = domain.evtchn.get(port).ok_or(errno::EINVAL)?;
        match channel.binding {
            Binding::Unbound { .. } | Binding::Interdomain { .. } => {}
            Binding::Virq(virq) if !is_per_vcpu(virq) && domain.domid != 0 => {}
            _ => return Err(errno::EINVAL),
        }
        domain.evtchn.set_notify(port, vcpu);
        Ok(())
    }

    /// `EVTCHNOP_close`.
    ///
    /// # Errors
    /// -EINVAL for a port that is not in use.
    pub fn evtchn_close(&self, domain: &Domain, port: u32) -> Result<(), i64> {
        let _bind = self.evtchn_bind.lock();
        let channel = domain.evtchn.get(port).ok_or(errno::EINVAL)?;
        match &channel.binding {
            Binding::Free => return Err(errno::EINVAL),
            Binding::Interdomain { remote, remote_port, .. } => {
                if let Some(remote) = remote.upgrade()
                    && let Some(peer) = remote.evtchn.get(*remote_port)
                    && matches!(peer.binding, Binding::Interdomain { remote_domid, remote_port, .. }
                        if remote_domid == domain.domid && remote_port == port)
                {
                    let binding = Binding::Unbound { remote: domain.domid };
                    remote.evtchn.set(*remote_port, Channel { binding, notify: peer.notify });
                }
            }
            Binding::Virq(virq) => {
                let clear = |slots: &[AtomicU32]| {
                    if let Some(slot) = slots.get(*virq as usize) {
                        let _ = slot.compare_exchange(port, 0, Ordering::SeqCst, Ordering::SeqCst);
                    }
                };
                if domain.domid == 0 {
                    for connection in domain.connections.read().values() {
                        clear(&connection.virq_ports);
                    }
                } else {
                    domain.vcpus.iter().for_each(|vcpu| clear(&vcpu.virq_ports));
                }
            }
            Binding::Unbound { .. } | Binding::Ipi => {}
        }
        self.clear_pending(domain, port, channel.notify);
        domain.evtchn.set(port, Channel::default());
        Ok(())
    }

    /// `EVTCHNOP_reset`, and the end of a domain: closes every port, and goes back to the 2-level ABI. `false`: stopped
    /// because `is_wanted` says so; who comes again closes what is left.
    pub fn evtchn_reset(&self, domain: &Domain, is_wanted: &dyn Fn() -> bool) -> bool {
        for (nr_done, port) in domain.evtchn.bound(|_| true).into_iter().enumerate() {
            if nr_done != 0 && nr_done.is_multiple_of(PORTS_AT_ONCE) && is_wanted() {
                return false;
            }
            let _ = self.evtchn_close(domain, port);
        }
        self.evtchn_drop_fifo(domain);
        true
    }

    /// Closes what a dom0 process had bound.
    pub fn evtchn_close_connection(&self, connection: u32) {
        for port in self.dom0.evtchn.bound(|channel| channel.notify == connection) {
            let _ = self.evtchn_close(&self.dom0, port);
        }
    }
}

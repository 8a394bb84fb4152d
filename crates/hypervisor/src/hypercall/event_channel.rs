//! event_channel_op.

use std::sync::atomic::Ordering;

use ring3_abi::errno;
use ring3_abi::event_channel::*;
use ring3_abi::hypercall::__HYPERVISOR_event_channel_op;
use ring3_machine::Mfn;

use super::physdev::NR_PIRQS;
use super::{Args, Caller, HypercallResult, Served, Wanted, int, should_preempt};
use crate::evtchn::Binding;
use crate::vcpu::bounce::Running;

impl Running<'_> {
    /// event_channel_op.
    pub(super) fn event_channel_op(&mut self, args: &Args) -> Served {
        let [cmd, arg, a3, a4, _, _] = *args;
        let caller = Caller::of_guest(self);
        let result = caller.event_channel_op(int(cmd), arg, &|| should_preempt(self));
        Served::or_again(result, [EVTCHNOP_reset_cont.into(), arg, a3, a4])
    }
}

impl Caller<'_> {
    /// vCPU that hears of a new port: the calling dom0 process, or vCPU 0.
    fn default_notify(&self) -> u32 {
        if self.domain.domid == 0 { self.id } else { 0 }
    }

    /// event_channel_op. `is_wanted` says whether a long call shall make room: -ERESTART then.
    pub(super) fn event_channel_op(&self, cmd: u32, arg: u64, is_wanted: Wanted<'_>) -> HypercallResult {
        self.hv.table.count(__HYPERVISOR_event_channel_op, cmd);
        let (hv, domain) = (self.hv, self.domain);
        match cmd {
            EVTCHNOP_send => {
                let send: evtchn_send = self.read(arg)?;
                hv.evtchn_send(domain, send.port)?;
            }
            EVTCHNOP_unmask => {
                let unmask: evtchn_unmask = self.read(arg)?;
                hv.evtchn_unmask(domain, unmask.port)?;
            }
            EVTCHNOP_alloc_unbound => {
                let mut alloc: evtchn_alloc_unbound = self.read(arg)?;
                let target = self.target(alloc.dom)?;
                let remote = self.self_or(alloc.remote_dom);
                let notify = if target.domid == domain.domid { self.default_notify() } else { 0 };
                alloc.port = hv.evtchn_alloc_unbound(&target, remote, notify)?;
                self.write(arg, &alloc)?;
            }
            EVTCHNOP_bind_interdomain => {
                let mut bind: evtchn_bind_interdomain = self.read(arg)?;
                let remote = hv.domain(self.self_or(bind.remote_dom)).ok_or(errno::ESRCH)?;
                let me = hv.domain(domain.domid).ok_or(errno::ESRCH)?;
                if remote.is_dying.load(Ordering::SeqCst) {
                    return Err(errno::ESRCH);
                }
                bind.local_port = hv.evtchn_bind_interdomain(&me, self.default_notify(), &remote, bind.remote_port)?;
                self.write(arg, &bind)?;
            }
            EVTCHNOP_bind_virq => {
                let mut bind: evtchn_bind_virq = self.read(arg)?;
                // A dom0 process names itself, whatever vCPU it asks for.
                let vcpu = if domain.domid == 0 { self.id } else { bind.vcpu };
                bind.port = hv.evtchn_bind_virq(domain, bind.virq, vcpu)?;
                self.write(arg, &bind)?;
            }
            EVTCHNOP_bind_ipi => {
                let mut bind: evtchn_bind_ipi = self.read(arg)?;
                let vcpu = if domain.domid == 0 { self.id } else { bind.vcpu };
                bind.port = hv.evtchn_bind_ipi(domain, vcpu)?;
                self.write(arg, &bind)?;
            }
            EVTCHNOP_close => {
                let close: evtchn_close = self.read(arg)?;
                hv.evtchn_close(domain, close.port)?;
            }
            EVTCHNOP_status => {
                let mut status: evtchn_status = self.read(arg)?;
                self.evtchn_status(&mut status)?;
                self.write(arg, &status)?;
            }
            EVTCHNOP_bind_vcpu => {
                let bind: evtchn_bind_vcpu = self.read(arg)?;
                hv.evtchn_bind_vcpu(domain, bind.port, bind.vcpu)?;
            }
            EVTCHNOP_reset | EVTCHNOP_reset_cont => {
                let reset: evtchn_reset = self.read(arg)?;
                let target = self.target(reset.dom)?;
                if target.domid == 0 {
                    // For domain 0 that is: for this process.
                    hv.evtchn_close_connection(self.id);
                } else if target.domid != domain.domid && target.life.lock().controller_pauses == 0 {
                    return Err(errno::EINVAL);
                } else if !hv.evtchn_reset(&target, is_wanted) {
                    return Err(errno::ERESTART);
                }
            }
            // Domain 0's processes have shared_info pages of their own, with the 2-level ABI.
            EVTCHNOP_init_control | EVTCHNOP_expand_array | EVTCHNOP_set_priority if domain.domid == 0 => {
                return Err(errno::ENOSYS);
            }
            EVTCHNOP_init_control => {
                let mut init: evtchn_init_control = self.read(arg)?;
                hv.evtchn_init_control(domain, init.vcpu, Mfn(init.control_gfn), init.offset)?;
                init.link_bits = EVTCHN_FIFO_LINK_BITS;
                self.write(arg, &init)?;
            }
            EVTCHNOP_expand_array => {
                let expand: evtchn_expand_array = self.read(arg)?;
                hv.evtchn_expand_array(domain, Mfn(expand.array_gfn))?;
            }
            EVTCHNOP_set_priority => {
                let set: evtchn_set_priority = self.read(arg)?;
                hv.evtchn_set_priority(domain, set.port, set.priority)?;
            }
            EVTCHNOP_bind_pirq => {
                let bind: evtchn_bind_pirq = self.read(arg)?;
                // No domain owns an interrupt.
                return Err(if bind.pirq < NR_PIRQS { errno::EPERM } else { errno::EINVAL });
            }
            _ => return Err(errno::ENOSYS),
        }
        Ok(0)
    }

    /// event_channel_op_compat: the command and its union in one structure.
    pub(super) fn event_channel_op_compat(&self, arg: u64) -> HypercallResult {
        let cmd: u32 = self.read(arg)?;
        if cmd > EVTCHNOP_unmask {
            return Err(errno::ENOSYS);
        }
        // The union follows the 32-bit command at its own alignment.
        self.event_channel_op(cmd, arg.wrapping_add(4), &|| false)
    }

    fn self_or(&self, domid: u16) -> u16 {
        if domid == ring3_abi::xen::DOMID_SELF { self.domain.domid } else { domid }
    }

    fn evtchn_status(&self, status: &mut evtchn_status) -> Result<(), i64> {
        // Whether there is such a port is told before whether one may ask.
        if let Some(other) = self.hv.domain(status.dom).filter(|other| other.domid != self.domain.domid) {
            other.evtchn.get(status.port).ok_or(errno::EINVAL)?;
        }
        let target = self.target(status.dom)?;
        let channel = target.evtchn.get(status.port).ok_or(errno::EINVAL)?;
        status.vcpu = channel.notify;
        status.u = [0; 2];
        status.status = match channel.binding {
            Binding::Free => EVTCHNSTAT_closed,
            Binding::Unbound { remote } => {
                status.u[0] = u32::from(remote);
                EVTCHNSTAT_unbound
            }
            Binding::Interdomain { remote_domid, remote_port, .. } => {
                status.u = [u32::from(remote_domid), remote_port];
                EVTCHNSTAT_interdomain
            }
            Binding::Virq(virq) => {
                status.u[0] = virq;
                EVTCHNSTAT_virq
            }
            Binding::Ipi => EVTCHNSTAT_ipi,
        };
        Ok(())
    }
}

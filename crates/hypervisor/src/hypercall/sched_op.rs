//! sched_op: block, yield, poll, shutdown.

use std::sync::atomic::Ordering;

use ring3_abi::errno;
use ring3_abi::hypercall::__HYPERVISOR_sched_op;
use ring3_abi::sched::*;

use super::{Caller, HypercallResult};
use crate::evtchn::POLL_ANY;
use crate::time::TimerKind;
use crate::vcpu::Action;
use crate::vcpu::bounce::Running;

/// Most ports of one poll, as on Xen.
const MAX_POLL_PORTS: u32 = 128;

impl Caller<'_> {
    /// What needs no vCPU: remote_shutdown.
    pub(super) fn sched_op(&self, cmd: u32, arg: u64) -> HypercallResult {
        self.hv.table.count(__HYPERVISOR_sched_op, cmd);
        match cmd {
            SCHEDOP_remote_shutdown => {
                let remote: sched_remote_shutdown = self.read(arg)?;
                self.hv.domain(remote.domain_id).ok_or(errno::ESRCH)?;
                if !self.domain.is_privileged {
                    return Err(errno::EPERM);
                }
                self.hv.domain_shutdown(remote.domain_id, remote.reason & 0xff).map_err(|e| e.errno())?;
                Ok(0)
            }
            SCHEDOP_yield => Ok(0),
            _ => Err(errno::ENOSYS),
        }
    }
}

impl Running<'_> {
    /// sched_op.
    pub(super) fn sched_op(&mut self, cmd: u32, arg: u64) -> HypercallResult {
        let caller = Caller::of_guest(self);
        match cmd {
            SCHEDOP_yield => self.state.action = Action::Yield,
            SCHEDOP_block => self.block(),
            SCHEDOP_shutdown => {
                let shutdown: sched_shutdown = caller.read(arg)?;
                self.shut_down(shutdown.reason);
            }
            SCHEDOP_poll => {
                let poll: sched_poll = caller.read(arg)?;
                self.hv.table.count(__HYPERVISOR_sched_op, cmd);
                return self.poll(&poll);
            }
            SCHEDOP_shutdown_code => {
                let code: sched_shutdown = caller.read(arg)?;
                self.domain.life.lock().shutdown_code.get_or_insert(code.reason & 0xff);
            }
            SCHEDOP_watchdog => {
                let watchdog: sched_watchdog = caller.read(arg)?;
                self.hv.table.count(__HYPERVISOR_sched_op, cmd);
                return self.watchdog(&watchdog);
            }
            // For a hardware domain.
            SCHEDOP_pin_override => {
                self.hv.table.count(__HYPERVISOR_sched_op, cmd);
                return Err(errno::EPERM);
            }
            _ => return caller.sched_op(cmd, arg),
        }
        self.hv.table.count(__HYPERVISOR_sched_op, cmd);
        Ok(0)
    }

    /// sched_op_compat: `arg` of shutdown is the reason itself.
    pub(super) fn sched_op_compat(&mut self, cmd: u32, arg: u64) -> HypercallResult {
        match cmd {
            SCHEDOP_yield => self.state.action = Action::Yield,
            SCHEDOP_block => self.block(),
            SCHEDOP_shutdown => self.shut_down((arg & 0xff) as u32),
            _ => return Err(errno::ENOSYS),
        }
        Ok(0)
    }

    fn shut_down(&mut self, reason: u32) {
        self.hv.shutdown_domain(self.domain, reason);
        self.state.action = Action::Deschedule;
    }

    /// Starts, restarts or stops one of the domain's two watchdogs. Id 0 takes one that is not in use.
    fn watchdog(&mut self, op: &sched_watchdog) -> HypercallResult {
        const KINDS: [TimerKind; 2] = [TimerKind::Watchdog1, TimerKind::Watchdog2];
        let Some(holder) = self.domain.vcpu(0) else { return Err(errno::EINVAL) };
        let mut life = self.domain.life.lock();
        let index = match op.id {
            0 => match (0..KINDS.len()).find(|index| life.watchdogs & (1 << index) == 0) {
                Some(index) => index,
                // Xen loses the sign: the caller sees the number as an unsigned one of 32 bits.
                None => return Ok(i64::from((-errno::ENOSPC & 0xffff_ffff) as u32)),
            },
            id => id as usize - 1,
        };
        let kind = *KINDS.get(index).ok_or(errno::EINVAL)?;
        let is_new = op.id == 0;
        if !is_new && life.watchdogs & (1 << index) == 0 {
            return Err(errno::EINVAL);
        }
        if !is_new && op.timeout == 0 {
            life.watchdogs &= !(1 << index);
            self.hv.timers.disarm(holder, kind);
            return Ok(0);
        }
        life.watchdogs |= 1 << index;
        let deadline = self.hv.clock.now_ns().saturating_add(u64::from(op.timeout) * 1_000_000_000);
        self.hv.timers.arm(holder, kind, deadline);
        Ok(if is_new { index as i64 + 1 } else { 0 })
    }

    /// Unmasks events and sleeps until one is due. The order matters: first `blocked`, then the look at events, so
    /// that a sender either sees `blocked` or is seen.
    fn block(&mut self) {
        self.vcpu.info.set_upcall_mask(false);
        self.vcpu.blocked.store(true, Ordering::SeqCst);
        self.hv.answer_own_bells(self.vcpu);
        if self.vcpu.info.is_upcall_pending() || self.vcpu.nmi_pending.load(Ordering::SeqCst) {
            self.vcpu.blocked.store(false, Ordering::SeqCst);
        } else {
            self.state.action = Action::Deschedule;
        }
    }

    /// Looks at the ports in turn, as far as the first that is pending; one alone is noted.
    fn is_polled_port_pending(&self, poll: &sched_poll) -> Result<bool, i64> {
        let caller = Caller::of_guest(self);
        for index in 0..u64::from(poll.nr_ports) {
            let port: u32 = caller.read(Caller::element::<u32>(poll.ports, index))?;
            if port == 0 || self.domain.evtchn.get(port).is_none() {
                return Err(errno::EINVAL);
            }
            if self.hv.evtchn_bits(self.domain, port).0 {
                return Ok(true);
            }
            if poll.nr_ports == 1 {
                // Unless somebody has ended the poll already.
                let polling = &self.vcpu.polling;
                let _ = polling.compare_exchange(POLL_ANY, port + 1, Ordering::SeqCst, Ordering::SeqCst);
            }
        }
        Ok(false)
    }

    fn poll(&mut self, poll: &sched_poll) -> HypercallResult {
        if poll.nr_ports > MAX_POLL_PORTS {
            return Err(errno::EINVAL);
        }
        Caller::of_guest(self).check_array(poll.ports, u64::from(poll.nr_ports), size_of::<u32>() as u64)?;
        // A poll that something else than its ports or its time ended has left these as they were.
        if self.vcpu.polling.swap(POLL_ANY, Ordering::SeqCst) == 0 {
            self.domain.nr_polling.fetch_add(1, Ordering::SeqCst);
        }
        self.vcpu.blocked.store(true, Ordering::SeqCst);
        self.hv.answer_own_bells(self.vcpu);
        let found = if self.vcpu.info.is_upcall_due() { Ok(true) } else { self.is_polled_port_pending(poll) };
        if found != Ok(false) {
            self.vcpu.blocked.store(false, Ordering::SeqCst);
            self.hv.end_poll(self.domain, self.vcpu);
            return found.map(|_| 0);
        }
        if poll.timeout != 0 {
            self.arm(TimerKind::Poll, poll.timeout);
        }
        self.state.action = Action::Deschedule;
        Ok(0)
    }
}

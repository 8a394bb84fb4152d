//! The run loop: enters the guest, and serves each exit, until the vCPU must leave its pCPU.

use ring3_engine::{Exit, GprName, GuestMode, Requests};

use super::bounce::{Running, Undeliverable};
use super::{Action, Vcpu, VcpuState};
use crate::domain::Domain;
use crate::hypercall;
use crate::hypervisor::Hypervisor;

/// Why a vCPU left its pCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It is not runnable any more.
    Stopped,
    /// Others want their turn.
    Preempted,
    /// It waits for another vCPU, and others want to run.
    Yielded,
}

/// Runs a vCPU until it must leave the pCPU. The worker holds its state; no other lock is held.
pub fn run(hv: &Hypervisor, domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) -> Leave {
    let mut running = Running { hv, domain, vcpu, state };
    loop {
        if !vcpu.is_runnable() {
            return Leave::Stopped;
        }
        // What a long operation has left goes before the guest does. Where that stops, the request that stopped it is still
        // posted, and the engine comes back at once.
        let is_drained = !running.state.long.is_draining()
            || hv.frames.drain(&mut running.state.long, &mut || vcpu.is_wanted_elsewhere());
        if is_drained {
            let is_new = std::mem::take(&mut running.state.must_load_segments);
            let entered = if is_new { running.load_segments() } else { Ok(()) };
            if let Err(undeliverable) = entered.and_then(|()| running.deliver_pending()) {
                running.crash(undeliverable);
                return Leave::Stopped;
            }
        }
        let cpu = &mut running.state.cpu;
        let exit = if is_drained && running.state.progress.is_held_back() { cpu.step(None) } else { cpu.run() };
        let served = match exit {
            Exit::Hypercall => running.hypercall(),
            Exit::Syscall => running.syscall(),
            Exit::Exception { vector, error_code, cr2 } => running.exception(vector, error_code, cr2),
            Exit::Debug { hits } => running.debug_exception(hits),
            Exit::SoftwareInterrupt { vector } => running.software_interrupt(vector),
            Exit::Privileged => running.privileged(),
            Exit::Interrupted(requests) => {
                if requests.intersects(Requests::RESCHEDULE) {
                    return Leave::Preempted;
                }
                Ok(())
            }
            Exit::Spinning => {
                running.state.action = Action::Yield;
                Ok(())
            }
            Exit::Stepped => Ok(()),
            Exit::Failed(reason) => Err(Undeliverable(format!("the engine failed: {reason}"), None)),
        };
        if let Err(undeliverable) = served {
            running.crash(undeliverable);
            return Leave::Stopped;
        }
        match std::mem::take(&mut running.state.action) {
            Action::Yield if hv.sched.is_wanted() => return Leave::Yielded,
            Action::None | Action::Yield => {}
            Action::Deschedule => return Leave::Stopped,
        }
    }
}

impl Running<'_> {
    fn hypercall(&mut self) -> Result<(), Undeliverable> {
        if self.state.cpu.mode() == GuestMode::User {
            return self.syscall();
        }
        // `syscall` and the `sysret` of the way back set them, whatever they were.
        self.state.load_flat();
        let regs = self.state.cpu.regs();
        let op = regs.get(GprName::Rax);
        if op == u64::from(ring3_abi::hypercall::__HYPERVISOR_iret) {
            self.hv.table.count(ring3_abi::hypercall::__HYPERVISOR_iret, hypercall::WHOLE);
            return self.iret();
        }
        let args = [
            regs.get(GprName::Rdi),
            regs.get(GprName::Rsi),
            regs.get(GprName::Rdx),
            regs.get(GprName::R10),
            regs.get(GprName::R8),
            regs.get(GprName::R9),
        ];
        let result = hypercall::dispatch_guest(self, op, &args);
        self.state.cpu.regs_mut().set(GprName::Rax, result as u64);
        // `sysret`, by which Xen returns, traps at once where it sets TF.
        let was_stepping = self.is_stepping() && self.state.action == Action::None;
        self.instruction_done(0, was_stepping)
    }

    /// Crashes the domain with a report.
    pub fn crash(&mut self, why: Undeliverable) {
        let Undeliverable(reason, va) = why;
        let report = crate::domain::crash_report(self, &reason, va);
        self.hv.crash_domain(self.domain, &reason, Some(report));
        self.hv.end_poll(self.domain, self.vcpu);
    }
}

//! The run loop: enters the guest, and serves each exit, until the vCPU must leave its pCPU.

use std::sync::atomic::Ordering;

use ring3_engine::{Exit, GprName, GuestMode, Requests};

use super::bounce::{Running, Undeliverable};
use super::{Action, Vcpu, VcpuState};
use crate::domain::Domain;
use crate::hypercall;
use crate::hypervisor::Hypervisor;

/// Runs a vCPU until it must leave the pCPU: it is not runnable any more, or others want their turn. The worker holds
/// its state; no other lock is held.
pub fn run(hv: &Hypervisor, domain: &Domain, vcpu: &Vcpu, state: &mut VcpuState) {
    let mut running = Running { hv, domain, vcpu, state };
    loop {
        if !vcpu.is_runnable() {
            return;
        }
        if let Err(undeliverable) = running.deliver_pending() {
            running.crash(undeliverable);
            return;
        }
        let exit = running.state.cpu.run();
        let served = match exit {
            Exit::Hypercall => running.hypercall(),
            Exit::Syscall => running.syscall(),
            Exit::Exception { vector, error_code, cr2 } => running.exception(vector, error_code, cr2),
            Exit::SoftwareInterrupt { vector } => running.software_interrupt(vector),
            Exit::Privileged => running.privileged(),
            Exit::Interrupted(requests) => {
                if requests.intersects(Requests::RESCHEDULE) {
                    return;
                }
                Ok(())
            }
            Exit::Stepped => Ok(()),
            Exit::Failed(reason) => Err(Undeliverable(format!("the engine failed: {reason}"), None)),
        };
        if let Err(undeliverable) = served {
            running.crash(undeliverable);
            return;
        }
        match std::mem::take(&mut running.state.action) {
            Action::None => {}
            Action::Yield | Action::Deschedule => return,
        }
    }
}

impl Running<'_> {
    fn hypercall(&mut self) -> Result<(), Undeliverable> {
        if self.state.cpu.mode() == GuestMode::User {
            return self.syscall();
        }
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
        Ok(())
    }

    /// Crashes the domain with a report.
    pub fn crash(&mut self, why: Undeliverable) {
        let Undeliverable(reason, va) = why;
        let report = crate::domain::crash_report(self, &reason, va);
        self.hv.crash_domain(self.domain, &reason, Some(report));
        self.vcpu.polling.store(0, Ordering::Relaxed);
    }
}

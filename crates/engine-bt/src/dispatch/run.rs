//! The loop around translated code: enters it, and sees to why it came back.

use ring3_engine::{Exit, GprName, GuestMode, Vcpu, VcpuControl, vector};
use ring3_machine::PAGE_SIZE;

use super::lookup::Found;
use super::state_unsafe;
use super::trace::{Path, Place};
use super::vcpu::{BtVcpu, no_fpu, protection, undefined};
use crate::emit::stubs::reason;
use crate::fault;
use crate::interp::Outcome;
use crate::state::SPIN_PAUSES;
use crate::tlb::{self, Stop};

impl BtVcpu {
    /// Enters translated code at a far entry for `rip`; returns the reason it came back.
    pub(super) fn execute(&mut self, rip: u64, host: u64, enter: u64) -> u32 {
        let context = std::ptr::from_mut(self) as u64;
        let state = self.state_mut();
        state.exit_value = rip;
        state.context = context;
        let pointer = self.state_ptr();
        state_unsafe::run_code(pointer, enter, host);
        let state = self.state_mut();
        state.settle_flags();
        state.exit_reason as u32
    }

    /// RIP of a page offset in the current block's page.
    pub(super) fn rip_at(&self, offset: u64) -> u64 {
        self.rip_of(self.state().page_base.wrapping_add(offset))
    }

    /// Finishes an exit: registers become architectural.
    pub(super) fn exit_at(&mut self, rip: u64, exit: Exit) -> Exit {
        self.leave_guest();
        let state = self.state_mut();
        state.regs.rip = rip;
        state.pack_flags();
        exit
    }

    /// The exit for `syscall`.
    pub(super) fn syscall(&mut self, rip: u64) -> Exit {
        let exit = if self.mode == GuestMode::Kernel { Exit::Hypercall } else { Exit::Syscall };
        let exit = self.exit_at(rip, exit);
        let regs = self.regs_mut();
        regs.set(GprName::Rcx, rip);
        let flags = regs.rflags;
        regs.set(GprName::R11, flags);
        exit
    }

    /// Whether the host refused a locked operand across cache lines, which the guest's CPU does not.
    fn is_split_lock(&self) -> bool {
        let signal = self.state().fault_signal;
        (signal & 0xff) as i32 == libc::SIGBUS && signal >> 8 == u64::from(vector::AC) && !self.checks_alignment()
    }

    /// The exit for a host signal in translated code.
    pub(super) fn signalled(&mut self, offset: Option<usize>) -> Exit {
        let signal = self.state().fault_signal;
        let exit = fault::exception((signal & 0xff) as i32, signal >> 8);
        match offset {
            Some(offset) => {
                let rip = self.rip_at(offset as u64);
                self.exit_at(rip, exit)
            }
            None => {
                let rip = self.state().page_base;
                self.exit_at(rip, Exit::Failed("a host fault outside any guest instruction"))
            }
        }
    }

    pub(super) fn run_loop(&mut self) -> Exit {
        let enter = self.domain.cache().stubs().enter;
        let mut rip = self.regs().rip;
        // Where to go on, if that is not the usual block for `rip`.
        let mut ungrouped = None;
        // Translated code has looked into the jump cache.
        let mut has_looked = false;
        // It came by a near jump, after which nobody may look: flags that the next block overwrites first need not be exact.
        let mut is_between = false;
        // It looks where a loop goes.
        let mut path: Option<Path> = None;
        loop {
            let (next, anew) = (ungrouped.take(), std::mem::take(&mut has_looked));
            self.enter_guest();
            if self.is_requested() {
                self.leave_guest();
                let rest = self.take_requests();
                if !rest.is_empty() && !is_between {
                    return self.exit_at(rip, Exit::Interrupted(rest));
                }
                if rest.is_empty() {
                    continue;
                }
                // Later, that is at the next safe point.
                self.shared_control().request(rest);
                self.enter_guest();
            }
            if let Some(exit) = self.trap_of_hits(rip) {
                return exit;
            }
            if self.is_stepped_at(rip) {
                match self.traced_step(rip) {
                    Ok(next) => rip = next,
                    Err(exit) => return exit,
                }
                continue;
            }
            if let Some(mut taken) = path.take() {
                match taken.take(rip) {
                    Place::OnPath => {
                        path = Some(taken);
                        match self.step_at(rip, None) {
                            Exit::Stepped => rip = self.regs().rip,
                            other => return other,
                        }
                        continue;
                    }
                    Place::AtHead => self.make_trace(&taken),
                    Place::Lost => {}
                }
            }
            let found = match next {
                Some(host) => Found::Host(host),
                None if anew => self.lookup_anew(rip),
                None => self.lookup(rip),
            };
            let host = match found {
                Found::Host(host) => host,
                Found::Fault(exit) => return self.exit_at(rip, exit),
                Found::Changing => {
                    match self.step_at(rip, None) {
                        Exit::Stepped => rip = self.regs().rip,
                        other => return other,
                    }
                    continue;
                }
                Found::Again => {
                    has_looked = anew;
                    continue;
                }
            };
            is_between = false;
            let why = self.execute(rip, host, enter);
            let value = self.state().exit_value;
            match why {
                reason::JUMP => (rip, has_looked) = (value, true),
                reason::PENDING => rip = value,
                reason::TURN => {
                    rip = value;
                    path = self.path_from(rip, true);
                }
                reason::LINK => {
                    rip = self.rip_at(value);
                    is_between = true;
                    self.resolve_link(rip, true);
                    path = self.path_from(rip, false);
                }
                reason::UNGROUPED => {
                    rip = self.rip_at(value);
                    ungrouped = self.resolve_link(rip, false);
                }
                reason::SPINNING => {
                    self.state_mut().pauses = SPIN_PAUSES;
                    return self.exit_at(value, Exit::Spinning);
                }
                reason::SYSCALL => {
                    let next = self.rip_at(value);
                    return self.syscall(next);
                }
                reason::INTERPRET => {
                    self.leave_guest();
                    rip = self.rip_at(value);
                    match self.interpret(rip, false) {
                        Outcome::Done(next) => rip = next,
                        Outcome::Exit(at, exit) => return self.exit_at(at, exit),
                    }
                }
                reason::STRING => {
                    self.leave_guest();
                    let at = self.rip_at(value & 0x1fff);
                    match self.string_at(at, value as u32 >> 13) {
                        Outcome::Done(next) => rip = next,
                        Outcome::Exit(at, exit) => return self.exit_at(at, exit),
                    }
                }
                reason::STEP => {
                    let at = self.rip_at(value);
                    match self.step_at(at, None) {
                        Exit::Stepped => rip = self.regs().rip,
                        other => return other,
                    }
                }
                reason::UNDEFINED => {
                    let at = self.rip_at(value);
                    return self.exit_at(at, undefined());
                }
                reason::TOO_LONG => {
                    let at = self.rip_at(value);
                    return self.exit_at(at, protection());
                }
                reason::NO_FPU => {
                    let at = self.rip_at(value);
                    return self.exit_at(at, no_fpu());
                }
                reason::INTERRUPT => {
                    let next = self.rip_at(value & 0xffff);
                    return self.exit_at(next, Exit::SoftwareInterrupt { vector: (value >> 16) as u8 });
                }
                reason::ACCESS => {
                    let at = self.rip_at(tlb::instruction_offset(self.state().access_info));
                    match self.stop.take() {
                        Some(Stop::Fault(exit)) => return self.exit_at(at, exit),
                        Some(Stop::Step | Stop::Alone | Stop::Code(_)) => match self.step_at(at, None) {
                            Exit::Stepped => rip = self.regs().rip,
                            other => return other,
                        },
                        None => return self.exit_at(at, Exit::Failed("a slow access without a cause")),
                    }
                }
                reason::SIGNAL => {
                    let point = self.domain.cache().guest_offset(self.state().fault_pc);
                    if let Some((_, flags)) = point {
                        self.state_mut().take_flags(flags);
                    }
                    let offset = point.map(|(offset, _)| offset);
                    if let Some(offset) = offset.filter(|_| self.is_split_lock()) {
                        let at = self.rip_at(offset as u64);
                        match self.step_at(at, None) {
                            Exit::Stepped => rip = self.regs().rip,
                            other => return other,
                        }
                        continue;
                    }
                    return self.signalled(offset);
                }
                _ => return self.exit_at(rip, Exit::Failed("an unknown exit from translated code")),
            }
        }
    }

    /// Chains the link that was just taken to its target's block, making that first if need be. Returns its far entry.
    fn resolve_link(&mut self, rip: u64, grouped: bool) -> Option<u64> {
        let number = self.state().link;
        let generation = {
            let cache = self.domain.cache();
            if cache.is_draining() {
                return None;
            }
            cache.generation()
        };
        let host = if grouped {
            let Found::Host(host) = self.lookup(rip) else { return None };
            host
        } else {
            self.lookup_ungrouped(rip)?
        };
        let mfn = self.fetch_frame(rip).ok()?;
        let key = crate::cache::Key::new(mfn, (rip % PAGE_SIZE) as usize, self.variant());
        let key = if grouped { key } else { key.ungrouped() };
        let mut cache = self.domain.cache();
        // Link numbers are void after an eviction; one that is under way cannot finish while this vCPU is in the guest.
        if cache.generation() == generation {
            cache.resolve(number, key);
        }
        Some(host)
    }
}

//! Control and debug registers, XCR0.
//! Sources: Intel SDM vol. 3 and 4; AMD APM vol. 2; Linux arch/x86/xen/enlighten_pv.c, the consumer.

#![allow(clippy::cast_possible_truncation, reason = "instructions take the low part of a register")]

use iced_x86::Register;
use ring3_engine::{Flush, GprName, GuestMode};

use super::super::bounce::Running;
use super::operand::{get, set};
use super::{CR0_TS, Done, GP0, Insn};
use crate::cpuid::is_xcr0;

impl Running<'_> {
    /// `mov` to and from control, debug and segment registers.
    pub(super) fn mov_special(&mut self, insn: &Insn) -> Done {
        let (to, from) = (insn.insn.op0_register(), insn.insn.op1_register());
        if to.is_segment_register() || from.is_segment_register() {
            return self.mov_segment(insn);
        }
        if !self.state.is_kernel() {
            return GP0;
        }
        let source = get(self.state.cpu.regs(), from).unwrap_or(0);
        if to.is_cr() {
            return self.write_cr(to, source);
        }
        if to.is_dr() {
            return match self.state.set_debugreg(to.number(), source) {
                Ok(()) => Done::Next,
                Err(_) => GP0,
            };
        }
        let value = if from.is_cr() {
            match from {
                Register::CR0 => self.state.cr0,
                Register::CR2 => self.state.cr2,
                Register::CR3 => self.state.root(GuestMode::Kernel).address(),
                Register::CR4 => self.state.cr4,
                _ => return GP0,
            }
        } else if from.is_dr() {
            match self.state.get_debugreg(from.number()) {
                Ok(value) => value,
                Err(_) => return GP0,
            }
        } else {
            return GP0;
        };
        set(self.state.cpu.regs_mut(), to, value);
        Done::Next
    }

    fn write_cr(&mut self, register: Register, value: u64) -> Done {
        match register {
            Register::CR0 => {
                if (value ^ self.state.cr0) & !CR0_TS != 0 {
                    return GP0;
                }
                self.state.set_task_switched(value & CR0_TS != 0);
            }
            Register::CR2 => {
                self.state.cr2 = value;
                self.vcpu.info.set_cr2(value);
            }
            Register::CR3 => match self.new_baseptr(ring3_machine::Mfn::containing(value & 0x000f_ffff_ffff_f000)) {
                Ok(true) => {}
                Ok(false) => return Done::Again,
                Err(_) => return GP0,
            },
            Register::CR4 => {
                let is_tsc_emulated = self.domain.tsc.lock().is_emulated();
                self.state.set_cr4(value, is_tsc_emulated);
                self.state.cpu.flush(Flush::All);
            }
            _ => return GP0,
        }
        Done::Next
    }

    /// `xsetbv`: XCR0 may be set to what the policy has, or a valid subset.
    pub(super) fn xsetbv(&mut self) -> Done {
        let regs = self.state.cpu.regs();
        let index = regs.get(GprName::Rcx) as u32;
        let value = (regs.get(GprName::Rdx) << 32) | (regs.get(GprName::Rax) & 0xffff_ffff);
        if index != 0 || !is_xcr0(value, self.state.xcr0_max()) {
            return GP0;
        }
        self.state.set_xcr0(value);
        self.state.xcr0_accum |= value;
        Done::Next
    }
}

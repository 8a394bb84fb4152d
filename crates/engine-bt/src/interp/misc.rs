//! Flags, frames, segment reads, bases.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use ring3_engine::{GprName, rflags};

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;
use crate::tlb::is_canonical;

/// Flags that `popf` may change at ring 3 with IOPL 0.
const POPF_MASK: u64 = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::AC | rflags::ID;

impl BtVcpu {
    pub(super) fn popf(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Popf { 2 } else { 8 };
        let rsp = self.gpr(GprName::Rsp);
        let value = self.read_element(rsp, size)?;
        self.load_flags(value, size);
        self.set_gpr(GprName::Rsp, rsp.wrapping_add(size));
        Ok(Next::Advance)
    }

    /// Sets what `popf` of `size` bytes may set.
    pub(super) fn load_flags(&mut self, value: u64, size: u64) {
        let mask = if size == 2 { POPF_MASK & 0xffff } else { POPF_MASK };
        let state = self.state_mut();
        state.pack_flags();
        state.regs.rflags = state.regs.rflags & !mask & !rflags::RF | value & mask | rflags::FIXED;
        state.unpack_flags();
    }

    /// `pushfw`.
    pub(super) fn pushf_word(&mut self) -> Step {
        self.state_mut().pack_flags();
        let value = self.state().regs.rflags & 0xffff;
        let rsp = self.gpr(GprName::Rsp).wrapping_sub(2);
        self.store_element(rsp, value, 2)?;
        self.set_gpr(GprName::Rsp, rsp);
        Ok(Next::Advance)
    }

    pub(super) fn enter(&mut self, instr: &Instruction) -> Step {
        if instr.code() == iced_x86::Code::Enterw_imm16_imm8 {
            return Ok(Next::Privileged);
        }
        let (bytes, level) = (u64::from(instr.immediate16()), instr.immediate8_2nd() & 31);
        let rbp = self.gpr(GprName::Rbp);
        let mut rsp = self.gpr(GprName::Rsp).wrapping_sub(8);
        if level == 0 && self.is_intercepting() {
            self.store_element(rsp, rbp, 8)?;
            self.set_gpr(GprName::Rbp, rsp);
            // As Xen, which does not look at the new top of the stack.
            self.set_gpr(GprName::Rsp, rsp.wrapping_sub(bytes));
            return Ok(Next::Advance);
        }
        self.write_element(rsp, rbp, 8)?;
        let frame = rsp;
        if level > 0 {
            for n in 1..level {
                let link = self.read_element(rbp.wrapping_sub(8 * u64::from(n)), 8)?;
                rsp = rsp.wrapping_sub(8);
                self.write_element(rsp, link, 8)?;
            }
            rsp = rsp.wrapping_sub(8);
            self.write_element(rsp, frame, 8)?;
        }
        // The CPU checks that the new top of the stack can be written, without writing.
        let new_rsp = rsp.wrapping_sub(bytes);
        self.check_alignment(new_rsp, 8)?;
        self.probe_for_writing(new_rsp, 8)?;
        self.set_gpr(GprName::Rbp, frame);
        self.set_gpr(GprName::Rsp, new_rsp);
        Ok(Next::Advance)
    }

    pub(super) fn write_base(&mut self, instr: &Instruction) -> Step {
        let value = self.register(instr.op0_register());
        if !is_canonical(value) {
            return Err(Fault::protection());
        }
        let regs = &mut self.state_mut().regs;
        if instr.mnemonic() == Mnemonic::Wrfsbase {
            regs.fs_base = value
        } else {
            regs.gs_base = value
        }
        Ok(Next::Advance)
    }

    fn selector(&self, segment: Register) -> u16 {
        let regs = &self.state().regs;
        match segment {
            Register::CS => regs.cs,
            Register::SS => regs.ss,
            Register::DS => regs.ds,
            Register::ES => regs.es,
            Register::FS => regs.fs,
            _ => regs.gs,
        }
    }

    /// `mov r/m, sreg` and `push sreg`; loads are the hypervisor's.
    pub(super) fn segment_read(&mut self, instr: &Instruction) -> Step {
        let is_push = instr.mnemonic() == Mnemonic::Push;
        let operand = u32::from(!is_push);
        if instr.op_kind(operand) != OpKind::Register || !instr.op_register(operand).is_segment_register() {
            return Ok(Next::Privileged);
        }
        let value = self.selector(instr.op_register(operand));
        if is_push {
            let size = instr.stack_pointer_increment().unsigned_abs();
            if self.code_size().is_compat() {
                let sp = self.push_at(self.sp(), u64::from(value), u64::from(size))?;
                self.set_sp(sp);
                return Ok(Next::Advance);
            }
            let rsp = self.gpr(GprName::Rsp).wrapping_sub(u64::from(size));
            self.write_element(rsp, u64::from(value), u64::from(size))?;
            self.set_gpr(GprName::Rsp, rsp);
        } else if instr.op0_kind() == OpKind::Memory {
            let address = self.operand(instr, 0, 2, true)?;
            self.write_element(address, u64::from(value), 2)?;
        } else {
            self.set_register(instr.op0_register(), u64::from(value));
        }
        Ok(Next::Advance)
    }

    pub(super) fn xgetbv(&mut self) -> Step {
        let value = match self.gpr(GprName::Rcx) as u32 {
            0 => self.visible_xcr0(),
            1 => self.components_in_use(),
            _ => return Err(Fault::protection()),
        };
        self.set_gpr(GprName::Rax, value & 0xffff_ffff);
        self.set_gpr(GprName::Rdx, value >> 32);
        Ok(Next::Advance)
    }
}

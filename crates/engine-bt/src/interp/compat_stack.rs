//! Stack instructions of code of 16 and 32 bits: SS addresses by ESP or SP, as its descriptor says, whatever the operand size.
//! Source: Intel SDM vol. 2, "PUSH", "POP", "ENTER", "LEAVE"; vol. 1, "Stack Behavior".

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use ring3_engine::{GprName, SegmentName};

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;
use crate::translate::{is_segment_push, is_stack_operand};

/// Order of `pusha`.
const PUSHA: [Register; 8] = [
    Register::EAX,
    Register::ECX,
    Register::EDX,
    Register::EBX,
    Register::ESP,
    Register::EBP,
    Register::ESI,
    Register::EDI,
];

/// Bytes that a push or pop moves.
fn element_size(instr: &Instruction) -> u64 {
    u64::from(instr.stack_pointer_increment().unsigned_abs())
}

impl BtVcpu {
    /// Executes a stack instruction. `None` if the instruction is another.
    pub(super) fn compat_stack(&mut self, instr: &Instruction) -> Option<Step> {
        use Mnemonic as M;
        Some(match instr.mnemonic() {
            // Pushed elsewhere, and popped by the hypervisor.
            M::Push | M::Pop if is_segment_push(instr) => return None,
            M::Push => self.push(instr),
            M::Pop => self.pop(instr),
            M::Pushad | M::Pusha => self.push_all(instr),
            M::Popad | M::Popa => self.pop_all(instr),
            M::Pushfd | M::Pushf => self.push_flags(instr),
            M::Popfd | M::Popf => self.pop_flags(instr),
            M::Enter => self.enter_frame(instr),
            M::Leave => self.leave_frame(instr),
            _ => return None,
        })
    }

    fn stack_mask(&self) -> u64 {
        self.state().regs.stack_mask(self.code_size())
    }

    /// ESP or SP.
    pub(super) fn sp(&self) -> u64 {
        self.state().regs.sp(self.code_size())
    }

    /// Sets ESP or SP; of a 16-bit stack pointer the upper half of ESP stays.
    pub(super) fn set_sp(&mut self, value: u64) {
        let size = self.code_size();
        self.state_mut().regs.set_sp(size, value);
    }

    /// Stores an element of `size` bytes below `sp`; returns its offset, which the stack pointer is to have.
    pub(super) fn push_at(&mut self, sp: u64, value: u64, size: u64) -> Result<u64, Fault> {
        let at = sp.wrapping_sub(size) & self.stack_mask();
        self.stack_operand = true;
        let address = self.place(SegmentName::Ss, at, size as usize, true)?;
        self.write_element(address, value, size)?;
        Ok(at)
    }

    /// Loads an element of `size` bytes at `sp`; returns it, and the stack pointer behind it.
    pub(super) fn pop_at(&mut self, sp: u64, size: u64) -> Result<(u64, u64), Fault> {
        self.stack_operand = true;
        let address = self.place(SegmentName::Ss, sp & self.stack_mask(), size as usize, false)?;
        let value = self.read_element(address, size)?;
        Ok((value, sp.wrapping_add(size) & self.stack_mask()))
    }

    fn push(&mut self, instr: &Instruction) -> Step {
        let size = element_size(instr);
        let value = match instr.op0_kind() {
            OpKind::Register => self.register(instr.op0_register()),
            OpKind::Memory => {
                self.stack_operand = is_stack_operand(instr);
                let at = self.operand(instr, 0, size as usize, false)?;
                self.read_element(at, size)?
            }
            _ => instr.immediate(0),
        };
        let sp = self.push_at(self.sp(), value, size)?;
        self.set_sp(sp);
        Ok(Next::Advance)
    }

    fn pop(&mut self, instr: &Instruction) -> Step {
        let size = element_size(instr);
        let old = self.gpr(GprName::Rsp);
        let (value, sp) = self.pop_at(self.sp(), size)?;
        self.set_sp(sp);
        if instr.op0_kind() != OpKind::Memory {
            self.set_register(instr.op0_register(), value);
            return Ok(Next::Advance);
        }
        // An address by the stack pointer is computed after the pop.
        self.stack_operand = is_stack_operand(instr);
        let stored = self.operand(instr, 0, size as usize, true).and_then(|at| self.write_element(at, value, size));
        if let Err(fault) = stored {
            self.set_gpr(GprName::Rsp, old);
            return Err(fault);
        }
        Ok(Next::Advance)
    }

    fn push_all(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Pusha { 2u64 } else { 4 };
        let mut sp = self.sp();
        for register in PUSHA {
            let value = self.register(register);
            sp = self.push_at(sp, value, size)?;
        }
        self.set_sp(sp);
        Ok(Next::Advance)
    }

    fn pop_all(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Popa { 2u64 } else { 4 };
        let mut values = [0u64; 8];
        let mut sp = self.sp();
        for value in &mut values {
            (*value, sp) = self.pop_at(sp, size)?;
        }
        for (register, value) in PUSHA.iter().rev().zip(values) {
            if *register != Register::ESP
                && let Some(slot) = self.state_mut().regs.gpr.get_mut(register.number())
            {
                *slot = if size == 2 { *slot & !0xffff | value } else { value };
            }
        }
        self.set_sp(sp);
        Ok(Next::Advance)
    }

    fn push_flags(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Pushf { 2 } else { 4 };
        self.state_mut().pack_flags();
        let value = self.state().regs.rflags & 0x00fc_ffff;
        let sp = self.push_at(self.sp(), value, size)?;
        self.set_sp(sp);
        Ok(Next::Advance)
    }

    fn pop_flags(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Popf { 2 } else { 4 };
        let (value, sp) = self.pop_at(self.sp(), size)?;
        self.load_flags(value, size);
        self.set_sp(sp);
        Ok(Next::Advance)
    }

    fn enter_frame(&mut self, instr: &Instruction) -> Step {
        let size = if instr.code() == Code::Enterw_imm16_imm8 { 2u64 } else { 4 };
        let (bytes, level) = (u64::from(instr.immediate16()), instr.immediate8_2nd() & 31);
        let (ebp, esp, mask) = (self.gpr(GprName::Rbp), self.gpr(GprName::Rsp), self.stack_mask());
        let mut sp = self.push_at(esp & mask, ebp, size)?;
        // With a 16-bit stack pointer and 32-bit operands the frame pointer has the upper half of ESP.
        let frame = esp & !mask | sp;
        for n in 1..u64::from(level) {
            let (link, _) = self.pop_at(ebp.wrapping_sub(size * n), size)?;
            sp = self.push_at(sp, link, size)?;
        }
        if level > 0 {
            sp = self.push_at(sp, frame, size)?;
        }
        // The CPU checks that the new top of the stack can be written, without writing.
        let new_sp = sp.wrapping_sub(bytes) & mask;
        let top = self.place(SegmentName::Ss, new_sp, size as usize, true)?;
        self.check_alignment(top, size as usize)?;
        self.probe_for_writing(top, size as usize)?;
        self.set_register(if size == 2 { Register::BP } else { Register::EBP }, frame);
        self.set_sp(new_sp);
        Ok(Next::Advance)
    }

    fn leave_frame(&mut self, instr: &Instruction) -> Step {
        let size = if instr.code() == Code::Leavew { 2 } else { 4 };
        let (value, sp) = self.pop_at(self.gpr(GprName::Rbp), size)?;
        self.set_sp(sp);
        self.set_register(if size == 2 { Register::BP } else { Register::EBP }, value);
        Ok(Next::Advance)
    }
}

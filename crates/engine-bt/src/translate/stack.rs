//! Stack instructions.

use std::mem::offset_of;

use iced_x86::{Instruction, OpKind, Register};

use super::Insn;
use super::emitter::Emitter;
use super::memory::{Access, hardware, in_memory, is_stack_operand};
use crate::emit::asm::{Mem, RBP, RSP, Reg, S0, S1};
use crate::state::State;

/// Size of the stack element that a push or pop moves.
fn element_size(instr: &Instruction) -> usize {
    instr.stack_pointer_increment().unsigned_abs() as usize
}

impl Emitter<'_> {
    /// Size of a return address, and of what a near branch reads.
    pub fn word(&self) -> usize {
        if self.request.is_compat() { 4 } else { 8 }
    }

    /// Whether addresses have 64 bits.
    fn wide(&self) -> bool {
        !self.request.is_compat()
    }

    fn adjust_rsp(&mut self, by: i32) {
        self.asm.lea(self.wide(), RSP, Mem::at(RSP, by));
    }

    fn scratch(index: usize) -> Mem {
        Mem::state(offset_of!(State, scratch) + 8 * index)
    }

    /// Stores `from` at `at`, which has S1 as its base.
    pub fn store_element(&mut self, size: usize, at: Mem, from: Reg) {
        if size == 2 {
            self.asm.raw(&[0x66]);
        }
        self.asm.op_mem(size == 8, &[0x89], from, at);
    }

    /// Loads an element, zero-extended.
    pub fn load_element(&mut self, size: usize, to: Reg, from: Mem) {
        match size {
            1 => self.asm.op_mem(false, &[0x0f, 0xb6], to, from),
            2 => self.asm.op_mem(false, &[0x0f, 0xb7], to, from),
            4 => self.asm.load32(to, from),
            _ => self.asm.load(to, from),
        }
    }

    pub fn push(&mut self, insn: &Insn) {
        let instr = &insn.instr;
        let size = element_size(instr);
        let to = Access { size, write: true, stack: true };
        if instr.op0_kind() == OpKind::Memory {
            let live = self.live_before(insn);
            self.spill_flags(live);
            self.linear_address(instr, 0);
            let stack = is_stack_operand(instr);
            self.check(insn, Access { size, write: false, stack });
            self.load_element(size, S0, Mem::at(S1, 0));
            self.asm.store(Self::scratch(1), S0);
            self.element(insn, RSP, -(size as i32), to);
            self.asm.load(S0, Self::scratch(1));
            self.store_element(size, Mem::at(S1, 0), S0);
        } else {
            let offset = self.element(insn, RSP, -(size as i32), to);
            self.store_operand(instr, size, offset);
        }
        self.adjust_rsp(-(size as i32));
    }

    /// Stores a push's register or immediate operand at `[r11 + offset]`.
    fn store_operand(&mut self, instr: &Instruction, size: usize, offset: i32) {
        let to = Mem::at(S1, offset);
        if instr.op0_kind() == OpKind::Register {
            let register = instr.op0_register();
            if in_memory(register) {
                self.load_guest(S0, register);
                self.store_element(size, to, S0);
            } else {
                self.store_element(size, to, hardware(register));
            }
            return;
        }
        let value = instr.immediate(0) as i64 as i32;
        if size == 2 {
            self.asm.raw(&[0x66]);
            self.asm.op_mem(false, &[0xc7], Reg(0), to);
            self.asm.raw(&(value as u16).to_le_bytes());
        } else if size == 4 {
            self.asm.store32_imm(to, value as u32);
        } else {
            self.asm.store64_imm(to, value);
        }
    }

    pub fn pop(&mut self, insn: &Insn) {
        let instr = &insn.instr;
        let size = element_size(instr);
        let offset = self.element(insn, RSP, 0, Access { size, write: false, stack: true });
        if instr.op0_kind() == OpKind::Memory {
            self.load_element(size, S0, Mem::at(S1, 0));
            self.asm.store(Self::scratch(1), S0);
            let is_popped = matches!(instr.memory_base(), Register::RSP | Register::ESP);
            self.linear_address(instr, if is_popped { size as i32 } else { 0 });
            let stack = is_stack_operand(instr);
            self.check(insn, Access { size, write: true, stack });
            self.asm.load(S0, Self::scratch(1));
            self.store_element(size, Mem::at(S1, 0), S0);
            self.adjust_rsp(size as i32);
            return;
        }
        let register = instr.op0_register();
        if size == 2 {
            self.pop_word(register);
            if register != Register::SP {
                self.adjust_rsp(2);
            }
        } else if register.full_register() == Register::RSP {
            self.load_element(size, RSP, Mem::at(S1, 0));
        } else {
            self.pop_register(size, register, offset);
            self.adjust_rsp(size as i32);
        }
    }

    fn pop_word(&mut self, register: Register) {
        if in_memory(register) {
            self.load_guest(S0, register);
            self.asm.raw(&[0x66, 0x45, 0x8b, 0x13]); // mov r10w, [r11]
            self.store_guest(register, S0);
        } else {
            if register == Register::SP {
                self.adjust_rsp(2);
            }
            self.asm.raw(&[0x66]);
            self.asm.op_mem(false, &[0x8b], hardware(register), Mem::at(S1, 0));
        }
    }

    fn pop_register(&mut self, size: usize, register: Register, offset: i32) {
        if in_memory(register) {
            self.load_element(size, S0, Mem::at(S1, offset));
            self.store_guest(register, S0);
        } else {
            self.load_element(size, hardware(register), Mem::at(S1, offset));
        }
    }

    pub fn leave(&mut self, insn: &Insn) {
        let size = element_size_of_leave(&insn.instr);
        let offset = self.element(insn, RBP, 0, Access { size, write: false, stack: true });
        self.asm.lea(self.wide(), RSP, Mem::at(RBP, size as i32));
        if size == 2 {
            self.asm.raw(&[0x66]);
            self.asm.op_mem(false, &[0x8b], RBP, Mem::at(S1, 0));
        } else {
            self.load_element(size, RBP, Mem::at(S1, offset));
        }
    }

    /// Pushes the address `page_base + offset` after checking the stack. Leaves RSP adjusted.
    pub fn push_return_address(&mut self, insn: &Insn) {
        let size = self.word();
        let offset = self.element(insn, RSP, -(size as i32), Access { size, write: true, stack: true });
        self.asm.load(S0, Mem::state(offset_of!(State, page_base)));
        self.asm.lea(self.wide(), S0, Mem::at(S0, insn.next_offset() as i32));
        self.store_element(size, Mem::at(S1, offset), S0);
        self.adjust_rsp(-(size as i32));
    }

    /// Pops the return address into S1, releasing `extra` bytes more.
    pub fn pop_return_address(&mut self, insn: &Insn, extra: i32) {
        let size = self.word();
        let offset = self.element(insn, RSP, 0, Access { size, write: false, stack: true });
        self.load_element(size, S1, Mem::at(S1, offset));
        self.adjust_rsp(size as i32 + extra);
    }
}

fn element_size_of_leave(instr: &Instruction) -> usize {
    match instr.code() {
        iced_x86::Code::Leavew => 2,
        iced_x86::Code::Leaved => 4,
        _ => 8,
    }
}

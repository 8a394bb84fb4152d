//! Stack instructions.

use std::mem::offset_of;

use iced_x86::{Instruction, OpKind, Register};

use super::emitter::{Cold, Emitter, FlagLoc};
use super::memory::{Access, hardware, in_memory, is_stack_operand};
use super::{Insn, Kind};
use crate::emit::asm::{Fixup, Mem, RBP, RSP, Reg, S0, S1};
use crate::state::State;

/// Most elements that one check serves.
const MAX_GROUP: usize = 8;

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

    fn stack_access(&mut self, insn: &Insn, offset: i32, size: usize, write: bool) {
        self.asm.lea(self.wide(), S1, Mem::at(RSP, offset));
        self.check(insn, Access { size, write, stack: true });
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
            2 => self.asm.op_mem(false, &[0x0f, 0xb7], to, from),
            4 => self.asm.load32(to, from),
            _ => self.asm.load(to, from),
        }
    }

    pub fn push(&mut self, insn: &Insn) {
        let instr = &insn.instr;
        let size = element_size(instr);
        let live = self.live_before(insn);
        self.spill_flags(live);
        if instr.op0_kind() == OpKind::Memory {
            self.linear_address(instr, 0);
            let stack = is_stack_operand(instr);
            self.check(insn, Access { size, write: false, stack });
            self.load_element(size, S0, Mem::at(S1, 0));
            self.asm.store(Self::scratch(1), S0);
            self.stack_access(insn, -(size as i32), size, true);
            self.asm.load(S0, Self::scratch(1));
            self.store_element(size, Mem::at(S1, 0), S0);
        } else {
            self.stack_access(insn, -(size as i32), size, true);
            self.store_operand(instr, size);
        }
        self.adjust_rsp(-(size as i32));
    }

    /// Stores a push's register or immediate operand at `[r11]`.
    fn store_operand(&mut self, instr: &Instruction, size: usize) {
        if instr.op0_kind() == OpKind::Register {
            let register = instr.op0_register();
            if in_memory(register) {
                self.load_guest(S0, register);
                self.store_element(size, Mem::at(S1, 0), S0);
            } else {
                self.store_element(size, Mem::at(S1, 0), hardware(register));
            }
            return;
        }
        let value = instr.immediate(0) as i64 as i32;
        if size == 2 {
            self.asm.raw(&[0x66]);
            self.asm.op_mem(false, &[0xc7], Reg(0), Mem::at(S1, 0));
            self.asm.raw(&(value as u16).to_le_bytes());
        } else if size == 4 {
            self.asm.store32_imm(Mem::at(S1, 0), value as u32);
        } else {
            self.asm.store64_imm(Mem::at(S1, 0), value);
        }
    }

    pub fn pop(&mut self, insn: &Insn) {
        let instr = &insn.instr;
        let size = element_size(instr);
        let live = self.live_before(insn);
        self.spill_flags(live);
        self.stack_access(insn, 0, size, false);
        if instr.op0_kind() == OpKind::Memory {
            self.load_element(size, S0, Mem::at(S1, 0));
            self.asm.store(Self::scratch(1), S0);
            self.linear_address(instr, size as i32);
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
            self.pop_register(size, register, 0);
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
        let live = self.live_before(insn);
        self.spill_flags(live);
        self.asm.mov(S1, RBP);
        self.check(insn, Access { size, write: false, stack: true });
        self.asm.lea(self.wide(), RSP, Mem::at(RBP, size as i32));
        if size == 2 {
            self.asm.raw(&[0x66]);
            self.asm.op_mem(false, &[0x8b], RBP, Mem::at(S1, 0));
        } else {
            self.load_element(size, RBP, Mem::at(S1, 0));
        }
    }

    /// Pushes the address `page_base + offset` after checking the stack. Leaves RSP adjusted.
    pub fn push_return_address(&mut self, insn: &Insn) {
        let size = self.word();
        self.stack_access(insn, -(size as i32), size, true);
        self.asm.load(S0, Mem::state(offset_of!(State, page_base)));
        self.asm.lea(self.wide(), S0, Mem::at(S0, insn.next_offset() as i32));
        self.store_element(size, Mem::at(S1, 0), S0);
        self.adjust_rsp(-(size as i32));
    }

    /// Pops the return address into S1, releasing `extra` bytes more.
    pub fn pop_return_address(&mut self, insn: &Insn, extra: i32) {
        let size = self.word();
        self.stack_access(insn, 0, size, false);
        self.load_element(size, S1, Mem::at(S1, 0));
        self.adjust_rsp(size as i32 + extra);
    }

    pub fn cold_group(&mut self, cold: &ColdGroup) {
        self.asm.bind(cold.from);
        self.loc = cold.loc;
        for insn in &cold.insns {
            self.nr_accesses = 0;
            if insn.kind == Kind::Push { self.push(insn) } else { self.pop(insn) }
        }
        self.asm.jmp(cold.back);
    }

    /// Emits a run of register pushes, or of register pops, behind one check, if the block goes on with one.
    /// Returns how many instructions that were; 0 if none.
    ///
    /// Where the run crosses a page or misses the TLB it is done one by one, out of the fast path, so that a fault is
    /// taken at the right instruction.
    pub fn stack_group(&mut self, insns: &[Insn]) -> usize {
        let Some(first) = insns.first() else { return 0 };
        let kind = first.kind;
        if !matches!(kind, Kind::Push | Kind::Pop) {
            return 0;
        }
        let count = insns.iter().take(MAX_GROUP).take_while(|i| i.kind == kind && is_plain_element(&i.instr)).count();
        let Some(group) = insns.get(..count).filter(|g| g.len() >= 2) else { return 0 };
        let Some(last) = group.last() else { return 0 };
        let live = self.live_before(first) | last.live_out;
        self.spill_flags(live);
        let size = self.word();
        let bytes = (size * count) as i32;
        let push = kind == Kind::Push;
        self.asm.lea(true, S1, Mem::at(RSP, if push { -bytes } else { 0 }));
        let slow = self.check_or_jump(bytes as usize, push);
        for (n, insn) in group.iter().enumerate() {
            let register = insn.instr.op0_register();
            let below = (size * n) as i32;
            if push {
                let at = Mem::at(S1, bytes - size as i32 - below);
                if in_memory(register) {
                    self.load_guest(S0, register);
                    self.store_element(size, at, S0);
                } else {
                    self.store_element(size, at, hardware(register));
                }
            } else {
                self.pop_register(size, register, below);
            }
        }
        self.adjust_rsp(if push { -bytes } else { bytes });
        let cold = ColdGroup { from: slow, back: self.asm.here(), insns: group.to_vec(), loc: self.loc };
        self.cold.push(Cold::Group(cold));
        count
    }
}

/// The one-by-one form of a group.
#[derive(Debug)]
pub(super) struct ColdGroup {
    from: Fixup,
    back: u64,
    insns: Vec<Insn>,
    loc: FlagLoc,
}

/// A register of the usual size other than RSP.
fn is_plain_element(instr: &Instruction) -> bool {
    let register = instr.op0_register();
    instr.op0_kind() == OpKind::Register && register.size() >= 4 && register.full_register() != Register::RSP
}

fn element_size_of_leave(instr: &Instruction) -> usize {
    match instr.code() {
        iced_x86::Code::Leavew => 2,
        iced_x86::Code::Leaved => 4,
        _ => 8,
    }
}

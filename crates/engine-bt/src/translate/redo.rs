//! Flags that are read behind an access: done again from their recipe.
//!
//! The check of an access clobbers the flags. To save them and to load them back takes ten instructions; `cmp` once more takes two, as
//! long as its operands are to be had, which a recipe says (`recipe.rs`). So flags that something in the block reads are left to their
//! recipe over accesses, and done again for whoever reads them.

use super::Insn;
use super::emitter::{Emitter, FlagLoc};
use super::flags::NONE;
use super::recipe::{Operand, Recipe, slot};
use crate::emit::asm::{Asm, Mem, Reg, S0};
use crate::flag_word::{HIGH_BYTES, Operation, SLOTS};
use crate::state::gpr_index;

/// Where an operand is for an instruction.
#[derive(Clone, Copy, Debug)]
enum At {
    Register(Reg),
    State(Mem),
    Constant(i32),
}

impl At {
    /// None for a second byte, which no register can be put beside.
    fn of(operand: Operand) -> Option<Self> {
        match operand {
            Operand::Constant(value) => Some(Self::Constant(value)),
            Operand::Place(place @ (10 | 11)) => Some(Self::State(Mem::state(gpr_index(usize::from(place))))),
            Operand::Place(place) if place < HIGH_BYTES => Some(Self::Register(Reg(place))),
            Operand::Place(place) if place < SLOTS => None,
            Operand::Place(place) => Some(Self::State(slot(usize::from(place - SLOTS)))),
        }
    }
}

/// Operations on S0, by their digit in the opcodes of immediate operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alu {
    Add = 0,
    Sub = 5,
    Cmp = 7,
}

const OPERAND_SIZE: u8 = 0x66;

/// Instructions of an operand size.
struct Sized<'a> {
    asm: &'a mut Asm,
    size: usize,
}

impl Sized<'_> {
    fn prefix(&mut self) {
        if self.size == 2 {
            self.asm.raw(&[OPERAND_SIZE]);
        }
    }

    /// The opcode for bytes, or the next one.
    fn opcode(&self, for_bytes: u8) -> [u8; 1] {
        [for_bytes | u8::from(self.size > 1)]
    }

    fn immediate(&mut self, value: i32) {
        self.asm.raw(&value.to_le_bytes()[..self.size.min(4)]);
    }

    /// `opcode S0, operand` by an opcode for bytes with a register first, or by one of a group with an immediate.
    fn binary(&mut self, opcode: u8, (group, digit): (u8, u8), operand: At) {
        let wide = self.size == 8;
        self.prefix();
        match operand {
            At::Register(register) => self.asm.op_reg(wide, &self.opcode(opcode), S0, register),
            At::State(at) => self.asm.op_mem(wide, &self.opcode(opcode), S0, at),
            At::Constant(value) => {
                self.asm.op_reg(wide, &self.opcode(group), Reg(digit), S0);
                self.immediate(value);
            }
        }
    }

    fn alu(&mut self, operation: Alu, operand: At) {
        let digit = operation as u8;
        self.binary(digit << 3 | 2, (0x80, digit), operand);
    }

    fn test(&mut self, operand: At) {
        self.binary(0x84, (0xf6, 0), operand);
    }

    fn neg(&mut self) {
        self.prefix();
        self.asm.op_reg(self.size == 8, &self.opcode(0xf6), Reg(3), S0);
    }

    fn shift(&mut self, digit: u8, count: i32) {
        self.prefix();
        self.asm.op_reg(self.size == 8, &self.opcode(0xc0), Reg(digit), S0);
        self.asm.raw(&[count as u8]);
    }
}

impl Recipe {
    /// Sets the host's flags. Clobbers S0. None, and nothing is emitted, if they cannot be had so.
    fn redo(&self, asm: &mut Asm) -> Option<()> {
        let [first, second] = self.operands.map(At::of);
        let (first, second) = (first?, second?);
        let is_shift = matches!(self.operation, Operation::Shl | Operation::Shr | Operation::Sar);
        let count = if let At::Constant(count) = second { count } else { 0 };
        // What is compared with a result must be in memory.
        let from = if let (Operation::SubFrom, At::State(at)) = (self.operation, first) { Some(at) } else { None };
        if is_shift && count == 0 || self.operation == Operation::SubFrom && from.is_none() {
            return None;
        }
        match first {
            At::Register(register) => asm.mov(S0, register),
            At::State(at) => asm.load(S0, at),
            At::Constant(_) => return None,
        }
        let mut asm = Sized { asm, size: self.size };
        match self.operation {
            Operation::Sub => asm.alu(Alu::Cmp, second),
            Operation::SubTo => {
                asm.alu(Alu::Add, second);
                asm.alu(Alu::Cmp, second);
            }
            Operation::SubFrom => {
                asm.alu(Alu::Sub, second);
                asm.prefix();
                let opcode = asm.opcode(0x38);
                asm.asm.op_mem(self.size == 8, &opcode, S0, from?);
            }
            Operation::AddTo => {
                asm.alu(Alu::Sub, second);
                asm.alu(Alu::Add, second);
            }
            Operation::And => asm.test(second),
            Operation::Logic => asm.test(At::Register(S0)),
            Operation::Neg => {
                asm.neg();
                asm.neg();
            }
            Operation::Shl => asm.shift(4, count),
            Operation::Shr => asm.shift(5, count),
            Operation::Sar => asm.shift(7, count),
        }
        Some(())
    }

    /// Whether the flags can be done again.
    fn is_redoable(&self) -> bool {
        self.redo(&mut Asm::new(0, Vec::new())).is_some()
    }
}

impl Emitter<'_> {
    /// Makes the host's flags free to clobber for an access of an instruction. Clobbers S0.
    pub fn clear_flags(&mut self, insn: &Insn) {
        let live = self.live_before(insn);
        match self.loc {
            FlagLoc::Recipe => {}
            FlagLoc::Native if live != NONE && self.may_redo(insn) => self.loc = FlagLoc::Recipe,
            _ => self.spill_flags(live),
        }
    }

    /// Whether flags that are live can be left to their recipe until something in the block reads them.
    fn may_redo(&self, insn: &Insn) -> bool {
        let is_intact = |recipe: &Recipe| insn.writes & recipe.registers() == 0 && recipe.is_redoable();
        !self.is_saved && (self.needs_flags(insn) || insn.is_read_after) && self.recipe.as_ref().is_some_and(is_intact)
    }

    /// Brings flags that only their recipe says into the host's. Clobbers S0.
    pub fn redo_flags(&mut self) {
        if let Some(recipe) = self.recipe.filter(|_| self.loc == FlagLoc::Recipe)
            && recipe.redo(&mut self.asm).is_some()
        {
            self.loc = FlagLoc::Native;
            self.is_saved = false;
        }
    }
}

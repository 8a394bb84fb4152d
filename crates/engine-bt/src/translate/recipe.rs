//! Flags that nothing reads, for the frame of a fault or an event.
//!
//! Where the arithmetic flags are dead, the check of an access clobbers them without saving. If the access faults, the guest's
//! handler sees them all the same. So the translator keeps in mind how they could be had again (a [`Recipe`]): those of
//! `add rax, rcx` from its result and RCX. The cold path of the check leaves that for Rust, as a word of `flag_word`; the
//! hot path pays nothing as long as the registers keep what the recipe needs. A register that is about to be overwritten is
//! copied to `State::operands` first, if a fault may still come; so are operands that were in memory.
//!
//! A near jump to a block that may show flags before it sets them has the word stored before it (in a cold detour, if the
//! jump is conditional). What has no recipe is saved as live flags are.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::Insn;
use super::emitter::{Emitter, FlagLoc};
use super::flags::{self, NONE};
use super::memory::in_memory;
use super::plain::sized;
use crate::emit::asm::{Mem, Reg, S0};
use crate::flag_word::{self, HIGH_BYTES, NR_SLOTS, Operation, Place, SLOTS, Second};
use crate::state::State;

/// Where an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operand {
    Place(Place),
    Constant(i32),
}

/// How flags can be computed: an operation, and where its two operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    pub operation: Operation,
    pub size: usize,
    pub operands: [Operand; 2],
}

/// An operand that must be kept for a recipe: which of the two, and what it is in the instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// The first operand's register as it is before the instruction.
    Old(usize),
    /// What is in memory.
    Memory(usize),
}

pub fn slot(index: usize) -> Mem {
    Mem::state(offset_of!(State, operands) + 8 * index)
}

/// The place of a register.
fn place(register: Register) -> Option<Operand> {
    let number = register.full_register().number() as Place;
    let is_high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
    register.is_gpr().then_some(Operand::Place(if is_high { HIGH_BYTES + number } else { number }))
}

/// An explicit operand that is no memory.
fn operand(instr: &Instruction, op: u32) -> Option<Operand> {
    match instr.op_kind(op) {
        OpKind::Register => place(instr.op_register(op)),
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => Some(Operand::Constant(instr.immediate(op) as i64 as i32)),
        _ => None,
    }
}

const NOTHING: Operand = Operand::Constant(0);

impl Recipe {
    /// For the flags that an instruction leaves, with what must be kept before it; none if there is no recipe for it.
    pub fn of(instr: &Instruction) -> Option<(Self, Option<Kept>)> {
        use Mnemonic as M;
        let kept = |index: usize| Operand::Place(SLOTS + index as Place);
        let memory = (0..instr.op_count()).find(|&op| instr.op_kind(op) == OpKind::Memory);
        let size = match memory {
            Some(_) => instr.memory_size().size(),
            None => instr.op0_register().size(),
        };
        if instr.has_lock_prefix() || !matches!(size, 1 | 2 | 4 | 8) {
            return None;
        }
        let made = |operation, first, second| Self { operation, size, operands: [first, second] };
        let is_doubled = instr.op1_kind() == OpKind::Register && instr.op0_register() == instr.op1_register();
        let recipe = match (instr.mnemonic(), memory) {
            // Zero, as anything less itself.
            (M::Xor | M::Sub, None) if is_doubled => (made(Operation::Sub, kept(0), kept(0)), None),
            (M::Test, None) if is_doubled => (made(Operation::Logic, operand(instr, 0)?, NOTHING), None),
            (M::Cmp | M::Test, _) => {
                let operation = if instr.mnemonic() == M::Cmp { Operation::Sub } else { Operation::And };
                let (first, second) = match memory {
                    None => return Some((made(operation, operand(instr, 0)?, operand(instr, 1)?), None)),
                    Some(0) => (kept(0), operand(instr, 1)?),
                    Some(_) => (operand(instr, 0)?, kept(1)),
                };
                (made(operation, first, second), Some(Kept::Memory(usize::from(memory != Some(0)))))
            }
            // What goes to memory is not looked at again: others may write there.
            (_, Some(0)) => return None,
            (M::And | M::Or | M::Xor, _) => (made(Operation::Logic, operand(instr, 0)?, NOTHING), None),
            (M::Neg, None) => (made(Operation::Neg, operand(instr, 0)?, NOTHING), None),
            // The result less the second operand is what the first one was.
            (M::Add, None) if !is_second_changed(instr) => {
                (made(Operation::AddTo, operand(instr, 0)?, operand(instr, 1)?), None)
            }
            (M::Sub, None) if !is_second_changed(instr) => {
                (made(Operation::SubTo, operand(instr, 0)?, operand(instr, 1)?), None)
            }
            (M::Add, _) => (made(Operation::AddTo, operand(instr, 0)?, kept(1)), Some(Kept::Old(1))),
            (M::Sub, _) => (made(Operation::SubFrom, kept(0), operand(instr, 0)?), Some(Kept::Old(0))),
            (M::Shl | M::Sal, None) => (made(Operation::Shl, kept(0), shift(instr)?), Some(Kept::Old(0))),
            (M::Shr, None) => (made(Operation::Shr, kept(0), shift(instr)?), Some(Kept::Old(0))),
            (M::Sar, None) => (made(Operation::Sar, kept(0), shift(instr)?), Some(Kept::Old(0))),
            _ => return None,
        };
        Some(recipe)
    }

    /// Registers that it needs, as a set of numbers.
    pub fn registers(&self) -> u16 {
        self.operands.iter().filter_map(|operand| register_of(*operand)).fold(0, |set, number| set | 1 << number)
    }

    /// The word for it, if all it needs is in place.
    pub fn word(&self) -> Option<u32> {
        let [first, second] = self.operands;
        let Operand::Place(first) = first else { return None };
        let second = match second {
            Operand::Place(place) => Second::At(place),
            Operand::Constant(value) => Second::Constant(i16::try_from(value).ok()?),
        };
        Some(flag_word::encode(self.operation, self.size, first, second))
    }
}

/// Number of the general-purpose register that an operand is in.
fn register_of(operand: Operand) -> Option<Place> {
    match operand {
        Operand::Place(place) if place < HIGH_BYTES => Some(place),
        Operand::Place(place) if place < SLOTS => Some(place - HIGH_BYTES),
        _ => None,
    }
}

/// Whether an instruction overwrites its own second operand.
fn is_second_changed(instr: &Instruction) -> bool {
    instr.op1_kind() == OpKind::Register && instr.op0_register().full_register() == instr.op1_register().full_register()
}

/// A shift's constant count, where the flags are those of a shift by it.
fn shift(instr: &Instruction) -> Option<Operand> {
    let size = instr.op0_register().size();
    let count = match instr.op1_kind() {
        OpKind::Immediate8 => usize::from(instr.immediate8()) & if size == 8 { 0x3f } else { 0x1f },
        _ => return None,
    };
    (1..=8 * size).contains(&count).then_some(Operand::Constant(count as i32))
}

impl Emitter<'_> {
    /// Before an instruction: what it overwrites of what the present recipe needs is copied, if flags may still be shown.
    /// Clobbers S0.
    pub fn keep_operands(&mut self, insn: &Insn) {
        let Some(recipe) = self.recipe.filter(|_| matches!(self.loc, FlagLoc::Native | FlagLoc::Recipe)) else {
            return;
        };
        let effect = flags::effect(&insn.instr);
        if flags::may_trap(&insn.instr) && recipe.word().is_none() {
            // A table will have to say it.
            self.keep_constant();
        }
        let is_needed = insn.after.shown != NONE || self.loc == FlagLoc::Recipe && insn.after.live != NONE;
        if is_needed && effect.touched == NONE {
            self.keep_registers(insn.writes);
        }
    }

    /// After an instruction: a recipe whose operands it overwrote, because nobody will ask for it any more, is none.
    pub fn forget_operands(&mut self, insn: &Insn) {
        if self.recipe.is_some_and(|recipe| insn.writes & recipe.registers() != 0)
            && flags::effect(&insn.instr).touched == NONE
        {
            self.recipe = None;
            if self.loc == FlagLoc::Recipe {
                self.loc = FlagLoc::Dead;
            }
        }
    }

    /// Copies the operands that are in the given registers to `State::operands`. Clobbers S0.
    fn keep_registers(&mut self, registers: u16) {
        let Some(mut recipe) = self.recipe else { return };
        for (index, operand) in recipe.operands.iter_mut().enumerate() {
            let Some(number) = register_of(*operand).filter(|number| registers >> number & 1 != 0) else { continue };
            let is_high = *operand != Operand::Place(number);
            self.keep(index, Reg(number), is_high);
            *operand = Operand::Place(SLOTS + index as Place);
        }
        self.recipe = Some(recipe);
    }

    /// Puts a constant that is too large for a word into `State::operands`.
    fn keep_constant(&mut self) {
        let Some(mut recipe) = self.recipe else { return };
        for (index, operand) in recipe.operands.iter_mut().enumerate() {
            if let Operand::Constant(value) = *operand
                && i16::try_from(value).is_err()
            {
                self.asm.store64_imm(slot(index), value);
                *operand = Operand::Place(SLOTS + index as Place);
            }
        }
        self.recipe = Some(recipe);
    }

    /// Copies a guest register, or its second byte, to a slot. Clobbers S0.
    fn keep(&mut self, index: usize, register: Reg, is_high: bool) {
        let mut from = register;
        if matches!(register.0, 10 | 11) {
            self.asm.load(S0, Mem::state(crate::state::gpr_index(usize::from(register.0))));
            from = S0;
        }
        // The second byte of the slot's copy is found one byte further on.
        self.asm.store(slot(index), from);
        if is_high {
            self.asm.op_mem(false, &[0x0f, 0xb6], S0, Mem::state(offset_of!(State, operands) + 8 * index + 1));
            self.asm.store(slot(index), S0);
        }
    }

    /// Right before an instruction, with S1 at its memory operand less `offset`: keeps what its recipe will need. Returns the
    /// recipe for the flags that it leaves. An operand in memory that had to be loaded takes its place in the instruction as R10.
    pub fn keep_for(&mut self, insn: &Insn, instr: &mut Instruction, offset: i32) -> Option<Recipe> {
        let (recipe, kept) = Recipe::of(&insn.instr)?;
        match kept {
            None => {}
            // The flags themselves will do.
            Some(_) if insn.after.shown_here == NONE => return None,
            Some(Kept::Old(index)) => {
                let Operand::Place(place) = place(insn.instr.op0_register())? else { return None };
                let is_high = place >= HIGH_BYTES;
                self.keep(index, Reg(if is_high { place - HIGH_BYTES } else { place }), is_high);
            }
            Some(Kept::Memory(index)) => {
                let op = (0..instr.op_count()).find(|&op| instr.op_kind(op) == OpKind::Memory)?;
                let is_plain = |op: u32| {
                    let register = instr.op_register(op);
                    let is_high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
                    instr.op_kind(op) != OpKind::Register || !in_memory(register) && !is_high
                };
                if !(0..instr.op_count()).all(is_plain) {
                    return None;
                }
                self.load_element(recipe.size, S0, Mem::at(crate::emit::asm::S1, offset));
                self.asm.store(slot(index), S0);
                instr.set_op_kind(op, OpKind::Register);
                instr.set_op_register(op, sized(Register::R10, recipe.size));
            }
        }
        Some(recipe)
    }

    /// The recipe for the flags, where they are nowhere else.
    pub fn dead_flags(&self) -> Option<Recipe> {
        self.recipe.filter(|_| self.loc == FlagLoc::Recipe)
    }

    /// In a cold path that ends in Rust, or may: says where the flags are that are nowhere else.
    pub fn leave_recipe(&mut self, recipe: Option<Recipe>) {
        if recipe.is_none() {
            return;
        }
        let before = std::mem::replace(&mut self.recipe, recipe);
        self.keep_constant();
        if let Some(word) = self.recipe.and_then(|recipe| recipe.word()) {
            self.asm.store32_imm(Mem::state(offset_of!(State, flags)), word);
        }
        self.recipe = before;
    }

    /// Makes `State::flags` say the flags as long as no other registers are written than those not in `clobbers`. Clobbers S0,
    /// not the flags.
    pub fn publish(&mut self, clobbers: u16) {
        match self.loc {
            FlagLoc::Native | FlagLoc::Recipe if self.recipe.is_some() => {
                self.keep_registers(clobbers);
                self.leave_recipe(self.recipe);
                self.loc = FlagLoc::Given;
            }
            FlagLoc::Native => {
                self.asm.save_flags(offset_of!(State, flags), S0);
                self.loc = FlagLoc::Given;
            }
            _ => {}
        }
    }
}

const _: () = assert!(NR_SLOTS == 2);

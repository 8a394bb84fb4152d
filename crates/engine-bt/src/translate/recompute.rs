//! Flags that nothing reads, for the frame of a fault.
//!
//! Where the arithmetic flags are dead, the check of an access clobbers them without saving. If the access faults, the guest's
//! handler sees them all the same. Most can be had again from registers: those of `add rax, rcx` from its result and RCX. The
//! cold path does so, and the hot path pays nothing.
//!
//! What cannot be computed again stays as it was last saved: flags set by an earlier block, by an instruction with a memory
//! operand that counts (`cmp [rdi], 1`), whose operands are gone (`mov eax, ...` after `cmp eax, 1`, `shl`), or that sets some
//! only (`inc`); and where the host's CPU raises the fault (a misaligned vector). docs/engine-coverage.md says so.

use iced_x86::{
    Code, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register,
};

use super::emitter::Emitter;
use super::flags::{self, ALL, NONE};
use super::memory::in_memory;
use super::plain::sized;
use crate::emit::asm::S0;
use crate::state::State;

/// How far back is looked.
const LOOKBACK: usize = 12;

/// The instruction of straight code whose flags the next one finds, if they can be computed again by then.
pub fn recomputable<'a>(
    factory: &mut InstructionInfoFactory,
    before: impl DoubleEndedIterator<Item = &'a Instruction> + Clone,
) -> Option<Instruction> {
    let is_setter = |instr: &&Instruction| flags::effect(instr).touched != NONE;
    let (distance, setter) = before.clone().rev().take(LOOKBACK).enumerate().find(|(_, instr)| is_setter(instr))?;
    let sources = sources(setter).filter(|_| flags::effect(setter).kill == ALL)?;
    let writes = |instr: &Instruction, factory: &mut InstructionInfoFactory| {
        let info = factory.info_options(instr, InstructionInfoOptions::NO_MEMORY_USAGE);
        info.used_registers().iter().any(|used| {
            let is_read =
                matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess);
            !is_read && used.register().is_gpr() && sources >> used.register().full_register().number() & 1 != 0
        })
    };
    let is_kept = !before.rev().take(distance).any(|instr| writes(instr, factory));
    is_kept.then_some(*setter)
}

/// Registers from which an instruction's flags can be had, as a set; None if they cannot.
fn sources(instr: &Instruction) -> Option<u16> {
    use Mnemonic as M;
    let is_constant = |op| {
        matches!(instr.op_kind(op), OpKind::Immediate8 | OpKind::Immediate16 | OpKind::Immediate32)
            || matches!(instr.op_kind(op), OpKind::Immediate8to16 | OpKind::Immediate8to32)
            || matches!(instr.op_kind(op), OpKind::Immediate8to64 | OpKind::Immediate32to64)
    };
    let register = |op| {
        let register = instr.op_register(op);
        let is_high = matches!(register, Register::AH | Register::CH | Register::DH | Register::BH);
        let is_usable = instr.op_kind(op) == OpKind::Register && register.is_gpr() && !in_memory(register) && !is_high;
        is_usable.then(|| 1u16 << register.full_register().number())
    };
    let source = |op| if is_constant(op) { Some(0) } else { register(op) };
    match instr.mnemonic() {
        M::Cmp | M::Test => Some(register(0)? | source(1)?),
        // The result says all.
        M::And | M::Or | M::Xor | M::Neg => register(0),
        // The result less the second operand is what the first one was.
        M::Add | M::Sub if register(0)? & source(1)? == 0 => Some(register(0)? | source(1)?),
        _ => None,
    }
}

/// The register form of an operation on operands of `size` bytes, with a register or a constant for its second.
fn form(mnemonic: Mnemonic, size: usize, constant: bool) -> Option<Code> {
    let forms = match (mnemonic, constant) {
        (Mnemonic::Add, false) => [Code::Add_rm8_r8, Code::Add_rm16_r16, Code::Add_rm32_r32, Code::Add_rm64_r64],
        (Mnemonic::Sub, false) => [Code::Sub_rm8_r8, Code::Sub_rm16_r16, Code::Sub_rm32_r32, Code::Sub_rm64_r64],
        (Mnemonic::Test, false) => [Code::Test_rm8_r8, Code::Test_rm16_r16, Code::Test_rm32_r32, Code::Test_rm64_r64],
        (Mnemonic::Neg, _) => [Code::Neg_rm8, Code::Neg_rm16, Code::Neg_rm32, Code::Neg_rm64],
        (Mnemonic::Add, true) => [Code::Add_rm8_imm8, Code::Add_rm16_imm16, Code::Add_rm32_imm32, Code::Add_rm64_imm32],
        (Mnemonic::Sub, true) => [Code::Sub_rm8_imm8, Code::Sub_rm16_imm16, Code::Sub_rm32_imm32, Code::Sub_rm64_imm32],
        _ => return None,
    };
    forms.get(size.trailing_zeros() as usize).copied()
}

impl Emitter<'_> {
    /// Has the host's flags as `instr`, from [`recomputable`], left them. Clobbers S0.
    pub fn recompute(&mut self, instr: &Instruction) {
        let result = instr.op0_register();
        let mnemonic = instr.mnemonic();
        match mnemonic {
            Mnemonic::Cmp | Mnemonic::Test => self.encode(instr),
            Mnemonic::And | Mnemonic::Or | Mnemonic::Xor => self.again(Mnemonic::Test, result, instr, result),
            _ => {
                let inverse = match mnemonic {
                    Mnemonic::Add => Mnemonic::Sub,
                    Mnemonic::Sub => Mnemonic::Add,
                    other => other,
                };
                self.asm.mov(S0, super::memory::hardware(result));
                let was = sized(Register::R10, result);
                self.again(inverse, was, instr, instr.op1_register());
                self.again(mnemonic, was, instr, instr.op1_register());
            }
        }
    }

    /// `mnemonic first, second`, where the second operand is a constant if that of `like` is.
    fn again(&mut self, mnemonic: Mnemonic, first: Register, like: &Instruction, second: Register) {
        let is_constant = second == Register::None;
        let Some(code) = form(mnemonic, first.size(), is_constant) else { return };
        let made = match (mnemonic, is_constant) {
            (Mnemonic::Neg, _) => Instruction::with1(code, first),
            (_, true) => Instruction::with2(code, first, like.immediate(1) as i64 as i32),
            (_, false) => Instruction::with2(code, first, second),
        };
        if let Ok(made) = made {
            self.encode(&made);
        }
    }

    /// In a cold path that may end in a fault: puts the dead flags where the fault looks for them. Clobbers S0.
    pub fn save_dead(&mut self, dead: Option<&Instruction>) {
        if let Some(instr) = dead {
            self.recompute(instr);
            self.asm.save_flags(std::mem::offset_of!(State, flags), S0);
        }
    }
}

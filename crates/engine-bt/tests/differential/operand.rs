//! Random operands: registers, immediates, and memory operands that reach a chosen address.

use iced_x86::{Instruction, OpCodeOperandKind as O, OpKind, Register};

use crate::prng::Prng;
use crate::state::{CS64, CpuState};
use crate::values;

/// A state in the making: registers that an operand relies on are fixed.
#[derive(Clone, Debug)]
pub struct Draft {
    pub state: CpuState,
    pub fixed: u16,
    /// Registers that earlier instructions of the sequence may have changed.
    pub written: u16,
}

/// General-purpose register by hardware number.
pub fn gpr64(n: u64) -> Register {
    Register::RAX + (n & 15) as u32
}

pub fn gpr32(n: u64) -> Register {
    Register::EAX + (n & 15) as u32
}

pub fn number(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

impl Draft {
    pub fn is_fixed(&self, register: Register) -> bool {
        self.fixed >> number(register) & 1 != 0
    }

    pub fn is_written(&self, register: Register) -> bool {
        register != Register::None && self.written >> number(register) & 1 != 0
    }

    /// Whether this is for code of 16 or 32 bits.
    pub fn is_narrow(&self) -> bool {
        self.state.cs != CS64
    }

    /// Some general-purpose register that the code can name.
    pub fn any_register(&self, rng: &mut Prng) -> Register {
        gpr64(rng.next() & if self.is_narrow() { 7 } else { 15 })
    }

    pub fn fix(&mut self, register: Register, value: u64) {
        let value = if self.is_narrow() { value & 0xffff_ffff } else { value };
        self.state.gpr[number(register)] = value;
        self.fixed |= 1 << number(register);
    }

    pub fn value(&self, register: Register) -> u64 {
        self.state.gpr[number(register)]
    }

    /// Makes the memory operand of `instr` reach `target`, by any addressing form.
    pub fn memory(&mut self, rng: &mut Prng, instr: &mut Instruction, target: u64) -> Option<()> {
        let segment = match rng.below(12) {
            // No CS, which cannot be written by; FS and GS are null.
            0..=2 if self.is_narrow() => rng.pick(&[Register::DS, Register::ES, Register::SS]),
            0 => Register::FS,
            1 => Register::GS,
            2 => rng.pick(&[Register::DS, Register::ES, Register::SS, Register::CS]),
            _ => Register::None,
        };
        instr.set_segment_prefix(segment);
        let offset = target.wrapping_sub(match segment {
            Register::FS => self.state.fs_base,
            Register::GS => self.state.gs_base,
            _ => 0,
        });
        let form = rng.below(10);
        if self.is_narrow() && form < 2 {
            instr.set_memory_displacement64(offset);
            instr.set_memory_displ_size(4);
            return Some(());
        }
        if form == 0 {
            instr.set_memory_base(if rng.one_in(5) && offset < 1 << 31 { Register::EIP } else { Register::RIP });
            instr.set_memory_displacement64(offset);
            instr.set_memory_displ_size(if instr.memory_base() == Register::EIP { 4 } else { 8 });
            return Some(());
        }
        if form == 1 {
            i32::try_from(offset as i64).ok()?;
            instr.set_memory_displacement64(offset);
            instr.set_memory_displ_size(8);
            return Some(());
        }
        let narrow = self.is_narrow() || rng.one_in(8) && offset < 1 << 32;
        let scale = 1u64 << rng.below(4);
        let base = if form == 2 { Register::None } else { self.any_register(rng) };
        let index = match form {
            2..=5 => Some(self.any_register(rng)).filter(|&r| r != Register::RSP)?,
            _ => Register::None,
        };
        if self.is_written(base) || self.is_written(index) {
            return None;
        }
        self.solve(rng, instr, (base, index, scale), offset, narrow)
    }

    fn solve(
        &mut self,
        rng: &mut Prng,
        instr: &mut Instruction,
        (base, index, scale): (Register, Register, u64),
        offset: u64,
        narrow: bool,
    ) -> Option<()> {
        let wide = |v: u64| if narrow { v & 0xffff_ffff } else { v };
        let mut displacement = match rng.below(3) {
            0 => 0,
            1 => rng.next() as i8 as i64,
            _ => rng.next() as i32 as i64 >> rng.below(20),
        };
        if index != Register::None && !self.is_fixed(index) {
            let small = rng.below(64).wrapping_sub(16);
            let value = if base == index || base == Register::None || rng.one_in(2) { small } else { rng.next() };
            self.fix(index, value);
        }
        let indexed = if index == Register::None { 0 } else { self.value(index).wrapping_mul(scale) };
        if base == Register::None || self.is_fixed(base) {
            let based = if base == Register::None { 0 } else { self.value(base) };
            let rest = wide(offset.wrapping_sub(indexed).wrapping_sub(based));
            displacement =
                if narrow { i64::from(rest as u32 as i32) } else { i64::from(i32::try_from(rest as i64).ok()?) };
        } else {
            let value = wide(offset.wrapping_sub(indexed).wrapping_sub(displacement as u64));
            self.fix(base, if narrow { value | rng.next() << 32 } else { value });
        }
        let sized = |r: Register| if narrow && r != Register::None { gpr32(number(r) as u64) } else { r };
        instr.set_memory_base(sized(base));
        instr.set_memory_index(sized(index));
        if index != Register::None {
            instr.set_memory_index_scale(scale as u32);
        }
        instr.set_memory_displacement64(if narrow { displacement as u64 & 0xffff_ffff } else { displacement as u64 });
        let none = displacement == 0 && base != Register::None && rng.one_in(2);
        instr.set_memory_displ_size(if none {
            0
        } else if rng.one_in(2) {
            1
        } else if narrow {
            4
        } else {
            8
        });
        if base == Register::None {
            instr.set_memory_displ_size(if narrow { 4 } else { 8 });
        }
        Some(())
    }
}

/// A register that an operand of this kind may name; None for a kind that is not a register.
pub fn register(rng: &mut Prng, kind: O, narrow: bool) -> Option<Register> {
    let low = |first: Register, rng: &mut Prng| first + rng.below(if narrow { 8 } else { 16 }) as u32;
    Some(match kind {
        O::r8_reg | O::r8_opcode | O::r8_or_mem => {
            if rng.one_in(4) {
                rng.pick(&[Register::AH, Register::CH, Register::DH, Register::BH])
            } else {
                // AL, CL, DL, BL, AH, CH, DH, BH, SPL ...
                let n = rng.below(if narrow { 4 } else { 16 }) as u32;
                if n < 4 { Register::AL + n } else { Register::SPL + (n - 4) }
            }
        }
        O::r16_reg | O::r16_reg_mem | O::r16_rm | O::r16_opcode | O::r16_or_mem => low(Register::AX, rng),
        O::r32_reg | O::r32_reg_mem | O::r32_rm | O::r32_opcode | O::r32_vvvv | O::r32_or_mem => {
            low(Register::EAX, rng)
        }
        _ if narrow && matches!(kind, O::r64_reg | O::r64_rm) => return None,
        O::r64_reg | O::r64_reg_mem | O::r64_rm | O::r64_opcode | O::r64_vvvv | O::r64_or_mem => {
            low(Register::RAX, rng)
        }
        O::mm_reg | O::mm_rm | O::mm_or_mem => Register::MM0 + rng.below(8) as u32,
        O::xmm_reg | O::xmm_rm | O::xmm_vvvv | O::xmm_is4 | O::xmm_or_mem => low(Register::XMM0, rng),
        O::ymm_reg | O::ymm_rm | O::ymm_vvvv | O::ymm_is4 | O::ymm_or_mem => low(Register::YMM0, rng),
        O::seg_reg => Register::ES + rng.below(6) as u32,
        O::sti_opcode => Register::ST0 + rng.below(8) as u32,
        O::es => Register::ES,
        O::cs => Register::CS,
        O::ss => Register::SS,
        O::ds => Register::DS,
        O::fs => Register::FS,
        O::gs => Register::GS,
        O::al => Register::AL,
        O::cl => Register::CL,
        O::ax => Register::AX,
        O::dx => Register::DX,
        O::eax => Register::EAX,
        O::rax => Register::RAX,
        O::st0 => Register::ST0,
        _ => return None,
    })
}

/// Whether an operand of this kind may be memory, and whether it must.
pub fn is_memory(kind: O) -> (bool, bool) {
    match kind {
        O::mem | O::mem_offs => (true, true),
        O::mem_vsib32x | O::mem_vsib64x | O::mem_vsib32y | O::mem_vsib64y => (true, true),
        O::r8_or_mem | O::r16_or_mem | O::r32_or_mem | O::r64_or_mem | O::mm_or_mem | O::xmm_or_mem | O::ymm_or_mem => {
            (true, false)
        }
        _ => (false, false),
    }
}

/// Sets an immediate operand. None if the kind is not one.
pub fn immediate(rng: &mut Prng, instr: &mut Instruction, op: u32, kind: O, second: bool) -> Option<()> {
    let value = values::integer(rng);
    let op_kind = match kind {
        O::imm8 if second => OpKind::Immediate8_2nd,
        O::imm8 | O::imm8_const_1 => OpKind::Immediate8,
        O::imm8sex16 => OpKind::Immediate8to16,
        O::imm8sex32 => OpKind::Immediate8to32,
        O::imm8sex64 => OpKind::Immediate8to64,
        O::imm16 => OpKind::Immediate16,
        O::imm32 => OpKind::Immediate32,
        O::imm32sex64 => OpKind::Immediate32to64,
        O::imm64 => OpKind::Immediate64,
        _ => return None,
    };
    instr.set_op_kind(op, op_kind);
    match op_kind {
        OpKind::Immediate8_2nd => instr.set_immediate8_2nd(value as u8),
        OpKind::Immediate8 => instr.set_immediate8(if kind == O::imm8_const_1 { 1 } else { value as u8 }),
        OpKind::Immediate8to16 => instr.set_immediate8to16(i16::from(value as i8)),
        OpKind::Immediate8to32 => instr.set_immediate8to32(i32::from(value as i8)),
        OpKind::Immediate8to64 => instr.set_immediate8to64(i64::from(value as i8)),
        OpKind::Immediate16 => instr.set_immediate16(value as u16),
        OpKind::Immediate32 => instr.set_immediate32(value as u32),
        OpKind::Immediate32to64 => instr.set_immediate32to64(i64::from(value as i32)),
        _ => instr.set_immediate64(value),
    }
    Some(())
}

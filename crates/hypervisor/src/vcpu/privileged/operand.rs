//! Operands of emulated instructions: registers by iced's names, memory by the guest's page tables.

#![allow(clippy::cast_possible_truncation, reason = "offsets of code of 16 and 32 bits have 32")]

use iced_x86::{OpKind, Register};
use ring3_engine::{Regs, SegmentName};

use super::super::bounce::Running;
use super::{Done, Insn};

/// Value of a register; `None` for kinds that no emulated instruction names.
pub fn get(regs: &Regs, register: Register) -> Option<u64> {
    if register == Register::RIP || register == Register::EIP {
        return Some(regs.rip);
    }
    if register.is_segment_register() {
        return Some(u64::from(match register {
            Register::CS => regs.cs,
            Register::SS => regs.ss,
            Register::DS => regs.ds,
            Register::ES => regs.es,
            Register::FS => regs.fs,
            _ => regs.gs,
        }));
    }
    if !register.is_gpr() {
        return None;
    }
    let full = *regs.gpr.get(register.full_register().number())?;
    Some(match register.size() {
        8 => full,
        4 => full & 0xffff_ffff,
        2 => full & 0xffff,
        _ if is_high_byte(register) => (full >> 8) & 0xff,
        _ => full & 0xff,
    })
}

fn is_high_byte(register: Register) -> bool {
    matches!(register, Register::AH | Register::BH | Register::CH | Register::DH)
}

/// Writes a general-purpose register as the CPU does: 32-bit writes clear the upper half.
pub fn set(regs: &mut Regs, register: Register, value: u64) {
    if !register.is_gpr() {
        return;
    }
    let Some(full) = regs.gpr.get_mut(register.full_register().number()) else { return };
    *full = match register.size() {
        8 => value,
        4 => value & 0xffff_ffff,
        2 => (*full & !0xffff) | (value & 0xffff),
        _ if is_high_byte(register) => (*full & !0xff00) | ((value & 0xff) << 8),
        _ => (*full & !0xff) | (value & 0xff),
    };
}

/// The segment register that iced names so; DS if it is none.
pub fn segment_name(register: Register) -> SegmentName {
    let number = if register.is_segment_register() { register.number() } else { SegmentName::Ds as usize };
    SegmentName::ALL.get(number).copied().unwrap_or(SegmentName::Ds)
}

impl Running<'_> {
    /// Linear address of `len` (at least 1) bytes at `offset` in a segment.
    pub(super) fn place(&self, name: SegmentName, offset: u64, len: usize, write: bool) -> Result<u64, Done> {
        let placed = self.state.cpu.regs().place(self.code_size(), name, offset, len, write);
        placed.ok_or(Done::Fault(name.vector(), Some(0)))
    }

    /// Linear address of `len` bytes of memory operand `index`, `skip` bytes into it.
    pub(super) fn operand_at(&self, insn: &Insn, index: u32, skip: u64, len: usize, write: bool) -> Result<u64, Done> {
        let regs = self.state.cpu.regs();
        let offset = insn.insn.virtual_address(index, 0, |register, _, _| {
            if register.is_segment_register() { Some(0) } else { get(regs, register) }
        });
        let offset = offset.ok_or(super::GP0)?.wrapping_add(skip);
        self.place(segment_name(insn.insn.memory_segment()), offset, len, write)
    }

    /// Linear address of an element of `len` bytes of the stack, `skip` bytes above `sp`.
    pub(super) fn stack_at(&self, sp: u64, skip: u64, len: u64, write: bool) -> Result<u64, Done> {
        let mask = self.state.cpu.regs().stack_mask(self.code_size());
        self.place(SegmentName::Ss, sp.wrapping_add(skip) & mask, len as usize, write)
    }

    /// Reads `len` (at most 8) bytes of memory operand `index`, `skip` bytes into it.
    pub(super) fn read_memory(&self, insn: &Insn, index: u32, skip: u64, len: usize) -> Result<u64, Done> {
        self.read_linear(self.operand_at(insn, index, skip, len, false)?, len)
    }

    /// Reads `len` (at most 8) bytes at a linear address.
    pub(super) fn read_linear(&self, va: u64, len: usize) -> Result<u64, Done> {
        let mut raw = [0u8; 8];
        let part = raw.get_mut(..len).ok_or(super::GP0)?;
        self.domain.memory.read(&self.state.space(), va, part).map_err(|fault| Done::Page(fault, false))?;
        Ok(u64::from_le_bytes(raw))
    }

    /// Writes bytes at a linear address.
    pub(super) fn write_linear(&self, va: u64, bytes: &[u8]) -> Result<(), Done> {
        self.domain.memory.write(&self.state.space(), va, bytes).map_err(|fault| Done::Page(fault, true))
    }

    /// Value of operand `index`: a register, or `len` bytes of memory.
    pub(super) fn read_operand(&self, insn: &Insn, index: u32, len: usize) -> Result<u64, Done> {
        match insn.insn.op_kind(index) {
            OpKind::Register => get(self.state.cpu.regs(), insn.insn.op_register(index)).ok_or(super::GP0),
            OpKind::Memory => self.read_memory(insn, index, 0, len),
            _ => Err(super::GP0),
        }
    }

    /// Writes operand `index`: a register at its size, or `len` bytes of memory.
    pub(super) fn write_operand(&mut self, insn: &Insn, index: u32, value: u64, len: usize) -> Result<(), Done> {
        match insn.insn.op_kind(index) {
            OpKind::Register => {
                set(self.state.cpu.regs_mut(), insn.insn.op_register(index), value);
                Ok(())
            }
            OpKind::Memory => {
                let va = self.operand_at(insn, index, 0, len, true)?;
                let raw = value.to_le_bytes();
                self.write_linear(va, raw.get(..len).ok_or(super::GP0)?)
            }
            _ => Err(super::GP0),
        }
    }
}

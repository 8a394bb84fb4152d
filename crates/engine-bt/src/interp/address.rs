//! Where the operands of interpreted instructions lie: their offset, and what their segment makes of it.

use iced_x86::{Instruction, Register};
use ring3_engine::SegmentName;

use super::Fault;
use crate::dispatch::BtVcpu;
use crate::translate::segment_name;

impl BtVcpu {
    /// Linear address of `len` (at least 1) bytes at `offset` in a segment.
    pub(crate) fn place(&self, name: SegmentName, offset: u64, len: usize, write: bool) -> Result<u64, Fault> {
        self.state().regs.place(self.code_size(), name, offset, len, write).ok_or_else(|| Fault::segment(name))
    }

    /// Linear address of the cache line at `offset` in a segment of code of 16 or 32 bits: flushes ask for its limit alone.
    pub(crate) fn place_line(&self, name: SegmentName, offset: u64) -> Result<u64, Fault> {
        let regs = &self.state().regs;
        if !regs.segment(name).holds(offset as u32, 1) {
            return Err(Fault::segment(name));
        }
        Ok(regs.segment_base(name).wrapping_add(offset) & 0xffff_ffff)
    }

    /// Linear address of `len` bytes of an explicit memory operand without vector index, from byte `skip` of it on: its
    /// parts wrap as the whole does, by the address size.
    pub(super) fn operand(&self, instr: &Instruction, skip: usize, len: usize, write: bool) -> Result<u64, Fault> {
        self.place(segment_name(instr.memory_segment()), self.operand_offset(instr, skip), len, write)
    }

    /// Offset in its segment of byte `skip` of an explicit memory operand.
    pub(super) fn operand_offset(&self, instr: &Instruction, skip: usize) -> u64 {
        let base = instr.memory_base();
        if base == Register::RIP || base == Register::EIP {
            let address = instr.ip_rel_memory_address().wrapping_add(skip as u64);
            return if base == Register::EIP { address & 0xffff_ffff } else { address };
        }
        let mut address = instr.memory_displacement64().wrapping_add(skip as u64);
        if base != Register::None {
            address = address.wrapping_add(self.register(base));
        }
        let index = instr.memory_index();
        if index != Register::None && index.is_gpr() {
            address = address.wrapping_add(self.register(index).wrapping_mul(u64::from(instr.memory_index_scale())));
        }
        let is_absolute = base == Register::None && index == Register::None;
        if base.is_gpr32() || index.is_gpr32() {
            address &= 0xffff_ffff;
        } else if base.is_gpr16() || index.is_gpr16() || is_absolute && instr.memory_displ_size() == 2 {
            address &= 0xffff;
        }
        self.cut_address(address)
    }
}

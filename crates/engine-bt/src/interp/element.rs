//! AVX2 gathers: element by element, each finished one cleared in the mask, so that a fault resumes.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;
use crate::translate::segment_name;

impl BtVcpu {
    pub(super) fn vector_index(register: Register) -> usize {
        register.number() & 15
    }

    /// `n`th element of `size` bytes of a vector register.
    pub(super) fn vector_element(&self, register: Register, n: usize, size: usize) -> u64 {
        let mut bytes = [0u8; 8];
        let vector = self.state().ymm.get(Self::vector_index(register));
        if let (Some(from), Some(to)) = (vector.and_then(|v| v.get(n * size..(n + 1) * size)), bytes.get_mut(..size)) {
            to.copy_from_slice(from);
        }
        u64::from_le_bytes(bytes)
    }

    pub(super) fn set_vector_element(&mut self, register: Register, n: usize, size: usize, value: u64) {
        let vector = self.state_mut().ymm.get_mut(Self::vector_index(register));
        let bytes = value.to_le_bytes();
        if let (Some(to), Some(from)) = (vector.and_then(|v| v.get_mut(n * size..(n + 1) * size)), bytes.get(..size)) {
            to.copy_from_slice(from);
        }
    }

    pub(super) fn gather_elements(&mut self, instr: &Instruction) -> Step {
        let (element, index_size) = match instr.mnemonic() {
            Mnemonic::Vpgatherdd | Mnemonic::Vgatherdps => (4usize, 4usize),
            Mnemonic::Vpgatherdq | Mnemonic::Vgatherdpd => (8, 4),
            Mnemonic::Vpgatherqd | Mnemonic::Vgatherqps => (4, 8),
            Mnemonic::Vpgatherqq | Mnemonic::Vgatherqpd => (8, 8),
            _ => return Err(Fault::undefined()),
        };
        let (to, mask, index) = (instr.op0_register(), instr.op2_register(), instr.memory_index());
        let numbers = [to, mask, index].map(Self::vector_index);
        if numbers[0] == numbers[1] || numbers[0] == numbers[2] || numbers[1] == numbers[2] {
            return Err(Fault::undefined());
        }
        if instr.op1_kind() != OpKind::Memory {
            return Err(Fault::undefined());
        }
        // The operand sizes: as many elements as the narrower of data and index vectors holds.
        let data_lanes = if to.is_ymm() { 32 / element } else { 16 / element };
        let index_lanes = if index.is_ymm() { 32 / index_size } else { 16 / index_size };
        let lanes = data_lanes.min(index_lanes);
        let scale = u64::from(instr.memory_index_scale());
        let base = self.operand_offset(instr, 0);
        let segment = segment_name(instr.memory_segment());
        for lane in 0..lanes {
            let wanted = self.vector_element(mask, lane, element) >> (element * 8 - 1) & 1 != 0;
            if wanted {
                let raw = self.vector_element(index, lane, index_size);
                let signed = if index_size == 4 { raw as u32 as i32 as i64 as u64 } else { raw };
                let mut address = base.wrapping_add(signed.wrapping_mul(scale));
                if instr.memory_base().is_gpr32() {
                    address &= 0xffff_ffff;
                }
                let address = self.place(segment, address, element, false)?;
                let value = self.read_unaligned(address, element as u64)?;
                self.set_vector_element(to, lane, element, value);
            }
            self.set_vector_element(mask, lane, element, 0);
        }
        // What lies above the gathered elements is cleared in both.
        for (register, width) in [(to, lanes * element), (mask, lanes * element)] {
            if let Some(bytes) =
                self.state_mut().ymm.get_mut(Self::vector_index(register)).and_then(|v| v.get_mut(width..))
            {
                bytes.fill(0);
            }
        }
        Ok(Next::Advance)
    }
}

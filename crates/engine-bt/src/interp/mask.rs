//! Masked moves: only the elements whose mask is set are accessed, and only they can fault.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use ring3_engine::{Exit, GprName, vector};

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;
use crate::translate::segment_name;

impl BtVcpu {
    /// `vmaskmovps`, `vmaskmovpd`, `vpmaskmovd`, `vpmaskmovq`.
    pub(super) fn mask_move_elements(&mut self, instr: &Instruction) -> Step {
        let size = match instr.mnemonic() {
            Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd => 4usize,
            _ => 8,
        };
        let is_store = instr.op0_kind() == OpKind::Memory;
        let address_of = |vcpu: &Self, n: usize| vcpu.operand(instr, n * size, size, is_store);
        let mask = instr.op1_register();
        let lanes = if mask.is_ymm() { 32 / size } else { 16 / size };
        let chosen: Vec<usize> =
            (0..lanes).filter(|&n| self.vector_element(mask, n, size) >> (size * 8 - 1) & 1 != 0).collect();
        if is_store {
            let from = instr.op2_register();
            // Nothing is stored if any of it faults.
            for &n in &chosen {
                self.probe_for_writing(address_of(self, n)?, size)?;
            }
            for n in chosen {
                let value = self.vector_element(from, n, size).to_le_bytes();
                let bytes = value.get(..size).ok_or_else(Fault::undefined)?;
                self.write_guest(address_of(self, n)?, bytes)?;
            }
            return Ok(Next::Advance);
        }
        let to = instr.op0_register();
        let mut values = [0u64; 8];
        for n in chosen {
            let value = self.read_unaligned(address_of(self, n)?, size as u64)?;
            if let Some(slot) = values.get_mut(n) {
                *slot = value;
            }
        }
        if let Some(vector) = self.state_mut().ymm.get_mut(Self::vector_index(to)) {
            vector.fill(0);
        }
        for (n, value) in values.iter().enumerate().take(lanes) {
            self.set_vector_element(to, n, size, *value);
        }
        Ok(Next::Advance)
    }

    /// `maskmovdqu`, `maskmovq`: bytes to `[rdi]`.
    pub(super) fn mask_move_bytes(&mut self, instr: &Instruction) -> Step {
        let registers: Vec<Register> = (0..instr.op_count())
            .filter(|&op| instr.op_kind(op) == OpKind::Register)
            .map(|op| instr.op_register(op))
            .collect();
        let (Some(&from), Some(&mask)) = (registers.first(), registers.get(1)) else { return Err(Fault::undefined()) };
        let narrow = matches!(instr.op0_kind(), OpKind::MemorySegEDI);
        let mut address = self.gpr(GprName::Rdi);
        if narrow {
            address &= 0xffff_ffff;
        }
        if matches!(instr.op0_kind(), OpKind::MemorySegDI) {
            address &= 0xffff;
        }
        self.save_x87();
        let lanes = if from.is_mm() { 8 } else { 16 };
        if from.is_mm() {
            self.enter_mmx()?;
        }
        let address = self.place(segment_name(instr.memory_segment()), address, lanes, true)?;
        // All of it must be writable, whatever the mask says: which of the ways the manuals allow AMD's CPUs take.
        self.check_alignment(address, 8)?;
        self.probe_for_writing(address, lanes)?;
        for n in 0..lanes {
            let (value, chosen) = if from.is_mm() {
                (self.mm_byte(from, n), self.mm_byte(mask, n) & 0x80 != 0)
            } else {
                (self.vector_element(from, n, 1) as u8, self.vector_element(mask, n, 1) & 0x80 != 0)
            };
            if chosen {
                self.write_guest(self.cut_address(address.wrapping_add(n as u64)), &[value])?;
            }
        }
        Ok(Next::Advance)
    }

    /// What every MMX instruction does to the x87 state: a pending exception is raised, then the stack's top is
    /// register 0, and all registers are valid.
    fn enter_mmx(&mut self) -> Result<(), Fault> {
        let state = self.state_mut();
        let image = &mut state.x87.0;
        if image[2] & 0x80 != 0 {
            return Err(Fault(Exit::Exception { vector: vector::MF, error_code: None, cr2: 0 }));
        }
        let top = usize::from(image[3] >> 3 & 7);
        image[32..160].rotate_right(16 * top);
        image[3] &= !0x38;
        image[4] = 0xff;
        state.x87_used = 1;
        Ok(())
    }

    /// A byte of an MMX register, which lies in the x87 register file (its top is 0).
    fn mm_byte(&self, register: Register, n: usize) -> u8 {
        let at = 32 + 16 * (register.number() & 7) + n;
        self.state().x87.0.get(at).copied().unwrap_or(0)
    }
}

//! The XSAVE family and FXSAVE, on the state that translated code left in memory.
//!
//! The host's own instructions are not used on guest addresses: they would save components that the policy hides, past
//! the end of the guest's area, and the host's code addresses in the x87 part.
//! Source: Intel SDM vol. 1, "Managing State Using the XSAVE Feature Set".

use iced_x86::Instruction;
use ring3_engine::{Exit, GprName, vector};

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;
use crate::dispatch::xstate::{AVX, MXCSR_DEFAULT, MXCSR_MASK, SSE, X87};
use crate::tlb::is_canonical;

const LEGACY_BYTES: usize = 512;
const HEADER_AT: u64 = 512;
const YMM_AT: u64 = 576;
/// What every XSAVE area has: the legacy part and the header.
const AREA_BYTES: usize = 576;
const COMPACT: u64 = 1 << 63;

impl BtVcpu {
    pub(crate) fn visible_xcr0(&self) -> u64 {
        self.xcr0_of_policy()
    }

    /// XINUSE.
    pub(crate) fn components_in_use(&mut self) -> u64 {
        self.save_x87();
        let state = self.state();
        let low = state.ymm.iter().any(|v| v.iter().take(16).any(|&b| b != 0));
        let high = state.ymm.iter().any(|v| v.iter().skip(16).any(|&b| b != 0));
        let mut bits = 0;
        if state.x87_used != 0 {
            bits |= X87;
        }
        if low || state.mxcsr != MXCSR_DEFAULT {
            bits |= SSE;
        }
        if high {
            bits |= AVX;
        }
        bits & self.visible_xcr0()
    }

    /// Vector registers that code of this size knows, and so saves and loads.
    fn vector_count(&self) -> usize {
        if self.code_size().is_compat() { 8 } else { 16 }
    }

    fn requested_components(&self) -> u64 {
        let mask = self.gpr(GprName::Rdx) << 32 | self.gpr(GprName::Rax) & 0xffff_ffff;
        mask & self.visible_xcr0()
    }

    fn aligned_operand(&self, instr: &Instruction, alignment: u64, len: usize, write: bool) -> Result<u64, Fault> {
        let address = self.operand(instr, 0, len, write)?;
        if !is_canonical(address) {
            let vector = if self.stack_operand { vector::SS } else { vector::GP };
            return Err(Fault(Exit::Exception { vector, error_code: Some(0), cr2: 0 }));
        }
        if alignment == 16 {
            self.check_alignment(address, LEGACY_BYTES)?;
        }
        if address.is_multiple_of(alignment) { Ok(address) } else { Err(Fault::protection()) }
    }

    fn save_components(&mut self, area: u64, components: u64, mxcsr: bool) -> Result<(), Fault> {
        // Nothing is stored if any of it faults.
        let len = if components & AVX != 0 { YMM_AT as usize + 256 } else { LEGACY_BYTES };
        self.probe_for_writing(area, len)?;
        if components & X87 != 0 {
            let x87 = self.x87_image();
            self.write_guest(area, &x87[..24])?;
            self.write_guest(area + 32, &x87[32..160])?;
        }
        if mxcsr {
            let value = self.state().mxcsr.to_le_bytes();
            self.write_guest(area + 24, &value)?;
            self.write_guest(area + 28, &MXCSR_MASK.to_le_bytes())?;
        }
        let ymm = self.state().ymm;
        let mut bytes = [0u8; 256];
        let len = 16 * self.vector_count();
        if components & SSE != 0 {
            for (slot, vector) in bytes.chunks_exact_mut(16).zip(&ymm) {
                slot.copy_from_slice(&vector[..16]);
            }
            self.write_guest(area + 160, &bytes[..len])?;
        }
        if components & AVX != 0 {
            for (slot, vector) in bytes.chunks_exact_mut(16).zip(&ymm) {
                slot.copy_from_slice(&vector[16..]);
            }
            self.write_guest(area + YMM_AT, &bytes[..len])?;
        }
        Ok(())
    }

    /// `xsave`, `xsaveopt`.
    pub(super) fn xsave_standard(&mut self, instr: &Instruction) -> Step {
        let area = self.aligned_operand(instr, 64, AREA_BYTES, true)?;
        let wanted = self.requested_components();
        let old = self.read_element(area + HEADER_AT, 8)?;
        let in_use = self.components_in_use();
        self.save_components(area, wanted, wanted & (SSE | AVX) != 0)?;
        let header = old & !wanted | in_use & wanted;
        self.write_guest(area + HEADER_AT, &header.to_le_bytes())?;
        Ok(Next::Advance)
    }

    /// `xsavec`: with these components the compacted layout is the standard one.
    pub(super) fn xsave_compact(&mut self, instr: &Instruction) -> Step {
        let area = self.aligned_operand(instr, 64, AREA_BYTES, true)?;
        let wanted = self.requested_components();
        let saved = wanted & self.components_in_use();
        self.save_components(area, saved, saved & SSE != 0)?;
        let mut header = [0u8; 16];
        header[..8].copy_from_slice(&saved.to_le_bytes());
        header[8..].copy_from_slice(&(COMPACT | wanted).to_le_bytes());
        self.write_guest(area + HEADER_AT, &header)?;
        Ok(Next::Advance)
    }

    pub(super) fn xrstor(&mut self, instr: &Instruction) -> Step {
        let area = self.aligned_operand(instr, 64, AREA_BYTES, false)?;
        let xcr0 = self.visible_xcr0();
        let wanted = self.requested_components();
        let mut header = [0u8; 64];
        self.read_guest(area + HEADER_AT, &mut header)?;
        let word = |at: usize| header.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes);
        let (present, compact) = (word(0), word(8));
        let reserved = header.get(16..).is_some_and(|b| b.iter().any(|&x| x != 0));
        let is_compact = compact & COMPACT != 0;
        let bad = if is_compact {
            compact & !(xcr0 | COMPACT) != 0 || present & !compact != 0 || reserved
        } else {
            compact != 0 || present & !xcr0 != 0 || word(16) != 0
        };
        if bad {
            return Err(Fault::protection());
        }
        let mut legacy = [0u8; LEGACY_BYTES];
        self.read_guest(area, &mut legacy)?;
        let mut high = [0u8; 256];
        if wanted & present & AVX != 0 {
            self.read_guest(area + YMM_AT, &mut high)?;
        }
        let mxcsr = legacy.get(24..28).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        let loads_mxcsr = if is_compact { wanted & present & SSE != 0 } else { wanted & (SSE | AVX) != 0 };
        if loads_mxcsr && mxcsr & !MXCSR_MASK != 0 {
            return Err(Fault::protection());
        }
        if wanted & X87 != 0 {
            if present & X87 != 0 { self.set_x87_image(&legacy[..160]) } else { self.reset_x87_state() }
        }
        let count = self.vector_count();
        let state = self.state_mut();
        if loads_mxcsr {
            state.mxcsr = mxcsr;
        } else if is_compact && wanted & SSE != 0 {
            state.mxcsr = MXCSR_DEFAULT;
        }
        for (n, vector) in state.ymm.iter_mut().take(count).enumerate() {
            let (low_half, high_half) = vector.split_at_mut(16);
            if wanted & SSE != 0 {
                let from = legacy.get(160 + 16 * n..176 + 16 * n).unwrap_or_default();
                if present & SSE != 0 { low_half.copy_from_slice(from) } else { low_half.fill(0) }
            }
            if wanted & AVX != 0 {
                let from = high.get(16 * n..16 * n + 16).unwrap_or_default();
                if present & AVX != 0 { high_half.copy_from_slice(from) } else { high_half.fill(0) }
            }
        }
        Ok(Next::Advance)
    }

    pub(super) fn fxsave(&mut self, instr: &Instruction) -> Step {
        let area = self.aligned_operand(instr, 16, LEGACY_BYTES, true)?;
        self.save_components(area, X87 | SSE, true)?;
        Ok(Next::Advance)
    }

    pub(super) fn fxrstor(&mut self, instr: &Instruction) -> Step {
        let area = self.aligned_operand(instr, 16, LEGACY_BYTES, false)?;
        let mut image = [0u8; LEGACY_BYTES];
        self.read_guest(area, &mut image)?;
        let mxcsr = image.get(24..28).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes);
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(Fault::protection());
        }
        self.set_x87_image(&image[..160]);
        let count = self.vector_count();
        let state = self.state_mut();
        state.mxcsr = mxcsr;
        for (n, vector) in state.ymm.iter_mut().take(count).enumerate() {
            if let Some(from) = image.get(160 + 16 * n..176 + 16 * n) {
                vector[..16].copy_from_slice(from);
            }
        }
        Ok(Next::Advance)
    }
}

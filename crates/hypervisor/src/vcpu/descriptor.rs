//! Segment descriptors: lookup in the guest's GDT and LDT, and what loading a selector means.
//!
//! A PV guest runs at ring 3 throughout, so every present descriptor counts as DPL 3 (Xen raises it) and every selector
//! as RPL 3. One that is not present keeps its DPL: below 3 it is #GP before it is #NP.
//! Source: Intel SDM vol. 3, "Segment Descriptors"; xen/include/public/arch-x86/xen-x86_64.h (reserved selectors).

use ring3_abi::arch_x86::{FIRST_RESERVED_GDT_ENTRY, FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_DS32};
use ring3_engine::{CodeSize, Segment, vector};

use super::VcpuState;
use crate::memory::Memory;

/// A descriptor, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

/// Why a selector cannot be loaded: #GP(selector) or #NP(selector) or #SS(selector).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    GeneralProtection,
    NotPresent,
}

impl LoadError {
    /// Vector and error code of the exception for a selector.
    pub fn fault(self, selector: u16, is_stack: bool) -> (u8, u32) {
        let number = match (self, is_stack) {
            (Self::GeneralProtection, _) => vector::GP,
            (Self::NotPresent, false) => vector::NP,
            (Self::NotPresent, true) => vector::SS,
        };
        (number, u32::from(selector & !3))
    }
}

impl Descriptor {
    /// What a segment register keeps of it.
    pub fn segment(self) -> Segment {
        Segment::of(self.0)
    }

    /// P.
    pub fn is_present(self) -> bool {
        self.0 & (1 << 47) != 0
    }

    /// DPL.
    pub fn dpl(self) -> u64 {
        (self.0 >> 45) & 3
    }

    /// A call gate: the first half of one, as all are in long mode.
    pub fn is_call_gate(self) -> bool {
        (self.0 >> 40) & 0x1f == 0xc
    }

    /// Whether it may be loaded at ring 3.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn check_present(self) -> Result<(), LoadError> {
        match (self.is_present(), self.dpl()) {
            (true, _) => Ok(()),
            (false, 3) => Err(LoadError::NotPresent),
            (false, _) => Err(LoadError::GeneralProtection),
        }
    }

    /// S: code or data, not system.
    pub fn is_segment(self) -> bool {
        self.0 & (1 << 44) != 0
    }

    /// Code segment.
    pub fn is_code(self) -> bool {
        self.is_segment() && self.0 & (1 << 43) != 0
    }

    /// Data, writable.
    pub fn is_writable_data(self) -> bool {
        self.is_segment() && !self.is_code() && self.0 & (1 << 41) != 0
    }

    /// Data, or code that may be read.
    pub fn is_readable(self) -> bool {
        self.is_segment() && (!self.is_code() || self.0 & (1 << 41) != 0)
    }

    /// Size of the code; `None` where both L and D are set.
    pub fn code_size(self) -> Option<CodeSize> {
        match (self.0 & (1 << 53) != 0, self.0 & (1 << 54) != 0) {
            (true, false) => Some(CodeSize::Bits64),
            (false, true) => Some(CodeSize::Bits32),
            (false, false) => Some(CodeSize::Bits16),
            (true, true) => None,
        }
    }

    /// Bytes 5 and 6 of the descriptor, as `lar` shows them.
    pub fn access_rights(self) -> u32 {
        u32::try_from((self.0 >> 32) & 0x00ff_ff00).unwrap_or(0)
    }
}

/// Whether bits 2 to 15 of a selector are zero.
pub const fn is_null(selector: u16) -> bool {
    selector & !3 == 0
}

/// The hypervisor's own flat descriptors, which every PV guest may use.
fn reserved(selector: u16) -> Option<Descriptor> {
    match selector | 3 {
        FLAT_RING3_CS64 => Some(Descriptor(0x00af_fa00_0000_ffff)),
        FLAT_RING3_CS32 => Some(Descriptor(0x00cf_fa00_0000_ffff)),
        FLAT_RING3_DS32 => Some(Descriptor(0x00cf_f200_0000_ffff)),
        _ => None,
    }
}

/// Reads the descriptor that a selector names; `None` when it is outside its table.
pub fn lookup(state: &VcpuState, memory: &Memory, selector: u16) -> Option<Descriptor> {
    let index = u32::from(selector >> 3);
    if selector & 4 != 0 {
        if index >= state.ldt_ents {
            return None;
        }
        let mut raw = [0u8; 8];
        let va = state.ldt_base.wrapping_add(u64::from(index) * 8);
        memory.read(&state.kernel_space(), va, &mut raw).ok()?;
        return Some(Descriptor(u64::from_le_bytes(raw)));
    }
    if index >= FIRST_RESERVED_GDT_ENTRY {
        return reserved(selector);
    }
    if index >= state.gdt_ents {
        return None;
    }
    let frame = *state.gdt_frames.get((index / 512) as usize)?;
    memory.machine.entry(frame, (index % 512) as usize).ok().map(Descriptor)
}

/// Checks a selector for a data segment register (DS, ES, FS, GS); returns what that keeps.
///
/// # Errors
/// [`LoadError`].
pub fn load_data(state: &VcpuState, memory: &Memory, selector: u16) -> Result<Segment, LoadError> {
    if is_null(selector) {
        return Ok(Segment::NULL);
    }
    let descriptor = lookup(state, memory, selector).ok_or(LoadError::GeneralProtection)?;
    if !descriptor.is_readable() {
        return Err(LoadError::GeneralProtection);
    }
    descriptor.check_present()?;
    Ok(descriptor.segment())
}

/// Checks a selector for CS.
///
/// # Errors
/// [`LoadError`].
pub fn load_code(state: &VcpuState, memory: &Memory, selector: u16) -> Result<Segment, LoadError> {
    if is_null(selector) {
        return Err(LoadError::GeneralProtection);
    }
    let descriptor = lookup(state, memory, selector).ok_or(LoadError::GeneralProtection)?;
    if !descriptor.is_code() {
        return Err(LoadError::GeneralProtection);
    }
    descriptor.check_present()?;
    descriptor.code_size().map(|_| descriptor.segment()).ok_or(LoadError::GeneralProtection)
}

/// Checks a selector for SS. 64-bit code may run with a null SS only below ring 3, so null fails here.
///
/// # Errors
/// [`LoadError`].
pub fn load_stack(state: &VcpuState, memory: &Memory, selector: u16) -> Result<Segment, LoadError> {
    if is_null(selector) {
        return Err(LoadError::GeneralProtection);
    }
    let descriptor = lookup(state, memory, selector).ok_or(LoadError::GeneralProtection)?;
    if !descriptor.is_writable_data() {
        return Err(LoadError::GeneralProtection);
    }
    descriptor.check_present()?;
    Ok(descriptor.segment())
}

/// The target of a call gate. `None` if the selector names something else.
///
/// # Errors
/// [`LoadError`].
pub fn load_gate(state: &VcpuState, memory: &Memory, selector: u16) -> Result<Option<(u16, u64)>, LoadError> {
    let Some(low) = lookup(state, memory, selector).filter(|d| !is_null(selector) && d.is_call_gate()) else {
        return Ok(None);
    };
    low.check_present()?;
    // The second half: bits 32 to 63 of the offset, and a type of zero.
    let high = selector.checked_add(8).and_then(|next| lookup(state, memory, next));
    let high = high.filter(|d| (d.0 >> 40) & 0x1f == 0).ok_or(LoadError::GeneralProtection)?;
    let offset = (low.0 & 0xffff) | ((low.0 >> 32) & 0xffff_0000) | (high.0 << 32);
    Ok(Some((((low.0 >> 16) & 0xffff) as u16, offset)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_flat_descriptors_decode() {
        let code = Descriptor(0x00af_fa00_0000_ffff);
        assert!(code.is_code() && code.is_present());
        assert_eq!(code.code_size(), Some(CodeSize::Bits64));
        assert_eq!(Descriptor(0x0000_fa00_0000_ffff).code_size(), Some(CodeSize::Bits16));
        let data = Descriptor(0x12cf_f234_5678_ffff);
        assert!(data.is_writable_data() && !data.is_code());
    }
}

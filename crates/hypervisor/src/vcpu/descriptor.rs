//! Segment descriptors: lookup in the guest's GDT and LDT, and what loading a selector means.
//!
//! A PV guest runs at ring 3 throughout, so every present descriptor of a segment has DPL 3 (Xen raises it) and every selector
//! counts as RPL 3. Frames of the GDT are checked when it is set, those of the LDT when a selector first needs them.
//! Source: Intel SDM vol. 3, "Segment Descriptors"; xen/include/public/arch-x86/xen-x86_64.h (reserved selectors).

use ring3_abi::arch_x86::{FIRST_RESERVED_GDT_ENTRY, FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_DS32};
use ring3_engine::{CodeSize, GuestMode, Segment, vector};
use ring3_machine::Mfn;

use super::VcpuState;
use crate::domain::Domain;
use crate::memory::is_canonical;
use crate::mm::ACCESSED;

/// Descriptors of a frame.
const PER_FRAME: usize = 512;

/// A descriptor, taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor(pub u64);

/// Why a selector cannot be loaded: #GP(selector); #NP(selector) or #SS(selector); a page fault in the LDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadError {
    GeneralProtection,
    NotPresent,
    Page(u64),
}

/// The exception of a selector that cannot be loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFault {
    /// Vector and error code.
    Exception(u8, u32),
    /// At this address, which is not present.
    Page(u64),
}

impl LoadError {
    /// The exception for a selector.
    pub fn fault(self, selector: u16, is_stack: bool) -> LoadFault {
        let number = match (self, is_stack) {
            (Self::Page(va), _) => return LoadFault::Page(va),
            (Self::GeneralProtection, _) => vector::GP,
            (Self::NotPresent, false) => vector::NP,
            (Self::NotPresent, true) => vector::SS,
        };
        LoadFault::Exception(number, u32::from(selector & !3))
    }
}

/// A descriptor that was found, and where: nowhere is the hypervisor's own.
#[derive(Clone, Copy, Debug)]
struct Found {
    descriptor: Descriptor,
    place: Option<(Mfn, usize)>,
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

    /// Whether it may be loaded at ring 3: DPL is looked at before P.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn check_present(self) -> Result<(), LoadError> {
        match (self.dpl(), self.is_present()) {
            (3, true) => Ok(()),
            (3, false) => Err(LoadError::NotPresent),
            _ => Err(LoadError::GeneralProtection),
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
        FLAT_RING3_CS64 => Some(Descriptor(0x00af_fb00_0000_ffff)),
        FLAT_RING3_CS32 => Some(Descriptor(0x00cf_fb00_0000_ffff)),
        FLAT_RING3_DS32 => Some(Descriptor(0x00cf_f300_0000_ffff)),
        _ => None,
    }
}

/// The frame of the LDT that holds a descriptor, which becomes a descriptor page if it is not yet.
fn ldt_frame(state: &mut VcpuState, domain: &Domain, selector: u16) -> Result<Mfn, LoadError> {
    let page = usize::from(selector >> 3) / PER_FRAME;
    let slot = state.ldt_frames.get(page).copied().ok_or(LoadError::GeneralProtection)?;
    if let Some(mfn) = slot {
        return Ok(mfn);
    }
    let va = state.ldt_base.wrapping_add(u64::from(selector & !7));
    if !is_canonical(va) {
        return Err(LoadError::GeneralProtection);
    }
    let mfn = domain.mm.get_ldt(state.root(GuestMode::Kernel), va).ok_or(LoadError::Page(va))?;
    state.ldt_frames[page] = Some(mfn);
    Ok(mfn)
}

fn find(state: &mut VcpuState, domain: &Domain, selector: u16) -> Result<Found, LoadError> {
    let index = selector >> 3;
    let frame = if selector & 4 != 0 {
        if u32::from(index) >= state.ldt_ents {
            return Err(LoadError::GeneralProtection);
        }
        ldt_frame(state, domain, selector)?
    } else if u32::from(index) >= FIRST_RESERVED_GDT_ENTRY {
        let descriptor = reserved(selector).ok_or(LoadError::GeneralProtection)?;
        return Ok(Found { descriptor, place: None });
    } else {
        // The limit of the GDT is the hypervisor's: the guest's last frame counts whole.
        let page = usize::from(index) / PER_FRAME;
        let frames = state.gdt_frames.get(..(state.gdt_ents as usize).div_ceil(PER_FRAME));
        *frames.and_then(|frames| frames.get(page)).ok_or(LoadError::GeneralProtection)?
    };
    let place = (frame, usize::from(index) % PER_FRAME);
    let word = domain.memory.machine.entry(place.0, place.1).map_err(|_| LoadError::GeneralProtection)?;
    Ok(Found { descriptor: Descriptor(word), place: Some(place) })
}

/// Reads the descriptor that a selector names; `None` when it is outside its table.
///
/// # Errors
/// The address of a page fault.
pub fn lookup(state: &mut VcpuState, domain: &Domain, selector: u16) -> Result<Option<Descriptor>, u64> {
    match find(state, domain, selector) {
        Ok(found) => Ok(Some(found.descriptor)),
        Err(LoadError::Page(va)) => Err(va),
        Err(_) => Ok(None),
    }
}

/// Loads a descriptor that is as `is_wanted` says, and marks it as used.
fn load(
    state: &mut VcpuState,
    domain: &Domain,
    selector: u16,
    is_wanted: impl Fn(Descriptor) -> bool,
) -> Result<Segment, LoadError> {
    let Found { descriptor, place } = find(state, domain, selector)?;
    if !is_wanted(descriptor) {
        return Err(LoadError::GeneralProtection);
    }
    descriptor.check_present()?;
    if descriptor.0 & ACCESSED == 0
        && let Some((mfn, index)) = place
    {
        domain.mm.mark_accessed(mfn, index, descriptor.0);
    }
    Ok(descriptor.segment())
}

/// Checks a selector for a data segment register (DS, ES, FS, GS); returns what that keeps.
///
/// # Errors
/// [`LoadError`].
pub fn load_data(state: &mut VcpuState, domain: &Domain, selector: u16) -> Result<Segment, LoadError> {
    if is_null(selector) {
        return Ok(Segment::NULL);
    }
    load(state, domain, selector, Descriptor::is_readable)
}

/// Checks a selector for CS.
///
/// # Errors
/// [`LoadError`].
pub fn load_code(state: &mut VcpuState, domain: &Domain, selector: u16) -> Result<Segment, LoadError> {
    if is_null(selector) {
        return Err(LoadError::GeneralProtection);
    }
    // With both L and D it is none.
    load(state, domain, selector, |d| d.is_code() && (!d.is_present() || d.code_size().is_some()))
}

/// Checks a selector for SS. 64-bit code may run with a null SS only below ring 3, so null fails here.
///
/// # Errors
/// [`LoadError`].
pub fn load_stack(state: &mut VcpuState, domain: &Domain, selector: u16) -> Result<Segment, LoadError> {
    if is_null(selector) {
        return Err(LoadError::GeneralProtection);
    }
    load(state, domain, selector, Descriptor::is_writable_data)
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

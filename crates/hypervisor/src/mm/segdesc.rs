//! Descriptor tables: what a paravirtualized guest may put into its GDT and LDT.
//!
//! Source of the layout: Intel SDM vol. 3, "Segment Descriptors" and "Call Gates".

use std::sync::atomic::Ordering;

use ring3_abi::arch_x86::FLAT_RING3_CS64;
use ring3_engine::pte;
use ring3_machine::{Mfn, PAGE_SIZE_BYTES};

use super::frame::PageType;
use super::{DomainMm, Error, FrameTable, Result};

/// First GDT entry that is the hypervisor's; guests have 14 pages. Source: xen/include/public/arch-x86/xen.h.
pub const FIRST_RESERVED_GDT_ENTRY: u32 = 14 * 512;
const ENTRIES_PER_PAGE: u32 = 512;
/// A of code and data segments.
pub const ACCESSED: u64 = 1 << 40;

/// Halves of a descriptor, high 32 bits.
const TYPE: u32 = 0xf << 8;
const NON_SYSTEM: u32 = 1 << 12;
const DPL_SHIFT: u32 = 13;
const DPL: u32 = 3 << DPL_SHIFT;
const PRESENT: u32 = 1 << 15;
const CALL_GATE: u32 = 0xc << 8;

/// The descriptor as it may be used by a guest whose kernel runs at ring 3, or `None` if it may not.
pub(super) const fn checked_descriptor(descriptor: u64) -> Option<u64> {
    #[allow(clippy::cast_possible_truncation)]
    let (mut low, mut high) = (descriptor as u32, (descriptor >> 32) as u32);
    if high & PRESENT == 0 {
        return Some(descriptor);
    }
    high |= DPL;
    // Code and data: base and limit are the guest's own affair. Type 0 may be the second half of a call gate.
    if high & NON_SYSTEM == 0 && high & TYPE != 0 {
        if high & TYPE != CALL_GATE {
            return None;
        }
        // Nobody at ring 3 may use a gate of DPL 0: Xen's own emulation of gates, for 32-bit guests, begins with that fault,
        // and 64-bit guests get it. What the DPL was is kept in the target's RPL.
        high &= !DPL;
        let selector = low >> 16;
        low |= 3 << 16;
        let is_in_ldt = selector & 4 != 0;
        if !is_in_ldt && selector != FLAT_RING3_CS64 as u32 && (selector >> 3) >= FIRST_RESERVED_GDT_ENTRY {
            return None;
        }
        if high & 0xff != 0 {
            return None;
        }
    }
    Some((high as u64) << 32 | low as u64)
}

impl FrameTable {
    pub(super) fn validate_segdesc(&self, mfn: Mfn) -> Result<()> {
        let mut has_written = false;
        for offset in (0..PAGE_SIZE_BYTES).step_by(8) {
            let Ok(word) = self.machine.word64(mfn, offset) else { continue };
            let descriptor = word.load(Ordering::Acquire);
            let checked = checked_descriptor(descriptor).ok_or(Error::Invalid("descriptor"))?;
            if checked != descriptor {
                word.store(checked, Ordering::Release);
                has_written = true;
            }
        }
        if has_written {
            self.wrote(mfn);
        }
        Ok(())
    }
}

impl DomainMm {
    /// update_descriptor: stores a descriptor at a machine address, in a descriptor page or in ordinary memory.
    ///
    /// # Errors
    /// -EINVAL if misaligned, not the domain's, not a legal descriptor, or the frame is a page table.
    pub fn update_descriptor(&self, maddr: u64, descriptor: u64) -> Result<()> {
        let mfn = Mfn::containing(maddr);
        if !maddr.is_multiple_of(8) {
            return Err(Error::Invalid("misaligned descriptor"));
        }
        let checked = checked_descriptor(descriptor).ok_or(Error::Invalid("descriptor"))?;
        let page_type = self.table().hold(mfn, self.domid())?;
        let result = match page_type {
            PageType::SegDesc | PageType::Writable => {
                #[allow(clippy::cast_possible_truncation)]
                let offset = (maddr as usize) % PAGE_SIZE_BYTES;
                match self.machine().word64(mfn, offset) {
                    Ok(word) => {
                        word.store(checked, Ordering::Release);
                        self.table().wrote(mfn);
                        Ok(())
                    }
                    Err(_) => Err(Error::NotOwned(mfn)),
                }
            }
            _ => Err(Error::TypeInUse(mfn)),
        };
        self.table().put_page_and_type(mfn, page_type);
        result
    }

    /// set_gdt: takes references to the frames of a new GDT of `nr_entries` descriptors, and drops those of `old`, the
    /// frames that the vCPU's present GDT holds. `frames` may be longer than needed; returns how many hold references
    /// now.
    ///
    /// # Errors
    /// -EINVAL for too many entries, or a frame that is not the domain's or holds an illegal descriptor; the old GDT
    /// then stays in force.
    pub fn set_gdt(&self, old: &[Mfn], frames: &[Mfn], nr_entries: u32) -> Result<usize> {
        if nr_entries > FIRST_RESERVED_GDT_ENTRY {
            return Err(Error::Invalid("more than 7168 GDT entries"));
        }
        let nr_frames = nr_entries.div_ceil(ENTRIES_PER_PAGE) as usize;
        let frames = frames.get(..nr_frames).ok_or(Error::Invalid("too few GDT frames"))?;
        for (done, &mfn) in frames.iter().enumerate() {
            if let Err(error) = self.get_segdesc(mfn) {
                self.put_gdt(&frames[..done]);
                return Err(error);
            }
        }
        self.put_gdt(old);
        Ok(nr_frames)
    }

    /// Drops the references of a GDT.
    pub fn put_gdt(&self, frames: &[Mfn]) {
        frames.iter().for_each(|&mfn| self.put_segdesc(mfn));
    }

    /// Takes references to a frame as a descriptor page.
    ///
    /// # Errors
    /// -EINVAL if it is not the domain's, in use otherwise, or holds an illegal descriptor.
    pub fn get_segdesc(&self, mfn: Mfn) -> Result<()> {
        self.table().get_page_and_type(mfn, self.domid(), PageType::SegDesc)
    }

    /// Takes references to the frame that `va` is mapped to, as a page of an LDT; `None` if there is none that may be one.
    pub fn get_ldt(&self, root: Mfn, va: u64) -> Option<Mfn> {
        let mfn = pte::mfn(self.l1_entry(root, va)?);
        self.get_segdesc(mfn).ok().map(|()| mfn)
    }

    /// Sets the accessed bit of a descriptor that is loaded, unless it is another one by now.
    pub fn mark_accessed(&self, mfn: Mfn, index: usize, descriptor: u64) {
        let Ok(word) = self.machine().word64(mfn, index * 8) else { return };
        if word.compare_exchange(descriptor, descriptor | ACCESSED, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            self.table().wrote(mfn);
        }
    }

    /// Drops what [`DomainMm::get_segdesc`] took.
    pub fn put_segdesc(&self, mfn: Mfn) {
        self.table().put_page_and_type(mfn, PageType::SegDesc);
    }
}

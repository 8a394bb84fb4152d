//! The one page of a PC's board that kernels read without asking whether there is a board.
//!
//! On AMD's CPUs Linux 6.16 to 7.3 maps the power-management registers of the chipset at boot, to print the reason of
//! the last reset, and dies where that is refused; all ones it takes for "no such register".
//!
//! Differs from Xen: Xen refuses the entry (-EINVAL: a domain without devices may set no cache attributes), and these
//! kernels end in a panic there. Here the entry comes to map a page of the domain's own, which starts as all ones. An
//! entry for that frame without cache attributes means a frame of memory, as ever.

use ring3_engine::pte;
use ring3_machine::{Mfn, PAGE_SIZE_BYTES};

use super::entry::is_present;
use super::{DomainMm, Result};

/// FCH_PM_BASE 0xfed80300 is within it. Source: Linux, arch/x86/include/asm/amd/fch.h.
const FCH_REGISTERS: Mfn = Mfn(0xfed80);
const CACHE_ATTRIBUTES: u64 = pte::PWT | pte::PCD;

impl DomainMm {
    /// The L1 entry that counts as the one a guest writes.
    ///
    /// # Errors
    /// [`super::Error::NoMemory`], [`super::Error::NoSuchDomain`] while it dies.
    pub(super) fn with_board(&self, entry: u64) -> Result<u64> {
        if !is_present(entry) || entry & CACHE_ATTRIBUTES == 0 || pte::mfn(entry) != FCH_REGISTERS {
            return Ok(entry);
        }
        Ok(entry & !(pte::FRAME | CACHE_ATTRIBUTES) | self.registers()?.address())
    }

    /// The page, allocated when it is first wanted; freed with the domain.
    fn registers(&self) -> Result<Mfn> {
        let mut page = self.registers.lock();
        if let Some(mfn) = *page {
            return Ok(mfn);
        }
        let mfn = self.table().alloc_shared(self.domid())?;
        let _ = self.machine().write(mfn, 0, &[0xff; PAGE_SIZE_BYTES]);
        *page = Some(mfn);
        Ok(mfn)
    }
}

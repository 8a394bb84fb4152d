//! What a paravirtualized guest may write into a page-table entry, and what becomes of it.
//!
//! Xen's rules for domains without devices: no cache attributes, no superpages, GLOBAL in L1 only. Every present
//! entry gets USER; L1 entries of the guest kernel (USER clear as written) are told apart by software bit 52.

use ring3_engine::{HYPERVISOR_VIRT_START, pte};

use super::{Error, Result};

/// Software bit: L1 entry of the guest kernel. Source: Xen's _PAGE_GUEST_KERNEL, visible to guests.
pub(super) const GUEST_KERNEL: u64 = 1 << 52;

const FORBIDDEN: u64 = pte::PWT | pte::PCD | pte::PSE | pte::GLOBAL;
/// Changes in these bits only need no new reference.
const CHEAP: u64 = pte::NX | 0x7ff << 52 | 7 << 9 | pte::GLOBAL | pte::DIRTY | pte::ACCESSED | pte::USER;

/// L4 slots of the hypervisor's hole: 256 to 271.
pub(super) const XEN_SLOTS: std::ops::Range<usize> = 256..272;
/// In the first of them: the table was a kernel's root, and shows the machine-to-phys table. Not present: nothing is behind it.
pub(super) const WAS_KERNEL_ROOT: u64 = 1 << 9;
const _: () = assert!((HYPERVISOR_VIRT_START >> 39) & 511 == 256);

pub(super) const fn is_present(entry: u64) -> bool {
    entry & pte::PRESENT != 0
}

/// Checks the bits of a present entry of a table of `level`.
///
/// # Errors
/// [`Error::ForbiddenBits`].
pub(super) const fn check_bits(entry: u64, level: u32) -> Result<()> {
    let forbidden = if level == 1 { FORBIDDEN & !pte::GLOBAL } else { FORBIDDEN };
    if entry & forbidden != 0 { Err(Error::ForbiddenBits(entry)) } else { Ok(()) }
}

/// The entry as it goes into the table.
pub(super) const fn adjusted(entry: u64, level: u32) -> u64 {
    if !is_present(entry) {
        return entry;
    }
    if level > 1 {
        // Xen may run a guest on copies of its L4 tables, in which the CPU's accessed bits would be lost.
        return entry | pte::USER | if level == 4 { pte::ACCESSED } else { 0 };
    }
    let entry = if entry & pte::USER == 0 { entry | GUEST_KERNEL } else { entry };
    if entry & GUEST_KERNEL == 0 { entry | pte::GLOBAL | pte::USER } else { entry | pte::USER }
}

/// Whether both entries are present and map the same frame with the same permission to write.
pub(super) const fn maps_the_same(old: u64, new: u64) -> bool {
    is_present(old) && (old ^ new) & !CHEAP == 0
}

/// Whether replacing a present L1 or higher entry can leave a stale translation that allows more, or shows other
/// memory, than the new one.
pub(super) const fn can_leave_stale(old: u64, new: u64) -> bool {
    is_present(old)
        && (!is_present(new) || (old ^ new) & pte::FRAME != 0 || old & !new & pte::RW != 0 || new & !old & pte::NX != 0)
}

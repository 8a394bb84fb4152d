//! Finding the L1 entry of a linear address.

use ring3_engine::{HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, pte, table_index};
use ring3_machine::{Machine, Mfn};

use super::entry::is_present;

/// Place of one page-table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Frame of the table.
    pub table: Mfn,
    /// Entry, 0 to 511.
    pub index: usize,
}

impl Slot {
    /// The slot at a machine address; low bits below the entry size are dropped.
    #[allow(clippy::cast_possible_truncation)]
    pub const fn at(maddr: u64) -> Self {
        Self { table: Mfn::containing(maddr), index: ((maddr >> 3) & 511) as usize }
    }
}

const fn is_canonical(va: u64) -> bool {
    let top = va >> 47;
    top == 0 || top == 0x1_ffff
}

/// The L1 slot that maps `va` below `root`, whether or not its entry is present. `None` if an upper level is absent or
/// the address is not the guest's.
///
/// A snapshot: the caller holds the table's type before it trusts it.
#[allow(clippy::cast_possible_truncation)]
pub(super) fn l1_slot(machine: &Machine, root: Mfn, va: u64) -> Option<Slot> {
    if root.0 == 0 || !is_canonical(va) || (HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&va) {
        return None;
    }
    let mut table = root;
    for level in (2..=4u32).rev() {
        let index = table_index(va, level);
        let entry = machine.entry(table, index).ok()?;
        if !is_present(entry) || entry & pte::PSE != 0 {
            return None;
        }
        table = pte::mfn(entry);
    }
    Some(Slot { table, index: ((va >> 12) & 511) as usize })
}

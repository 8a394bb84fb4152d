//! The x86-64 page walk, as a PV guest's tables need it.
//!
//! Differs from hardware in two things, both Xen's rules for PV: every entry counts as USER (the hypervisor sets the
//! bit in hardware tables), so U/S is not checked; and L4 slots 256 to 271 are the hypervisor's: what the guest put
//! there is ignored, and the machine-to-phys table shows there, read-only.
//! Source: xen/include/public/arch-x86/xen-x86_64.h; Intel SDM vol. 3, "4-Level Paging".

use std::sync::atomic::Ordering;

use ring3_machine::{Machine, Mfn, PAGE_SIZE};

/// Page-table entry bits and fields.
pub mod pte {
    pub const PRESENT: u64 = 1 << 0;
    pub const RW: u64 = 1 << 1;
    pub const USER: u64 = 1 << 2;
    pub const PWT: u64 = 1 << 3;
    pub const PCD: u64 = 1 << 4;
    pub const ACCESSED: u64 = 1 << 5;
    pub const DIRTY: u64 = 1 << 6;
    /// PSE in L2 and L3, PAT in L1.
    pub const PSE: u64 = 1 << 7;
    pub const GLOBAL: u64 = 1 << 8;
    pub const NX: u64 = 1 << 63;
    /// Software bit: the guest wrote this L1 entry without USER (the hypervisor sets both).
    pub const GUEST_KERNEL: u64 = 1 << 52;
    /// Bits 12 to 51: the frame.
    pub const FRAME: u64 = 0x000f_ffff_ffff_f000;

    /// Frame that an entry points to.
    pub const fn mfn(entry: u64) -> ring3_machine::Mfn {
        ring3_machine::Mfn((entry & FRAME) >> 12)
    }
}

/// First linear address of the hypervisor's hole, where the machine-to-phys table starts.
pub const HYPERVISOR_VIRT_START: u64 = 0xffff_8000_0000_0000;
/// First linear address after the hole.
pub const HYPERVISOR_VIRT_END: u64 = 0xffff_8800_0000_0000;

/// Kind of access to be checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
    Execute,
}

/// Page tables of one mode of one vCPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressSpace {
    /// The L4 table; frame 0 means none, and every access faults.
    pub root: Mfn,
    /// First frame of the machine-to-phys table (contiguous), and its length in frames. Zero: not shown.
    pub m2p: Mfn,
    pub nr_m2p: u64,
}

/// Index of the entry for `va` in a table of level 1 to 4.
#[inline]
pub fn table_index(va: u64, level: u32) -> usize {
    ((va >> (12 + 9 * (level - 1))) & 511) as usize
}

/// A successful walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Frame that holds the byte.
    pub mfn: Mfn,
    /// Whether a write is allowed too, and the dirty bit is set already, so that the mapping may be cached for writes.
    pub writable: bool,
    /// Whether a write is allowed by all levels (dirty bit aside).
    pub may_write: bool,
    /// Whether instructions may be fetched.
    pub executable: bool,
    /// Whether the guest keeps the mapping to its kernel ([`pte::GUEST_KERNEL`]).
    pub is_kernel: bool,
}

/// Error code bits of a failed walk (P, W/R, I/D), to be completed with U/S.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageFault {
    pub error_code: u32,
}

/// Error code bit: the page was present.
pub const PF_PRESENT: u32 = 1 << 0;
/// Error code bit: the access was a write.
pub const PF_WRITE: u32 = 1 << 1;
/// Error code bit: the access was an instruction fetch.
pub const PF_FETCH: u32 = 1 << 4;
/// Error code bit: a reserved bit was set.
pub const PF_RESERVED: u32 = 1 << 3;

/// Translates `va` (canonical) for `access`, and sets accessed and dirty bits as hardware does.
///
/// # Errors
/// [`PageFault`] with hardware's error code but for U/S.
#[inline]
pub fn walk(machine: &Machine, space: &AddressSpace, va: u64, access: Access) -> Result<Translation, PageFault> {
    let base_code = match access {
        Access::Read => 0,
        Access::Write => PF_WRITE,
        Access::Execute => PF_FETCH,
    };
    let absent = PageFault { error_code: base_code };
    let denied = PageFault { error_code: base_code | PF_PRESENT };
    if (HYPERVISOR_VIRT_START..HYPERVISOR_VIRT_END).contains(&va) {
        let page = (va - HYPERVISOR_VIRT_START) / PAGE_SIZE;
        if page >= space.nr_m2p {
            return Err(absent);
        }
        if access != Access::Read {
            return Err(denied);
        }
        let mfn = Mfn(space.m2p.0 + page);
        return Ok(Translation { mfn, writable: false, may_write: false, executable: false, is_kernel: true });
    }
    if space.root.0 == 0 {
        return Err(absent);
    }

    let mut table = space.root;
    let (mut may_write, mut executable) = (true, true);
    let mut level = 4u32;
    loop {
        let index = table_index(va, level);
        let Ok(word) = machine.word64(table, index * 8) else { return Err(absent) };
        let mut entry = word.load(Ordering::Acquire);
        if entry & pte::PRESENT == 0 {
            return Err(absent);
        }
        if level > 1 && entry & pte::PSE != 0 {
            // Validation admits no superpages to PV tables; treated as hardware treats a reserved bit.
            return Err(PageFault { error_code: denied.error_code | PF_RESERVED });
        }
        may_write &= entry & pte::RW != 0;
        executable &= entry & pte::NX == 0;
        if level == 1 {
            if (access == Access::Write && !may_write) || (access == Access::Execute && !executable) {
                return Err(denied);
            }
            let want = pte::ACCESSED | if access == Access::Write { pte::DIRTY } else { 0 };
            while entry & want != want {
                match word.compare_exchange_weak(entry, entry | want, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => entry |= want,
                    Err(now) if now & !(pte::ACCESSED | pte::DIRTY) == entry & !(pte::ACCESSED | pte::DIRTY) => {
                        entry = now;
                    }
                    // The entry changed under the walk: start again, as hardware would.
                    Err(_) => return walk(machine, space, va, access),
                }
            }
            let mfn = pte::mfn(entry);
            if mfn.0 >= machine.nr_frames() {
                return Err(absent);
            }
            let (writable, is_kernel) = (may_write && entry & pte::DIRTY != 0, entry & pte::GUEST_KERNEL != 0);
            return Ok(Translation { mfn, writable, may_write, executable, is_kernel });
        }
        if entry & pte::ACCESSED == 0 {
            word.fetch_or(pte::ACCESSED, Ordering::AcqRel);
        }
        table = pte::mfn(entry);
        level -= 1;
    }
}

//! Which parts of the vCPU state translated code may use, and for what.

use std::mem::offset_of;

use ring3_engine::Segment;

use crate::emit::tlb;
use crate::flag_word::NR_SLOTS;
use crate::jumps;
use crate::state::{JumpEntry, NR_HELD, State, TLB_ENTRIES, TlbEntry, gpr_index, regs_offset};

/// Offset and size of what may be loaded and stored at constant offsets, as guest-visible or as the block's own.
fn stored() -> [(usize, usize); 18] {
    [
        (offset_of!(State, page_base), 8),
        (offset_of!(State, flags), 4),
        (offset_of!(State, operands), 8 * NR_SLOTS),
        (offset_of!(State, direction), 2),
        (offset_of!(State, access_info), 4),
        (offset_of!(State, scratch), 8 * NR_SCRATCH),
        (offset_of!(State, held), 8 * NR_HELD),
        (offset_of!(State, link), 4),
        (offset_of!(State, pauses), 4),
        (offset_of!(State, x87_used), 4),
        (gpr_index(10), 16),
        (regs_offset!(fs_base), 8),
        (regs_offset!(gs_base), 8),
        (regs_offset!(ds), 2),
        (regs_offset!(es), 2),
        (regs_offset!(fs), 2),
        (regs_offset!(gs), 2),
        (regs_offset!(segments), size_of::<[Segment; 6]>()),
    ]
}

/// The same for what may be loaded only.
fn loaded() -> [(usize, usize); 6] {
    [
        (offset_of!(State, requests), 4),
        (regs_offset!(rflags), 8),
        (regs_offset!(kernel_gs_base), 8),
        (regs_offset!(tsc_aux), 4),
        (regs_offset!(cs), 2),
        (regs_offset!(ss), 2),
    ]
}

fn holds(&(start, len): &(usize, usize), at: u64, size: u64) -> bool {
    at >= start as u64 && at + size <= (start + len) as u64
}

/// Whether `size` bytes at `at` may be stored.
pub fn may_store(at: u64, size: u64) -> bool {
    stored().iter().any(|part| holds(part, at, size))
}

/// Whether they may be loaded.
pub fn may_load(at: u64, size: u64) -> bool {
    may_store(at, size) || loaded().iter().any(|part| holds(part, at, size))
}

/// Words of `State::scratch`, and all words that blocks keep values in.
const NR_SCRATCH: usize = 4;
pub const NR_WORDS: usize = NR_SCRATCH + NR_HELD;

/// Number of the word that blocks keep values in and that `at` belongs to.
pub fn word(at: u64) -> Option<usize> {
    let index = |start: usize, len: usize| {
        let index = usize::try_from(at.checked_sub(start as u64)? / 8).ok()?;
        (index < len).then_some(index)
    };
    let held = || index(offset_of!(State, held), NR_HELD).map(|n| n + NR_SCRATCH);
    index(offset_of!(State, scratch), NR_SCRATCH).or_else(held)
}

pub fn is_access_info(at: u64) -> bool {
    at == offset_of!(State, access_info) as u64
}

/// Shift and mask that make an address the offset of its TLB entry.
pub fn tlb_shift() -> u32 {
    12 - size_of::<TlbEntry>().trailing_zeros()
}

pub fn tlb_mask() -> u64 {
    ((TLB_ENTRIES - 1) * size_of::<TlbEntry>()) as u64
}

/// What the offset of a page's second place differs in.
pub fn tlb_second() -> u64 {
    u64::from(crate::emit::tlb::SECOND)
}

/// Whether `at` is the tag of entry 0 of a mode's TLB, and of which kind: written or read.
pub fn tag(mode: usize, at: u64) -> Option<bool> {
    let base = tlb::offset(mode);
    [(offset_of!(TlbEntry, write_tag), true), (offset_of!(TlbEntry, read_tag), false)]
        .into_iter()
        .find(|(field, _)| at == (base + field) as u64)
        .map(|(_, write)| write)
}

pub fn is_host_page(mode: usize, at: u64) -> bool {
    at == (tlb::offset(mode) + offset_of!(TlbEntry, host_page)) as u64
}

/// Whether `at` is the address, or else the target, in entry 0 of a mode's jump cache.
pub fn is_jump_rip(mode: usize, at: u64) -> bool {
    at == (jumps::offset(mode) + offset_of!(JumpEntry, rip)) as u64
}

pub fn is_jump_host(mode: usize, at: u64) -> bool {
    at == (jumps::offset(mode) + offset_of!(JumpEntry, host)) as u64
}

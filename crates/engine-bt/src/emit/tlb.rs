//! The inline look into the software TLB.

use std::mem::offset_of;

use super::asm::{Asm, S0, S1};
use crate::state::{State, TLB_ENTRIES, TLB_SECOND, TlbEntry};

/// Offset in the state of a mode's TLB.
pub fn offset(mode: usize) -> usize {
    offset_of!(State, tlb) + mode * size_of::<[TlbEntry; TLB_ENTRIES]>()
}

/// Offset in the state of the tags of a mode's TLB.
pub fn tag(mode: usize, write: bool) -> usize {
    offset(mode) + if write { offset_of!(TlbEntry, write_tag) } else { offset_of!(TlbEntry, read_tag) }
}

/// What the offset of a page's second place differs in.
pub const SECOND: u32 = (TLB_SECOND * size_of::<TlbEntry>()) as u32;

/// S0 = offset in a mode's TLB of the entry that the address in S1 selects; clobbers the flags. Returns the offset in the
/// state of the tags.
pub fn select(asm: &mut Asm, mode: usize, write: bool) -> usize {
    let shift = 12 - size_of::<TlbEntry>().trailing_zeros() as u8;
    let mask = ((TLB_ENTRIES - 1) * size_of::<TlbEntry>()) as u32;
    asm.mov(S0, S1);
    asm.raw(&[0x49, 0xc1, 0xea, shift]); // shr r10, shift
    asm.raw(&[0x41, 0x81, 0xe2]); // and r10d, mask
    asm.raw(&mask.to_le_bytes());
    tag(mode, write)
}

/// S0, the offset of the entry that an address selects, becomes that of its page's second place; clobbers the flags.
pub fn select_second(asm: &mut Asm) {
    asm.raw(&[0x41, 0x81, 0xf2]); // xor r10d, second
    asm.raw(&SECOND.to_le_bytes());
}

//! Corner-case values of registers and memory.

use crate::prng::Prng;
use crate::state::{CS32, CpuState, DATA, HOLE, LAST_DATA, MEMORY_BYTES, MEMORY_END, READ_ONLY, READ_ONLY_TOO, STACK};

const INTEGERS: [u64; 26] = [
    0,
    1,
    2,
    u64::MAX,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_0000_0000,
    0xffff_ffff_8000_0000,
    0x5555_5555_5555_5555,
    0xaaaa_aaaa_aaaa_aaaa,
    63,
    64,
    31,
    32,
];
const F64: [u64; 14] = [
    0,
    0x8000_0000_0000_0000,
    0x3ff0_0000_0000_0000,
    0xbff8_0000_0000_0000,
    0x7ff0_0000_0000_0000,
    0xfff0_0000_0000_0000,
    0x7ff8_0000_0000_0001,
    0x7ff0_0000_0000_0001,
    1,
    0x800f_ffff_ffff_ffff,
    0x7fef_ffff_ffff_ffff,
    0x41e0_0000_0000_0000,
    0xc3e0_0000_0000_0000,
    0x4059_0000_0000_0000,
];
const F32: [u32; 12] = [
    0,
    0x8000_0000,
    0x3f80_0000,
    0xbfc0_0000,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0001,
    0x7f80_0001,
    1,
    0x7f7f_ffff,
    0x4f00_0000,
    0x42c8_0000,
];

pub fn integer(rng: &mut Prng) -> u64 {
    match rng.below(5) {
        0 | 1 => rng.pick(&INTEGERS),
        2 => rng.below(256),
        3 => rng.next() >> rng.below(64),
        _ => rng.next(),
    }
}

/// Eight bytes of vector data.
fn lanes(rng: &mut Prng) -> u64 {
    match rng.below(5) {
        0 | 1 => rng.pick(&F64),
        2 => u64::from(rng.pick(&F32)) | u64::from(rng.pick(&F32)) << 32,
        3 => integer(rng),
        _ => rng.next(),
    }
}

/// A data address whose `size` bytes are mostly readable and writable.
pub fn address(rng: &mut Prng, size: usize) -> u64 {
    let size = size as u64;
    let data = READ_ONLY - DATA - size;
    if rng.favours_read_only && !rng.one_in(4) {
        return READ_ONLY - if rng.one_in(10) { rng.below(size) } else { 0 } + 8 * rng.below((4096 - size) / 8);
    }
    let dice = if rng.favours_faults && rng.one_in(6) { 12 + rng.below(4) } else { rng.below(40) };
    match dice {
        // Across a page boundary.
        0..=3 => DATA + 4096 * (1 + rng.below(4)) - rng.below(size.max(2)),
        // Unaligned.
        4..=11 => DATA + rng.below(data),
        // Read-only, or partly.
        12 => READ_ONLY + rng.below(4096 - size),
        13 => READ_ONLY - rng.below(size.max(2)),
        // Not there, or partly; just before the data, and just after.
        14 => DATA - rng.below(size.max(2)),
        15 => {
            let edge = rng.pick(&[HOLE, READ_ONLY_TOO, LAST_DATA, MEMORY_END]);
            edge - rng.below(size.max(2))
        }
        _ => DATA + rng.below(data / 64) * 64 + if rng.one_in(3) { 16 } else { 0 },
    }
}

/// Contents of the data pages.
pub fn memory(rng: &mut Prng, out: &mut [u8; MEMORY_BYTES]) {
    for chunk in out.chunks_exact_mut(8) {
        chunk.copy_from_slice(&lanes(rng).to_le_bytes());
    }
    out[(HOLE - DATA) as usize..(READ_ONLY_TOO - DATA) as usize].fill(0);
}

fn x87(rng: &mut Prng, image: &mut [u8; 160]) {
    let control: u16 = match rng.below(6) {
        0 => 0x37f & !(rng.next() as u16 & 0x3f) | rng.next() as u16 & 0xf00,
        1 | 2 => 0x7f | rng.next() as u16 & 0xf00,
        _ => 0x37f,
    };
    image[..2].copy_from_slice(&control.to_le_bytes());
    if rng.one_in(3) {
        return;
    }
    // Exception flags only if nothing is unmasked: the summary bit would have to agree.
    let mut status = rng.next() as u16 & 0x7f00 & !0x0100;
    if control & 0x3f == 0x3f && rng.one_in(3) {
        status |= rng.next() as u16 & 0x3f;
    }
    image[2..4].copy_from_slice(&status.to_le_bytes());
    image[4] = match rng.below(3) {
        0 => 0xff,
        1 => 0,
        _ => rng.next() as u8,
    };
    for n in 0..8 {
        let sign = (rng.next() as u16) & 0x8000;
        let (mantissa, exponent): (u64, u16) = match rng.below(10) {
            0 => (0, 0),
            1 => (1 << 63, 0x7fff),
            2 => (3 << 62, 0x7fff),
            3 => (1 << 63 | 1, 0x7fff),
            4 => (rng.next() >> 1, 0),
            5 => (1 << 63, 0x3fff),
            6 => (rng.next(), 0x3fff),
            _ => (rng.next() | 1 << 63, 0x3fff - 70 + rng.below(140) as u16),
        };
        image[32 + 16 * n..][..8].copy_from_slice(&mantissa.to_le_bytes());
        image[40 + 16 * n..][..2].copy_from_slice(&(exponent | sign).to_le_bytes());
    }
}

/// A state with every register filled, and a stack.
pub fn state(rng: &mut Prng) -> CpuState {
    let mut state = CpuState::default();
    for register in &mut state.gpr {
        *register = integer(rng);
    }
    state.gpr[4] = STACK + 0x1000 + 8 * rng.below(16) - if rng.one_in(8) { rng.below(16) } else { 0 };
    state.rflags = 0x202 | rng.next() & 0x8d5;
    if rng.one_in(8) {
        state.rflags |= 1 << 10;
    }
    if rng.one_in(40) {
        state.rflags |= 1 << 8;
    }
    if rng.one_in(20) {
        state.rflags |= 1 << 18;
    }
    state.fs_base = DATA + 8 * rng.below(64);
    state.gs_base = DATA + 4096 + rng.below(64);
    state.mxcsr = match rng.below(8) {
        0 => rng.next() & 0xffff,
        1 => 0x1f80 | rng.next() & 0xe07f,
        2 => 0x1fc0,
        _ => 0x1f80,
    };
    for register in &mut state.ymm {
        for chunk in register.chunks_exact_mut(8) {
            chunk.copy_from_slice(&lanes(rng).to_le_bytes());
        }
    }
    if rng.one_in(4) {
        state.ymm[rng.below(16) as usize][16..].fill(0);
    }
    x87(rng, &mut state.x87);
    state
}

/// A state for 32-bit code: nothing in the upper halves of its registers.
pub fn state32(rng: &mut Prng) -> CpuState {
    let mut state = state(rng);
    state.cs = CS32;
    for register in &mut state.gpr[..8] {
        *register &= 0xffff_ffff;
    }
    state
}

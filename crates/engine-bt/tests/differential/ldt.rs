//! Descriptors of odd bases and limits: the table that both sides load selectors from.

use ring3_engine::{Segment, SegmentName};

use crate::prng::Prng;
use crate::state::{CODE, CODE_BYTES, CS32, CS64, CpuState, DATA, MEMORY_END, SELECTOR};

/// Of 16-bit code, 32-bit code, and data.
const NR_CODE16: usize = 3;
const NR_CODE32: usize = 3;
const NR_DATA: usize = 10;
const NR: usize = NR_CODE16 + NR_CODE32 + NR_DATA;

/// The descriptors as the CPU has them.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Ldt(pub [u64; NR]);

/// Source: Linux arch/x86/include/uapi/asm/ldt.h.
#[repr(C)]
pub struct UserDesc {
    entry_number: u32,
    base_addr: u32,
    limit: u32,
    flags: u32,
}

impl UserDesc {
    /// What asks the kernel for a descriptor; all of zeros clears the entry.
    pub fn new(entry_number: u32, descriptor: u64) -> Self {
        let bit = |n: u32| (descriptor >> n & 1) as u32;
        let base_addr = (descriptor >> 16 & 0xff_ffff | descriptor >> 32 & 0xff00_0000) as u32;
        let limit = (descriptor & 0xffff | descriptor >> 32 & 0xf_0000) as u32;
        // seg_32bit, contents, read_exec_only, limit_in_pages, seg_not_present, useable.
        let contents = (descriptor >> 42 & 3) as u32;
        let flags = bit(54) | contents << 1 | (bit(41) ^ 1) << 3 | bit(55) << 4 | (bit(47) ^ 1) << 5 | 1 << 6;
        Self { entry_number, base_addr, limit, flags }
    }
}

const ACCESSED: u64 = 1 << 40;
const READABLE_OR_WRITABLE: u64 = 1 << 41;
const EXPANDS_DOWN: u64 = 1 << 42;
const CODE_SEGMENT: u64 = 1 << 43;
/// S, DPL 3, P.
const PRESENT: u64 = 0xf << 44;
const BIG: u64 = 1 << 54;
const IN_PAGES: u64 = 1 << 55;

fn descriptor(base: u64, limit: u64, flags: u64) -> u64 {
    let limit = if flags & IN_PAGES != 0 { limit >> 12 } else { limit.min(0xf_ffff) };
    let address = (base & 0xff_ffff) << 16 | (base & 0xff00_0000) << 32;
    address | limit & 0xffff | (limit & 0xf_0000) << 32 | PRESENT | ACCESSED | flags
}

/// Selector of entry `n`.
fn selector(n: usize) -> u16 {
    (n as u16) << 3 | 7
}

/// Size of the code that a selector names.
pub fn bits_of(cs: u64) -> u32 {
    match cs {
        CS64 => 64,
        CS32 => 32,
        other if (other >> 3) < NR_CODE16 as u64 => 16,
        _ => 32,
    }
}

/// What a register keeps of a selector.
pub fn segment(ldt: &Ldt, selector: u16) -> Segment {
    match (u64::from(selector), selector) {
        (CS64, _) => Segment::FLAT_CODE64,
        (CS32, _) => Segment::FLAT_CODE32,
        (_, SELECTOR) => Segment::FLAT_DATA,
        (_, other) if other & 4 != 0 => ldt.0.get(usize::from(other >> 3)).map_or(Segment::NULL, |&d| Segment::of(d)),
        _ => Segment::NULL,
    }
}

impl Ldt {
    /// Code that holds the code pages, mostly; data that holds the data pages, mostly.
    pub fn random(rng: &mut Prng) -> Self {
        let mut all = [0; NR];
        for (n, slot) in all.iter_mut().enumerate() {
            *slot = match n {
                n if n < NR_CODE16 => Self::code16(rng),
                n if n < NR_CODE16 + NR_CODE32 => Self::code32(rng),
                n => Self::data(rng, n == NR - 1),
            };
        }
        Self(all)
    }

    fn code16(rng: &mut Prng) -> u64 {
        let base = CODE - rng.pick(&[0, 0x10, 0x1000, 0x7ffd, 0xdff0, rng.clone().below(0xe000)]);
        let limit = match rng.below(6) {
            // Within the code pages.
            0 => CODE - base + 0x400 + rng.below(CODE_BYTES as u64),
            1 => 0xf_ffff,
            _ => 0xffff,
        };
        let readable = if rng.one_in(4) { 0 } else { READABLE_OR_WRITABLE };
        descriptor(base, limit, CODE_SEGMENT | readable)
    }

    fn code32(rng: &mut Prng) -> u64 {
        let readable = if rng.one_in(4) { 0 } else { READABLE_OR_WRITABLE };
        let flags = CODE_SEGMENT | readable | BIG;
        match rng.below(3) {
            0 => descriptor(0, 0xffff_ffff, flags | IN_PAGES),
            // Its offsets wrap at 4 GiB.
            1 => descriptor(CODE + 0x1000 * rng.below(4) + rng.below(0x1000), 0xffff_ffff, flags | IN_PAGES),
            _ => descriptor(CODE - rng.below(0x1_0000), 0x400 + rng.below(0x2_0000), flags),
        }
    }

    fn data(rng: &mut Prng, is_plain: bool) -> u64 {
        let size = MEMORY_END - DATA;
        let base = DATA + if rng.one_in(2) { rng.below(size) } else { 0x1000 * rng.below(4) };
        let mut flags = if rng.one_in(2) { BIG } else { 0 };
        if is_plain {
            return descriptor(DATA, 0xffff, flags | READABLE_OR_WRITABLE);
        }
        if !rng.one_in(6) {
            flags |= READABLE_OR_WRITABLE;
        }
        match rng.below(8) {
            0 => descriptor(0, 0xffff_ffff, flags | IN_PAGES),
            // Offsets just below 64 KiB or 4 GiB are those of the data.
            1 => {
                let top = if flags & BIG != 0 { 0 } else { 0x1_0000 };
                descriptor(
                    (DATA + rng.below(size)).wrapping_sub(top),
                    top.wrapping_sub(1 + rng.below(0x3000)) & 0xffff_ffff,
                    flags | EXPANDS_DOWN | if top == 0 { IN_PAGES } else { 0 },
                )
            }
            2 => descriptor(base, rng.below(0x2000), flags | EXPANDS_DOWN),
            3 => descriptor(base, rng.below(0x40), flags),
            4 => descriptor(base, 0xf_ffff, flags),
            5 => descriptor(base, 0x1000 * rng.below(0x20), flags | IN_PAGES),
            _ => descriptor(base, 0xffff, flags),
        }
    }

    /// Has a state run through these segments. Returns the base of its code.
    pub fn load(&self, rng: &mut Prng, state: &mut CpuState, in_16: bool) -> u32 {
        let first = if in_16 { 0 } else { NR_CODE16 };
        state.cs = u64::from(selector(first + rng.below(3) as usize));
        for slot in &mut state.selectors {
            *slot = match rng.below(12) {
                0 => 0,
                1 => SELECTOR,
                2 => selector(rng.below(6) as usize),
                3..=5 => selector(NR - 1),
                _ => selector(NR_CODE16 + NR_CODE32 + rng.below(NR_DATA as u64) as usize),
            };
            // What may not be read may not be loaded.
            if !self.is_loadable(*slot) {
                *slot = SELECTOR;
            }
        }
        if !self.may_be_stack(state.selectors[0]) {
            state.selectors[0] = selector(NR - 1);
        }
        let base_of = |selector: u16| u64::from(segment(self, selector).base);
        (state.fs_base, state.gs_base) = (base_of(state.selectors[3]), base_of(state.selectors[4]));
        segment(self, state.cs as u16).base
    }

    fn raw(&self, selector: u16) -> Option<u64> {
        self.0.get(usize::from(selector >> 3)).copied().filter(|_| selector & 4 != 0)
    }

    /// Not code that may not be read.
    fn is_loadable(&self, selector: u16) -> bool {
        self.raw(selector).is_none_or(|d| d & CODE_SEGMENT == 0 || d & READABLE_OR_WRITABLE != 0)
    }

    fn may_be_stack(&self, selector: u16) -> bool {
        let is_writable = |d: u64| d & CODE_SEGMENT == 0 && d & READABLE_OR_WRITABLE != 0;
        selector == SELECTOR || self.raw(selector).is_some_and(is_writable)
    }

    /// The segment that a register of a state has.
    pub fn segment_of(&self, state: &CpuState, name: SegmentName) -> Segment {
        let [ss, ds, es, fs, gs] = state.selectors;
        let selector = match name {
            SegmentName::Es => es,
            SegmentName::Cs => state.cs as u16,
            SegmentName::Ss => ss,
            SegmentName::Ds => ds,
            SegmentName::Fs => fs,
            SegmentName::Gs => gs,
        };
        segment(self, selector)
    }
}

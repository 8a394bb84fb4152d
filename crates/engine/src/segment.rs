//! The hidden parts of segment registers, and what code of 16 and 32 bits may reach through them.
//! Source: Intel SDM vol. 3, "Segment Descriptors", "Limit Checking" and "Type Checking".

use crate::{CodeSize, vector};

/// Index of a segment register in [`crate::Regs::segments`]: the hardware encoding.
/// Source: Intel SDM vol. 2, "Segment Register Encodings".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum SegmentName {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
}

impl SegmentName {
    /// In the order of their numbers.
    pub const ALL: [Self; 6] = [Self::Es, Self::Cs, Self::Ss, Self::Ds, Self::Fs, Self::Gs];

    /// Vector of the fault, with error code 0, of an access that the segment does not admit.
    pub const fn vector(self) -> u8 {
        match self {
            Self::Ss => vector::SS,
            _ => vector::GP,
        }
    }
}

/// What a segment register keeps of the descriptor that was loaded. 64-bit code looks at none of it; a change of the
/// descriptor's table counts at the next load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Segment {
    /// Of FS and GS the bases of [`crate::Regs`] count.
    pub base: u32,
    /// In bytes: the last offset that is inside, or of a segment that expands down the last one that is outside.
    pub limit: u32,
    flags: u32,
}

const USABLE: u32 = 1 << 0;
const READABLE: u32 = 1 << 1;
const WRITABLE: u32 = 1 << 2;
const EXPANDS_DOWN: u32 = 1 << 3;
/// D or B: code of 32 bits, a stack addressed by ESP, 4 GiB as the upper bound of what expands down.
const BIG: u32 = 1 << 4;
const LONG: u32 = 1 << 5;

impl Segment {
    /// What a null selector loads: no access succeeds.
    pub const NULL: Self = Self { base: 0, limit: 0, flags: 0 };
    /// Data of 4 GiB from 0 on.
    pub const FLAT_DATA: Self = Self { base: 0, limit: u32::MAX, flags: USABLE | READABLE | WRITABLE | BIG };
    /// 32-bit code of 4 GiB from 0 on.
    pub const FLAT_CODE32: Self = Self { base: 0, limit: u32::MAX, flags: USABLE | READABLE | BIG };
    /// 64-bit code.
    pub const FLAT_CODE64: Self = Self { base: 0, limit: u32::MAX, flags: USABLE | READABLE | LONG };

    /// What loading a present code or data descriptor leaves.
    #[allow(clippy::cast_possible_truncation, reason = "fields of the descriptor")]
    pub const fn of(descriptor: u64) -> Self {
        let high = (descriptor >> 32) as u32;
        let base = (descriptor >> 16) as u32 & 0x00ff_ffff | high & 0xff00_0000;
        let raw = descriptor as u32 & 0xffff | high & 0x000f_0000;
        let limit = if high & 1 << 23 != 0 { raw << 12 | 0xfff } else { raw };
        let (is_code, bit1, bit2) = (high & 1 << 11 != 0, high & 1 << 9 != 0, high & 1 << 10 != 0);
        let mut flags = USABLE;
        if !is_code || bit1 {
            flags |= READABLE;
        }
        if !is_code && bit1 {
            flags |= WRITABLE;
        }
        if !is_code && bit2 {
            flags |= EXPANDS_DOWN;
        }
        if high & 1 << 22 != 0 {
            flags |= BIG;
        }
        if is_code && high & 1 << 21 != 0 {
            flags |= LONG;
        }
        Self { base, limit, flags }
    }

    /// D or B of the descriptor.
    pub const fn is_big(&self) -> bool {
        self.flags & BIG != 0
    }

    /// Size of the code, if it is a code segment.
    pub const fn code_size(&self) -> CodeSize {
        match (self.flags & LONG != 0, self.flags & BIG != 0) {
            (true, _) => CodeSize::Bits64,
            (false, true) => CodeSize::Bits32,
            (false, false) => CodeSize::Bits16,
        }
    }

    /// Whether any access by an offset of 32 bits succeeds that does not wrap: only the base counts.
    pub const fn is_unlimited(&self) -> bool {
        const NEEDED: u32 = USABLE | READABLE | WRITABLE;
        self.limit == u32::MAX && self.flags & (NEEDED | EXPANDS_DOWN) == NEEDED
    }

    /// Whether it does not matter as data in 32-bit code.
    pub const fn is_flat(&self) -> bool {
        self.base == 0 && self.is_unlimited()
    }

    /// Whether it does not matter as 32-bit code.
    pub const fn is_flat_code(&self) -> bool {
        self.base == 0 && self.limit == u32::MAX && self.flags & (USABLE | BIG) == USABLE | BIG
    }

    /// Whether `len` (at least 1) bytes from `offset` on lie within it.
    pub const fn holds(&self, offset: u32, len: u32) -> bool {
        if self.flags & USABLE == 0 {
            return false;
        }
        let last = offset as u64 + len as u64 - 1;
        if self.flags & EXPANDS_DOWN == 0 {
            return last <= self.limit as u64;
        }
        let top = if self.is_big() { 0xffff_ffff } else { 0xffff };
        offset > self.limit && last <= top
    }

    /// Whether `len` (at least 1) bytes from `offset` on may be read or written by it.
    pub const fn admits(&self, offset: u32, len: u32, write: bool) -> bool {
        let needed = if write { WRITABLE } else { READABLE };
        self.flags & needed != 0 && self.holds(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_descriptors_are_taken_apart() {
        let data = Segment::of(0x12cf_f334_5678_ffff);
        assert_eq!((data.base, data.limit), (0x1234_5678, u32::MAX));
        assert!(data.is_unlimited() && !data.is_flat() && data.is_big());
        assert_eq!(Segment::of(0x00cf_f200_0000_ffff), Segment::FLAT_DATA);
        assert_eq!(Segment::of(0x00cf_fa00_0000_ffff), Segment::FLAT_CODE32);
        assert_eq!(Segment::of(0x00af_fa00_0000_ffff).code_size(), CodeSize::Bits64);
        let small = Segment::of(0x0000_fb00_0000_1fff);
        assert_eq!((small.code_size(), small.limit), (CodeSize::Bits16, 0x1fff));
        assert!(small.holds(0x1fff, 1) && !small.holds(0x1fff, 2) && !small.admits(0, 1, true));
    }

    #[test]
    fn test_limits_bound_from_above_or_from_below() {
        let flat = Segment::FLAT_DATA;
        assert!(flat.admits(0xffff_fffc, 4, true) && !flat.admits(0xffff_fffd, 4, true));
        assert!(!Segment::NULL.admits(0, 1, false));
        // Expands down: writable data, limit 0xfff, 16 and 32 bits.
        let (small, big) = (Segment::of(0x0000_f600_0000_0fff), Segment::of(0x0040_f600_0000_0fff));
        assert!(!small.admits(0xfff, 1, true) && small.admits(0x1000, 2, true));
        assert!(small.admits(0xfffe, 2, true) && !small.admits(0xffff, 2, true) && !small.admits(0x1_0000, 1, true));
        assert!(big.admits(0xffff_fffe, 2, true) && !big.admits(0xffff_fffe, 3, true));
        // Code that may be executed alone, data that may be read alone.
        assert!(!Segment::of(0x0040_f800_0000_ffff).admits(0, 1, false));
        assert!(!Segment::of(0x0040_f000_0000_ffff).admits(0, 1, true));
    }
}

//! Instructions that a CPU may lack, by the CPUID feature that shows them.

/// A set of such features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Features(pub u64);

impl Features {
    pub const NONE: Self = Self(0);
    pub const MMX: Self = Self(1 << 0);
    pub const FXSR: Self = Self(1 << 1);
    pub const SSE: Self = Self(1 << 2);
    pub const SSE2: Self = Self(1 << 3);
    pub const SSE3: Self = Self(1 << 4);
    pub const SSSE3: Self = Self(1 << 5);
    pub const SSE4_1: Self = Self(1 << 6);
    pub const SSE4_2: Self = Self(1 << 7);
    pub const SSE4A: Self = Self(1 << 8);
    pub const AES: Self = Self(1 << 9);
    pub const PCLMULQDQ: Self = Self(1 << 10);
    pub const AVX: Self = Self(1 << 11);
    pub const AVX2: Self = Self(1 << 12);
    pub const F16C: Self = Self(1 << 13);
    pub const FMA: Self = Self(1 << 14);
    /// Without it TZCNT is BSF: older CPUs ignore the prefix.
    pub const BMI1: Self = Self(1 << 15);
    pub const BMI2: Self = Self(1 << 16);
    pub const POPCNT: Self = Self(1 << 17);
    pub const MOVBE: Self = Self(1 << 18);
    pub const ADX: Self = Self(1 << 19);
    pub const SHA: Self = Self(1 << 20);
    pub const GFNI: Self = Self(1 << 21);
    pub const VAES: Self = Self(1 << 22);
    pub const VPCLMULQDQ: Self = Self(1 << 23);
    pub const RDRAND: Self = Self(1 << 24);
    pub const RDSEED: Self = Self(1 << 25);
    pub const XSAVE: Self = Self(1 << 26);
    pub const XSAVEC: Self = Self(1 << 27);
    pub const XSAVEOPT: Self = Self(1 << 28);
    pub const CX16: Self = Self(1 << 29);
    pub const CLFLUSH: Self = Self(1 << 30);
    pub const CLFLUSHOPT: Self = Self(1 << 31);
    pub const CLWB: Self = Self(1 << 32);
    pub const RDTSCP: Self = Self(1 << 33);
    pub const RDPID: Self = Self(1 << 34);
    pub const FSGSBASE: Self = Self(1 << 35);
    /// LAHF and SAHF in 64-bit code.
    pub const LAHF_LM: Self = Self(1 << 36);
    /// Without it LZCNT is BSR.
    pub const LZCNT: Self = Self(1 << 37);

    /// Whether any of `other` is in `self`.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in `self` but not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there is none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

//! Hardware breakpoints, as DR0 to DR3 and DR7 ask for them, and the bits of DR6.
//! Source: Intel SDM vol. 3, "Debug Registers".

/// Breakpoints of a vCPU.
pub const NR_BREAKPOINTS: usize = 4;

/// Bits of DR6.
pub mod dr6 {
    /// Breakpoint 0 was hit; the others are the next bits.
    pub const B0: u64 = 1 << 0;
    /// Single step.
    pub const BS: u64 = 1 << 14;
}

/// What a breakpoint watches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakpointKind {
    /// The execution of the instruction that starts at the address: a fault, before it.
    Execute,
    /// A store to one of the bytes: a trap, after the instruction.
    Write,
    /// A load or store of one of the bytes: a trap, after the instruction.
    Access,
}

/// A hardware breakpoint that is enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breakpoint {
    /// Linear address; that of data is a multiple of `len`.
    pub va: u64,
    /// Bytes watched: 1, 2, 4 or 8.
    pub len: u8,
    pub kind: BreakpointKind,
}

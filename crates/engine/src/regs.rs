//! Architectural register state as the hypervisor sees it between exits.

use crate::{Segment, SegmentName};

/// Index of a general-purpose register in [`Regs::gpr`]: the hardware encoding.
/// Source: Intel SDM vol. 2, "Register Operand Encodings".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum GprName {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

/// Size of code that CS selects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CodeSize {
    /// 64-bit mode (CS.L set).
    #[default]
    Bits64,
    /// Compatibility mode, 32-bit default operand size.
    Bits32,
    /// Compatibility mode, 16-bit default operand and address size.
    Bits16,
}

impl CodeSize {
    /// Whether it is compatibility mode, where segments count.
    pub const fn is_compat(self) -> bool {
        !matches!(self, Self::Bits64)
    }

    /// As decoders want it.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Bits64 => 64,
            Self::Bits32 => 32,
            Self::Bits16 => 16,
        }
    }
}

/// Registers of one vCPU. Selectors hold what the guest would read back. By default all are zero, and segments flat.
#[derive(Clone, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    /// General-purpose registers, indexed by [`GprName`].
    pub gpr: [u64; 16],
    /// Next instruction: an offset in CS.
    pub rip: u64,
    /// RFLAGS as the CPU would have them: bit 1 set, IF and IOPL as the guest may see them.
    pub rflags: u64,
    /// FS base of the current mode.
    pub fs_base: u64,
    /// GS base in use.
    pub gs_base: u64,
    /// The GS base not in use (the user's while in kernel mode, and the reverse).
    pub kernel_gs_base: u64,
    /// TSC_AUX, read by `rdtscp` and `rdpid`.
    pub tsc_aux: u32,
    /// Selectors.
    pub cs: u16,
    pub ss: u16,
    pub ds: u16,
    pub es: u16,
    pub fs: u16,
    pub gs: u16,
    /// Hidden parts of the segment registers, indexed by [`SegmentName`]: who sets a selector sets them, too.
    pub segments: [Segment; 6],
}

impl Default for Regs {
    fn default() -> Self {
        let mut segments = [Segment::FLAT_DATA; 6];
        segments[SegmentName::Cs as usize] = Segment::FLAT_CODE64;
        Self {
            gpr: [0; 16],
            rip: 0,
            rflags: 0,
            fs_base: 0,
            gs_base: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            cs: 0,
            ss: 0,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
            segments,
        }
    }
}

impl Regs {
    /// Hidden part of a segment register.
    pub const fn segment(&self, name: SegmentName) -> &Segment {
        &self.segments[name as usize]
    }

    /// Linear address of offset 0 in a segment, in code of 16 or 32 bits; in 64-bit code of FS and GS.
    pub const fn segment_base(&self, name: SegmentName) -> u64 {
        match name {
            SegmentName::Fs => self.fs_base,
            SegmentName::Gs => self.gs_base,
            _ => self.segments[name as usize].base as u64,
        }
    }

    /// Linear address of `len` (at least 1) bytes from `offset` on, for code of this size. `None` where the segment does not
    /// admit it: [`SegmentName::vector`].
    #[allow(clippy::cast_possible_truncation, reason = "code of 16 and 32 bits has no longer offsets")]
    pub const fn place(&self, size: CodeSize, name: SegmentName, offset: u64, len: usize, write: bool) -> Option<u64> {
        match (size, name) {
            (CodeSize::Bits64, SegmentName::Fs | SegmentName::Gs) => Some(self.segment_base(name).wrapping_add(offset)),
            (CodeSize::Bits64, _) => Some(offset),
            _ if self.segment(name).admits(offset as u32, len as u32, write) => {
                Some(self.segment_base(name).wrapping_add(offset) & 0xffff_ffff)
            }
            _ => None,
        }
    }

    /// Linear address of `offset` in the code segment, for code of this size.
    pub const fn code_address(&self, size: CodeSize, offset: u64) -> u64 {
        match size {
            CodeSize::Bits64 => offset,
            _ => (self.segments[SegmentName::Cs as usize].base as u64).wrapping_add(offset) & 0xffff_ffff,
        }
    }

    /// The stack pointer, as code of this size has it.
    pub const fn sp(&self, size: CodeSize) -> u64 {
        self.gpr[GprName::Rsp as usize] & self.stack_mask(size)
    }

    /// Sets it; of a 16-bit stack pointer the upper half of ESP stays.
    pub const fn set_sp(&mut self, size: CodeSize, value: u64) {
        let mask = self.stack_mask(size);
        let kept = if mask == 0xffff { self.gpr[GprName::Rsp as usize] & 0xffff_0000 } else { 0 };
        self.gpr[GprName::Rsp as usize] = kept | value & mask;
    }

    /// Which bits of RSP address the stack, for code of this size.
    pub const fn stack_mask(&self, size: CodeSize) -> u64 {
        match size {
            CodeSize::Bits64 => u64::MAX,
            _ if self.segments[SegmentName::Ss as usize].is_big() => 0xffff_ffff,
            _ => 0xffff,
        }
    }

    /// Value of register `name`.
    pub fn get(&self, name: GprName) -> u64 {
        self.gpr[name as usize]
    }

    /// Sets register `name`.
    pub fn set(&mut self, name: GprName, value: u64) {
        self.gpr[name as usize] = value;
    }
}

/// RFLAGS bits. Source: Intel SDM vol. 1, "EFLAGS Register".
pub mod rflags {
    pub const CF: u64 = 1 << 0;
    /// Always one.
    pub const FIXED: u64 = 1 << 1;
    pub const PF: u64 = 1 << 2;
    pub const AF: u64 = 1 << 4;
    pub const ZF: u64 = 1 << 6;
    pub const SF: u64 = 1 << 7;
    pub const TF: u64 = 1 << 8;
    pub const IF: u64 = 1 << 9;
    pub const DF: u64 = 1 << 10;
    pub const OF: u64 = 1 << 11;
    pub const IOPL: u64 = 3 << 12;
    pub const NT: u64 = 1 << 14;
    pub const RF: u64 = 1 << 16;
    pub const VM: u64 = 1 << 17;
    pub const AC: u64 = 1 << 18;
    pub const ID: u64 = 1 << 21;
    /// The six that arithmetic sets.
    pub const ARITHMETIC: u64 = CF | PF | AF | ZF | SF | OF;
}

//! Architectural register state as the hypervisor sees it between exits.

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
}

/// Registers of one vCPU. Selectors hold what the guest would read back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    /// General-purpose registers, indexed by [`GprName`].
    pub gpr: [u64; 16],
    /// Next instruction.
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
}

impl Regs {
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

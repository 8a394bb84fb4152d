//! What a sequence starts from and what it leaves, on either side; and where its pages lie.

/// Linear address of the first of two code pages, read and execute only.
pub const CODE: u64 = 0x1000_0000;
pub const CODE_BYTES: usize = 2 * 4096;
/// Linear address of the pages that a sequence may use: four of data, two of stack, one that is read-only; and behind a page
/// that is not there, another that is read-only and another of data. The pages on either side are not present, so every
/// mix of two rights occurs somewhere.
pub const DATA: u64 = 0x1000_4000;
/// The last page of data, which may be executed too.
pub const WRITABLE_CODE: u64 = 0x1000_7000;
pub const STACK: u64 = 0x1000_8000;
pub const READ_ONLY: u64 = 0x1000_a000;
/// Zeros on either side's books.
pub const HOLE: u64 = 0x1000_b000;
pub const READ_ONLY_TOO: u64 = 0x1000_c000;
pub const LAST_DATA: u64 = 0x1000_d000;
pub const MEMORY_END: u64 = 0x1000_e000;
pub const MEMORY_BYTES: usize = (MEMORY_END - DATA) as usize;

/// Linux's selectors for 64-bit and 32-bit code of processes, and for data.
pub const CS64: u64 = 0x33;
pub const CS32: u64 = 0x23;
pub const SELECTOR: u16 = 0x2b;

/// The registers that both sides know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct CpuState {
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    pub fs_base: u64,
    pub gs_base: u64,
    /// Selector of the code segment, which says the size of code.
    pub cs: u64,
    /// Selectors of SS, DS, ES, FS and GS.
    pub selectors: [u16; 5],
    pub mxcsr: u64,
    pub ymm: [[u8; 32]; 16],
    /// FXSAVE image up to the XMM registers, without MXCSR.
    pub x87: [u8; 160],
}

impl Default for CpuState {
    fn default() -> Self {
        let mut x87 = [0; 160];
        x87[..2].copy_from_slice(&0x37fu16.to_le_bytes());
        Self {
            gpr: [0; 16],
            rip: CODE,
            rflags: 0x202,
            fs_base: DATA,
            gs_base: DATA,
            cs: CS64,
            selectors: [SELECTOR, SELECTOR, SELECTOR, 0, 0],
            mxcsr: 0x1f80,
            ymm: [[0; 32]; 16],
            x87,
        }
    }
}

/// Flags that are compared: arithmetic, DF, NT, AC, ID. The rest is the kernel's or is not visible.
pub const FLAGS: u64 = 0x8d5 | 1 << 10 | 1 << 14 | 1 << 18 | 1 << 21;
pub const ARITHMETIC: u64 = 0x8d5;

/// How a sequence ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// `int3`: where sequences end.
    Trap,
    Exception {
        vector: u64,
        error: u64,
        cr2: u64,
    },
    /// Not comparable: the guest's hypervisor decides.
    Privileged,
    /// It never came back, or took the oracle with it.
    Lost,
    /// The engine gave up.
    Failed(&'static str),
    /// Some other exit.
    Other(u64),
}

/// What a sequence left.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub end: End,
    pub state: CpuState,
    pub memory: Box<[u8]>,
}

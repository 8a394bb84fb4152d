//! The signal frame of a parked runner: the registers of guest user code.
//!
//! Source: Linux arch/x86/include/uapi/asm/sigcontext.h, ucontext.h. A *frame* here is `struct ucontext` and the extended
//! state that it points to, copied out of the shared pages. All of it is guest-controlled when it comes back.

use ring3_engine::{Regs, rflags};

use crate::dispatch::xstate::{AVX, IMAGE_BYTES, MXCSR_AT, MXCSR_DEFAULT, SSE, X87, XMM_AT, XSTATE_BV_AT, YMM_HIGH_AT};

/// Bytes of `struct ucontext` up to and with the signal mask.
pub const UCONTEXT_BYTES: usize = 304;
/// `gregs` in the order of [`Regs::gpr`].
const GPR_AT: [usize; 16] = [144, 152, 136, 128, 160, 120, 112, 104, 40, 48, 56, 64, 72, 80, 88, 96];
const RIP_AT: usize = 168;
const RFLAGS_AT: usize = 176;
const CS_AT: usize = 184;
const ERROR_AT: usize = 192;
const TRAP_AT: usize = 200;
const CR2_AT: usize = 216;
/// Pointer to the extended state.
pub const FPSTATE_AT: usize = 224;

/// End of the XMM registers in an image.
const SSE_END: usize = XMM_AT + 16 * 16;
/// RFLAGS bits that user code may set.
const USER_FLAGS: u64 = rflags::ARITHMETIC | rflags::DF | rflags::TF | rflags::NT | rflags::AC | rflags::ID;

/// A copy of the frame: `ucontext`, then the standard XSAVE image.
#[derive(Clone, Debug)]
pub struct Frame {
    pub ucontext: [u8; UCONTEXT_BYTES],
    pub xsave: [u8; IMAGE_BYTES],
}

impl Frame {
    fn word(&self, at: usize) -> u64 {
        self.ucontext.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    fn set_word(&mut self, at: usize, value: u64) {
        if let Some(bytes) = self.ucontext.get_mut(at..at + 8) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Where the kernel put the extended state, in the runner's address space.
    pub fn fpstate(&self) -> u64 {
        self.word(FPSTATE_AT)
    }

    /// CPU exception vector of the signal.
    pub fn trap(&self) -> u64 {
        self.word(TRAP_AT)
    }

    pub fn error_code(&self) -> u64 {
        self.word(ERROR_AT)
    }

    pub fn cr2(&self) -> u64 {
        self.word(CR2_AT)
    }

    pub fn rip(&self) -> u64 {
        self.word(RIP_AT)
    }

    pub fn rflags(&self) -> u64 {
        self.word(RFLAGS_AT)
    }

    pub fn cs(&self) -> u16 {
        self.word(CS_AT) as u16
    }

    /// Makes the frame return to these registers. `xsave` is a standard image of [`IMAGE_BYTES`].
    pub fn load(&mut self, regs: &Regs, xsave: &[u8]) {
        for (at, &value) in GPR_AT.into_iter().zip(&regs.gpr) {
            self.set_word(at, value);
        }
        self.set_word(RIP_AT, regs.rip);
        self.set_word(RFLAGS_AT, regs.rflags & USER_FLAGS | rflags::IF | rflags::FIXED);
        if let (Some(legacy), Some(rest)) = (xsave.get(..SSE_END), xsave.get(XSTATE_BV_AT..)) {
            // Between the two are the kernel's own words, which say how large the image is.
            self.xsave[..SSE_END].copy_from_slice(legacy);
            let len = rest.len().min(IMAGE_BYTES - XSTATE_BV_AT);
            self.xsave[XSTATE_BV_AT..XSTATE_BV_AT + len].copy_from_slice(&rest[..len]);
            let components = self.components() & self.host_components();
            self.xsave[XSTATE_BV_AT..XSTATE_BV_AT + 8].copy_from_slice(&components.to_le_bytes());
        }
    }

    /// Takes the general registers and the flags that user code may set.
    pub fn store(&self, regs: &mut Regs) {
        for (at, value) in GPR_AT.into_iter().zip(&mut regs.gpr) {
            *value = self.word(at);
        }
        regs.rip = self.rip();
        regs.rflags = regs.rflags & !USER_FLAGS | self.rflags() & USER_FLAGS;
    }

    /// Whether the x87 state is other than initial.
    pub fn uses_x87(&self) -> bool {
        self.components() & X87 != 0
    }

    fn components(&self) -> u64 {
        self.xsave_word(XSTATE_BV_AT)
    }

    /// What the kernel saves and restores, from its words in the image (`struct _fpx_sw_bytes`).
    fn host_components(&self) -> u64 {
        self.xsave_word(SSE_END + 56)
    }

    fn xsave_word(&self, at: usize) -> u64 {
        self.xsave.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }

    /// Writes out what the header says is initial.
    pub fn complete_xstate(&mut self) {
        let components = self.components();
        if components & SSE == 0 {
            self.xsave[XMM_AT..SSE_END].fill(0);
            if components & AVX == 0 {
                self.xsave[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
            }
        }
        if components & AVX == 0 {
            self.xsave[YMM_HIGH_AT..].fill(0);
        }
    }
}

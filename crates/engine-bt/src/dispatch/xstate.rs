//! Extended state (x87, SSE, AVX) between runs, and its XSAVE image.
//!
//! Between runs the vector registers are in `State::ymm` and MXCSR in `State::mxcsr`. The x87 part stays in the CPU
//! (`x87_live`) until somebody else may use it or wants to see it: `park` brings it to `State::x87`.

use ring3_engine::Regs;

use super::BtVcpu;
use super::state_unsafe::save_x87;

/// Length of a standard-format image with x87, SSE and AVX. Source: Intel SDM vol. 1, "XSAVE Area".
pub const IMAGE_BYTES: usize = 832;
/// Component bits.
pub const X87: u64 = 1;
pub const SSE: u64 = 2;
pub const AVX: u64 = 4;
/// MXCSR bits that may be set.
pub const MXCSR_MASK: u32 = 0xffff;
/// MXCSR after reset.
pub const MXCSR_DEFAULT: u32 = 0x1f80;

/// Offsets in an image. Source: Intel SDM vol. 1, "XSAVE Area".
pub const MXCSR_AT: usize = 24;
pub const XMM_AT: usize = 160;
pub const XSTATE_BV_AT: usize = 512;
pub const YMM_HIGH_AT: usize = 576;

/// Registers, flags and vectors before a step, to be put back if it is refused.
#[derive(Debug)]
pub struct Snapshot {
    regs: Regs,
    flags: u16,
    direction: u16,
    ymm: [[u8; 32]; 16],
}

impl BtVcpu {
    pub(super) fn snapshot(&self) -> Snapshot {
        let state = self.state();
        Snapshot { regs: state.regs.clone(), flags: state.flags, direction: state.direction, ymm: state.ymm }
    }

    pub(super) fn restore(&mut self, snapshot: Snapshot) {
        let state = self.state_mut();
        state.regs = snapshot.regs;
        state.flags = snapshot.flags;
        state.direction = snapshot.direction;
        state.ymm = snapshot.ymm;
    }

    /// Brings the x87 state from the CPU to memory.
    pub(crate) fn save_x87(&mut self) {
        save_x87(self.state_ptr());
    }

    /// Initial state of every component.
    pub(super) fn reset_xstate(&mut self) {
        let state = self.state_mut();
        state.ymm = [[0; 32]; 16];
        state.mxcsr = MXCSR_DEFAULT;
        reset_x87(state);
    }

    /// Legacy x87 part (160 bytes) with the instruction and data pointers cleared: they would show where translated
    /// code lies.
    pub(crate) fn x87_image(&mut self) -> [u8; 160] {
        self.save_x87();
        let mut image = [0u8; 160];
        if let Some(source) = self.state().x87.0.get(..160) {
            image.copy_from_slice(source);
        }
        image[8..24].fill(0);
        image[MXCSR_AT..32].fill(0);
        image
    }

    /// Loads the x87 part of an image.
    pub(crate) fn set_x87_image(&mut self, image: &[u8]) {
        self.save_x87();
        let state = self.state_mut();
        let len = image.len().min(160);
        if let (Some(to), Some(from)) = (state.x87.0.get_mut(..len), image.get(..len)) {
            to.copy_from_slice(from);
        }
        normalise_x87(&mut state.x87.0);
        // FXRSTOR refuses reserved MXCSR bits; ours is loaded apart.
        if let Some(field) = state.x87.0.get_mut(MXCSR_AT..MXCSR_AT + 4) {
            field.copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
        }
        state.x87_used = 1;
    }

    pub(crate) fn reset_x87_state(&mut self) {
        self.save_x87();
        reset_x87(self.state_mut());
    }

    /// Completes `self.image`.
    pub(crate) fn build_image(&mut self) {
        let x87 = self.x87_image();
        let (ymm, mxcsr) = (self.state().ymm, self.state().mxcsr);
        let image = &mut self.image;
        image.fill(0);
        image[..160].copy_from_slice(&x87);
        image[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&mxcsr.to_le_bytes());
        image[MXCSR_AT + 4..MXCSR_AT + 8].copy_from_slice(&MXCSR_MASK.to_le_bytes());
        for (index, register) in ymm.iter().enumerate() {
            let (low, high) = register.split_at(16);
            image[XMM_AT + 16 * index..][..16].copy_from_slice(low);
            image[YMM_HIGH_AT + 16 * index..][..16].copy_from_slice(high);
        }
        image[XSTATE_BV_AT] = (X87 | SSE | AVX) as u8;
    }

    /// Takes state from a standard image, as much as is there.
    pub(crate) fn load_image(&mut self, image: &[u8]) {
        if let Some(x87) = image.get(..160) {
            self.set_x87_image(x87);
        }
        let state = self.state_mut();
        if let Some(Ok(mxcsr)) = image.get(MXCSR_AT..MXCSR_AT + 4).map(TryInto::try_into) {
            state.mxcsr = u32::from_le_bytes(mxcsr) & MXCSR_MASK;
        }
        for (index, register) in state.ymm.iter_mut().enumerate() {
            let (low, high) = register.split_at_mut(16);
            if let Some(from) = image.get(XMM_AT + 16 * index..XMM_AT + 16 * index + 16) {
                low.copy_from_slice(from);
            }
            if let Some(from) = image.get(YMM_HIGH_AT + 16 * index..YMM_HIGH_AT + 16 * index + 16) {
                high.copy_from_slice(from);
            }
        }
    }
}

/// What FXRSTOR makes of reserved and derived bits: it is not certain to see the image before the guest does.
fn normalise_x87(image: &mut [u8; 512]) {
    let control = u16::from_le_bytes([image[0], image[1]]) & 0x1f3f | 0x40;
    let mut status = u16::from_le_bytes([image[2], image[3]]) & 0x7f7f;
    if status & !control & 0x3f != 0 {
        status |= 0x8080;
    }
    image[..2].copy_from_slice(&control.to_le_bytes());
    image[2..4].copy_from_slice(&status.to_le_bytes());
    for register in image[32..160].chunks_exact_mut(16) {
        register[10..].fill(0);
    }
}

fn reset_x87(state: &mut crate::state::State) {
    state.x87.0.fill(0);
    // FCW 0x37f, everything empty; MXCSR as FXRSTOR accepts it.
    state.x87.0[0] = 0x7f;
    state.x87.0[1] = 0x03;
    state.x87.0[MXCSR_AT..MXCSR_AT + 4].copy_from_slice(&MXCSR_DEFAULT.to_le_bytes());
    state.x87_used = 0;
}

//! 32-bit code (compatibility mode), and the other variants of code, as the run loop sees them.

use ring3_engine::CodeSize;

use super::vcpu::BtVcpu;
use crate::translate::Variant;

impl BtVcpu {
    /// Cuts an address to what the size of the code can reach.
    pub(crate) fn cut_address(&self, address: u64) -> u64 {
        if self.code_size() == CodeSize::Bits32 { address & 0xffff_ffff } else { address }
    }

    /// What the code that runs now depends on.
    pub(super) fn variant(&self) -> Variant {
        Variant {
            mode: self.current_mode(),
            size: self.code_size(),
            fpu_off: self.is_fpu_off(),
            avx_off: self.is_avx_off(),
            guards: self.guards,
        }
    }

    /// Before the guest is entered: a jump cache holds code of one variant only, and 32-bit code finds the upper halves of
    /// its registers clear. It then keeps them so: translated code may use all 64 bits of a register.
    pub(super) fn prepare_variant(&mut self) {
        let (mode, variant) = (self.mode_index(), self.variant());
        if self.jump_variant[mode] != variant {
            self.jump_variant[mode] = variant;
            if mode == 0 { self.forget_code() } else { self.forget_user_code() }
        }
        if variant.size == CodeSize::Bits32 {
            let regs = &mut self.state_mut().regs;
            regs.rip &= 0xffff_ffff;
            regs.gpr.iter_mut().take(8).for_each(|register| *register &= 0xffff_ffff);
        }
    }
}

//! 32-bit code (compatibility mode) as the run loop sees it.

use ring3_engine::CodeSize;

use super::vcpu::BtVcpu;

impl BtVcpu {
    /// Cuts an address to what the size of the code can reach.
    pub(crate) fn cut_address(&self, address: u64) -> u64 {
        if self.code_size() == CodeSize::Bits32 { address & 0xffff_ffff } else { address }
    }

    /// Before the guest is entered: a jump cache holds code of one size only, and 32-bit code finds the upper halves of
    /// its registers clear. It then keeps them so: translated code may use all 64 bits of a register.
    pub(super) fn prepare_code_size(&mut self) {
        let (mode, size) = (self.mode_index(), self.code_size());
        if self.jump_code[mode] != size {
            self.jump_code[mode] = size;
            if mode == 0 { self.forget_code() } else { self.forget_user_code() }
        }
        if size == CodeSize::Bits32 {
            let regs = &mut self.state_mut().regs;
            regs.rip &= 0xffff_ffff;
            regs.gpr.iter_mut().take(8).for_each(|register| *register &= 0xffff_ffff);
        }
    }
}

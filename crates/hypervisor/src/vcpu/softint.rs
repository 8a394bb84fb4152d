//! `int n`, `int3`, `into`: allowed by the DPL that the guest gave the vector.

use ring3_abi::xen::VMASST_TYPE_architectural_iopl;
use ring3_engine::vector;

use super::bounce::{Running, Undeliverable};

const LINUX_SYSCALL: u8 = 0x80;

impl Running<'_> {
    /// Handles `Exit::SoftwareInterrupt`; RIP is after the instruction.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn software_interrupt(&mut self, number: u8) -> Result<(), Undeliverable> {
        // Vectors 3 and 4 are open to ring 3 in the hypervisor's own table, so they reach the guest unchecked.
        if number == vector::BP || number == vector::OF {
            return self.inject_trap(number);
        }
        let trap = self.state.traps[usize::from(number)];
        let needed = match (self.state.is_kernel(), self.domain.has_assist(VMASST_TYPE_architectural_iopl)) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 3,
        };
        // Xen takes this vector past its checks.
        let is_open = number == LINUX_SYSCALL || trap.flags & 3 >= needed;
        if trap.address != 0 && is_open {
            return self.inject_trap(number);
        }
        // A fault: back to the two bytes of `int n`.
        let regs = self.state.cpu.regs_mut();
        regs.rip = regs.rip.wrapping_sub(2);
        self.inject_gp((u32::from(number) << 3) | 2)
    }
}

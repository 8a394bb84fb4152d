//! Debug registers, what they arm, and the debug exception.
//! Sources: Intel SDM vol. 3, "Debug Registers"; xen/include/public/arch-x86/xen.h for what a PV guest may set.

use ring3_abi::errno;
use ring3_engine::{Breakpoint, BreakpointKind, NR_BREAKPOINTS, dr6, rflags, vector};

use super::VcpuState;
use super::bounce::{Running, Undeliverable};
use crate::memory::{is_canonical, is_reserved};

pub const DR6_DEFAULT: u64 = 0xffff_0ff0;
pub const DR7_DEFAULT: u64 = 0x400;
/// DR7: writing to debug registers is a debug exception. Refused.
const DR7_GENERAL_DETECT: u64 = 1 << 13;
/// R/W field of DR7: port I/O, if CR4.DE is set.
const RW_IO: u64 = 2;
const CR4_DE: u64 = 1 << 3;

/// One breakpoint as DR7 describes it.
#[derive(Clone, Copy, Debug)]
struct Control {
    is_enabled: bool,
    rw: u64,
    len: u8,
}

impl Control {
    fn of(dr7: u64, number: usize) -> Self {
        const LENGTHS: [u8; 4] = [1, 2, 8, 4];
        let field = dr7 >> (16 + 4 * number);
        let len = LENGTHS.get((field >> 2 & 3) as usize).copied().unwrap_or(1);
        Self { is_enabled: dr7 >> (2 * number) & 3 != 0, rw: field & 3, len }
    }
}

impl VcpuState {
    /// Debug register `index`, as `get_debugreg` and `mov` read it.
    ///
    /// # Errors
    /// -ENODEV for a register that there is not.
    pub fn get_debugreg(&self, index: usize) -> Result<u64, i64> {
        let index = if matches!(index, 4 | 5) { index + 2 } else { index };
        self.debugreg.get(index).copied().ok_or(errno::ENODEV)
    }

    /// Sets a debug register; breakpoints are armed at once.
    ///
    /// # Errors
    /// -EPERM for addresses that are the hypervisor's, general detect, and I/O breakpoints without CR4.DE; -EINVAL for
    /// reserved bits, -ENODEV for a register that there is not.
    pub fn set_debugreg(&mut self, index: usize, value: u64) -> Result<(), i64> {
        let value = match index {
            0..=3 if !is_canonical(value) || is_reserved(value) => return Err(errno::EPERM),
            0..=3 => value,
            4 | 6 => {
                if value >> 32 != 0 {
                    return Err(errno::EINVAL);
                }
                (value & 0xe00f) | DR6_DEFAULT
            }
            5 | 7 => {
                if value >> 32 != 0 {
                    return Err(errno::EINVAL);
                }
                if value & DR7_GENERAL_DETECT != 0 {
                    return Err(errno::EPERM);
                }
                let value = (value & 0xffff_03ff) | DR7_DEFAULT;
                let is_active = value & 0xff != 0;
                let has_io = (0..NR_BREAKPOINTS).any(|n| Control::of(value, n).rw == RW_IO);
                if is_active && has_io && self.cr4 & CR4_DE == 0 {
                    return Err(errno::EPERM);
                }
                value
            }
            _ => return Err(errno::ENODEV),
        };
        let index = if matches!(index, 4 | 5) { index + 2 } else { index };
        if let Some(slot) = self.debugreg.get_mut(index) {
            *slot = value;
        }
        if index != 6 {
            self.arm_breakpoints();
        }
        Ok(())
    }

    fn control(&self, number: usize) -> Option<(u64, Control)> {
        let (&va, &dr7) = (self.debugreg.get(number)?, self.debugreg.get(7)?);
        Some((va, Control::of(dr7, number))).filter(|(_, control)| control.is_enabled)
    }

    fn arm_breakpoints(&mut self) {
        let armed = std::array::from_fn(|number| {
            let (va, control) = self.control(number)?;
            let kind = match control.rw {
                0 => return Some(Breakpoint { va, len: 1, kind: BreakpointKind::Execute }),
                1 => BreakpointKind::Write,
                3 => BreakpointKind::Access,
                _ => return None,
            };
            Some(Breakpoint { va: va & !(u64::from(control.len) - 1), len: control.len, kind })
        });
        self.cpu.set_breakpoints(&armed);
    }

    /// Bits of DR6 for breakpoints on the ports `port` to `port + len - 1`.
    pub fn io_hits(&self, port: u64, len: u64) -> u64 {
        (0..NR_BREAKPOINTS).fold(0, |hits, number| {
            let Some((va, control)) = self.control(number).filter(|(_, c)| c.rw == RW_IO) else { return hits };
            let start = va & !(u64::from(control.len) - 1);
            let is_hit = start < port + len && port < start + u64::from(control.len);
            if is_hit { hits | dr6::B0 << number } else { hits }
        })
    }

    /// Sets or clears CR0.TS.
    pub fn set_task_switched(&mut self, is_set: bool) {
        self.cr0 = if is_set { self.cr0 | super::privileged::CR0_TS } else { self.cr0 & !super::privileged::CR0_TS };
        self.cpu.set_task_switched(is_set);
    }
}

impl Running<'_> {
    /// Delivers #DB with `hits` added to DR6. RIP is where the guest goes on.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn debug_exception(&mut self, hits: u64) -> Result<(), Undeliverable> {
        self.state.debugreg[6] |= hits;
        self.inject_trap(vector::DB)
    }

    /// An instruction was emulated, or a hypercall is done: delivers the trap that it deserves, for `hits` or single step.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn instruction_done(&mut self, hits: u64, was_stepping: bool) -> Result<(), Undeliverable> {
        let hits = hits | if was_stepping { dr6::BS } else { 0 };
        if hits == 0 { Ok(()) } else { self.debug_exception(hits) }
    }

    /// Whether RFLAGS.TF is set.
    pub fn is_stepping(&self) -> bool {
        self.state.cpu.regs().rflags & rflags::TF != 0
    }
}

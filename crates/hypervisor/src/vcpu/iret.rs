//! The `iret` hypercall: the only way from a PV kernel to its users, and back into itself.
//! Source: xen/include/public/arch-x86/xen-x86_64.h, struct iret_context.

use ring3_abi::arch_x86::{VGCF_in_syscall, iret_context};
use ring3_abi::xen::VMASST_TYPE_architectural_iopl;
use ring3_engine::{CodeSize, GprName, GuestMode, rflags};

use super::bounce::{Running, Undeliverable};
use super::descriptor::{load_code, load_stack};
use crate::memory::is_canonical;

impl Running<'_> {
    /// Loads the frame at RSP.
    ///
    /// # Errors
    /// [`Undeliverable`] when the frame cannot be read, or there are no user page tables to return to.
    pub fn iret(&mut self) -> Result<(), Undeliverable> {
        let sp = self.state.cpu.regs().get(GprName::Rsp);
        let mut frame: iret_context = bytemuck::Zeroable::zeroed();
        if let Err(fault) = self.domain.memory.read(&self.state.space(), sp, bytemuck::bytes_of_mut(&mut frame)) {
            return Err(Undeliverable(
                format!("fault at {:#x} while reading the iret frame", fault.va),
                Some(fault.va),
            ));
        }
        let to_user = frame.cs & 3 == 3;
        if to_user && self.state.root(GuestMode::User).0 == 0 {
            return Err(Undeliverable("iret to user mode without user page tables".to_owned(), None));
        }
        if self.domain.has_assist(VMASST_TYPE_architectural_iopl) {
            self.state.iopl = ((frame.rflags >> 12) & 3) as u8;
        }
        let cs = (frame.cs & 0xffff) as u16 | 3;
        let ss = (frame.ss & 0xffff) as u16 | 3;
        let code = load_code(self.state, &self.domain.memory, cs);
        let is_loadable = code.is_ok()
            && load_stack(self.state, &self.domain.memory, ss).is_ok()
            && (code != Ok(CodeSize::Bits64) || is_canonical(frame.rip));

        let mode = if to_user { GuestMode::User } else { GuestMode::Kernel };
        self.state.set_mode(mode, code.unwrap_or(CodeSize::Bits64));
        let regs = self.state.cpu.regs_mut();
        regs.rip = frame.rip;
        regs.cs = cs;
        regs.ss = ss;
        regs.rflags = sanitize_flags(frame.rflags);
        regs.set(GprName::Rsp, frame.rsp);
        regs.set(GprName::Rax, frame.rax);
        if frame.flags & VGCF_in_syscall == 0 {
            regs.set(GprName::R11, frame.r11);
            regs.set(GprName::Rcx, frame.rcx);
        } else {
            // `sysret` leaves these two so.
            let (rip, flags) = (regs.rip, regs.rflags);
            regs.set(GprName::Rcx, rip);
            regs.set(GprName::R11, flags);
        }
        if code == Ok(CodeSize::Bits32) {
            regs.rip &= 0xffff_ffff;
        }
        self.vcpu.info.set_upcall_mask(frame.rflags & rflags::IF == 0);
        if is_loadable { Ok(()) } else { self.failsafe() }
    }
}

/// Flags as the CPU would run them at ring 3: IF on, IOPL 0, only architectural bits.
pub fn sanitize_flags(flags: u64) -> u64 {
    const GUEST: u64 = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::RF | rflags::AC | rflags::ID;
    (flags & GUEST) | rflags::IF | rflags::FIXED
}

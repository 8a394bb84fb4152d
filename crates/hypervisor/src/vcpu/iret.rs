//! The `iret` hypercall: the only way from a PV kernel to its users, and back into itself.
//! Source: xen/include/public/arch-x86/xen-x86_64.h, struct iret_context.

use ring3_abi::arch_x86::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64, VGCF_in_syscall, iret_context};
use ring3_abi::xen::VMASST_TYPE_architectural_iopl;
use ring3_engine::{CodeSize, GprName, GuestMode, Segment, SegmentName, rflags, vector};

use super::bounce::{Running, Undeliverable};
use super::descriptor::{LoadFault, is_null, load_code, load_stack};
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
        let mode = if to_user { GuestMode::User } else { GuestMode::Kernel };
        let is_sysret = frame.flags & VGCF_in_syscall != 0;
        let loaded = if is_sysret && is_canonical(frame.rip) {
            // `sysret` looks at no descriptor. Xen takes its 32-bit form for the flat 32-bit code segment.
            let is_32bit = (frame.cs & 0xffff) as u16 | 3 == FLAT_RING3_CS32;
            let (cs, code) = if is_32bit {
                (FLAT_RING3_CS32, Segment::FLAT_CODE32)
            } else {
                (FLAT_RING3_CS64, Segment::FLAT_CODE64)
            };
            (frame.cs, frame.ss) = (u64::from(cs), u64::from(FLAT_RING3_SS64));
            Ok((code, Segment::FLAT_DATA))
        } else {
            self.check_iret(&frame)
        };
        let (code, stack) = loaded.unwrap_or((Segment::FLAT_CODE64, Segment::FLAT_DATA));
        self.state.set_mode(mode, code.code_size());
        let regs = self.state.cpu.regs_mut();
        regs.segments[SegmentName::Cs as usize] = code;
        regs.segments[SegmentName::Ss as usize] = stack;
        regs.rip = if code.code_size().is_compat() { frame.rip & 0xffff_ffff } else { frame.rip };
        regs.cs = (frame.cs & 0xffff) as u16 | 3;
        regs.ss = (frame.ss & 0xffff) as u16 | 3;
        regs.rflags = sanitize_flags(frame.rflags);
        regs.set(GprName::Rsp, frame.rsp);
        regs.set(GprName::Rax, frame.rax);
        if is_sysret {
            // The instruction leaves these two so.
            let flags = regs.rflags;
            regs.set(GprName::Rcx, frame.rip);
            regs.set(GprName::R11, flags);
        } else {
            regs.set(GprName::R11, frame.r11);
            regs.set(GprName::Rcx, frame.rcx);
            // The CPU's own instruction, which leads outwards, leaves no null selector but zero.
            for selector in [&mut regs.ds, &mut regs.es, &mut regs.fs, &mut regs.gs] {
                *selector = if is_null(*selector) { 0 } else { *selector };
            }
        }
        self.vcpu.info.set_upcall_mask(frame.rflags & rflags::IF == 0);
        self.state.progress.note_iret();
        match loaded {
            Ok(_) => Ok(()),
            // As if the instruction at the target had faulted.
            Err(fault) => self.inject_at_iret(fault),
        }
    }

    /// What `iret` at ring 3 checks, in its order. What CS and SS keep if not.
    fn check_iret(&mut self, frame: &iret_context) -> Result<(Segment, Segment), LoadFault> {
        let (cs, ss) = ((frame.cs & 0xffff) as u16 | 3, (frame.ss & 0xffff) as u16 | 3);
        let code = load_code(self.state, self.domain, cs).map_err(|e| e.fault(cs, false))?;
        let stack = load_stack(self.state, self.domain, ss).map_err(|e| e.fault(ss, true))?;
        let is_inside = match code.code_size() {
            CodeSize::Bits64 => is_canonical(frame.rip),
            _ => frame.rip & 0xffff_ffff <= u64::from(code.limit),
        };
        if is_inside { Ok((code, stack)) } else { Err(LoadFault::Exception(vector::GP, 0)) }
    }
}

/// Flags as the CPU would run them at ring 3: IF on, IOPL 0, only architectural bits.
pub fn sanitize_flags(flags: u64) -> u64 {
    const GUEST: u64 = rflags::ARITHMETIC | rflags::TF | rflags::DF | rflags::NT | rflags::RF | rflags::AC | rflags::ID;
    (flags & GUEST) | rflags::IF | rflags::FIXED
}

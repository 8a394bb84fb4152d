//! Bounce frames: how exceptions, system calls, events and failures reach a PV guest kernel.
//!
//! Low to high: RCX, R11, [DS, ES, FS, GS of the failsafe callback], [error code], RIP, CS with the saved upcall mask
//! in bits 32 to 39, RFLAGS, RSP, SS. Source: docs of the PV ABI (xen/include/public/arch-x86/xen.h) and Linux
//! arch/x86/xen/xen-asm.S, the consumer.

use iced_x86::Register;
use ring3_abi::arch_x86::{FLAT_RING3_CS32, FLAT_RING3_CS64, FLAT_RING3_SS64};
use ring3_abi::xen::VMASST_TYPE_architectural_iopl;
use ring3_engine::{CodeSize, GprName, GuestMode, Segment, SegmentName, rflags, vector};

use super::descriptor::{LoadFault, is_null, load_stack};
use super::privileged::segment_name;
use super::{Vcpu, VcpuState};
use crate::domain::Domain;
use crate::hypervisor::Hypervisor;
use crate::memory::Fault;

/// What is to be bounced.
#[derive(Clone, Copy, Debug)]
pub struct Bounce {
    pub address: u64,
    pub error_code: Option<u32>,
    pub mask_events: bool,
    /// The data selectors are pushed too.
    pub is_failsafe: bool,
    /// RFLAGS.RF is pushed set: the instruction at RIP is to be executed again.
    pub is_fault: bool,
}

/// The vCPU cannot take it: the domain must crash, for this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Undeliverable(pub String, pub Option<u64>);

/// Who runs: everything that delivery and emulation need.
#[derive(Debug)]
pub struct Running<'a> {
    pub hv: &'a Hypervisor,
    pub domain: &'a Domain,
    pub vcpu: &'a Vcpu,
    pub state: &'a mut VcpuState,
}

impl Running<'_> {
    /// Pushes a frame on the guest kernel's stack and enters the handler.
    ///
    /// # Errors
    /// [`Undeliverable`] when there is no handler or the stack cannot be written.
    pub fn bounce(&mut self, bounce: Bounce, what: &str) -> Result<(), Undeliverable> {
        if bounce.address == 0 {
            return Err(Undeliverable(format!("no handler for {what}"), None));
        }
        let saved_mask = self.vcpu.info.is_upcall_masked();
        let was_kernel = self.state.is_kernel();
        let (stack, ss_new) = if was_kernel {
            (self.state.cpu.regs().get(GprName::Rsp), FLAT_RING3_SS64)
        } else {
            let kernel_ss = if self.state.kernel_ss == 0 { FLAT_RING3_SS64 } else { self.state.kernel_ss };
            (self.state.kernel_sp, kernel_ss)
        };
        let regs = self.state.cpu.regs();
        let mut cs = u64::from(regs.cs);
        if was_kernel {
            cs &= !3;
        }
        cs |= u64::from(saved_mask) << 32;
        let mut flags = regs.rflags & !(rflags::IF | rflags::IOPL);
        if bounce.is_fault {
            flags |= rflags::RF;
        }
        if !saved_mask {
            flags |= rflags::IF;
        }
        if self.domain.has_assist(VMASST_TYPE_architectural_iopl) {
            flags |= u64::from(self.state.iopl) << 12;
        }
        let mut words = [0u64; 12];
        let mut nr = 0usize;
        let mut push = |word: u64| {
            if let Some(slot) = words.get_mut(nr) {
                *slot = word;
                nr += 1;
            }
        };
        push(regs.get(GprName::Rcx));
        push(regs.get(GprName::R11));
        if bounce.is_failsafe {
            for selector in [regs.ds, regs.es, regs.fs, regs.gs] {
                push(u64::from(selector));
            }
        }
        if let Some(code) = bounce.error_code {
            push(u64::from(code));
        }
        push(regs.rip);
        push(cs);
        push(flags);
        push(regs.get(GprName::Rsp));
        push(u64::from(regs.ss));

        let sp = (stack & !15).wrapping_sub(8 * nr as u64);
        let space = self.state.kernel_space();
        let frame = words.get(..nr).unwrap_or_default();
        if let Err(Fault { va, .. }) = self.domain.memory.write(&space, sp, bytemuck::cast_slice(frame)) {
            let text = format!("fault at {va:#x} while pushing the bounce frame for {what}");
            return Err(Undeliverable(text, Some(va)));
        }
        if bounce.mask_events {
            self.vcpu.info.set_upcall_mask(true);
        }
        self.state.set_mode(GuestMode::Kernel, CodeSize::Bits64);
        let regs = self.state.cpu.regs_mut();
        regs.rflags &= !(rflags::AC | rflags::VM | rflags::RF | rflags::NT | rflags::TF | rflags::IOPL);
        regs.rflags |= rflags::IF | rflags::FIXED;
        regs.set(GprName::Rsp, sp);
        regs.rip = bounce.address;
        self.state.load_flat();
        if ss_new != FLAT_RING3_SS64 {
            let stack = load_stack(self.state, self.domain, ss_new).unwrap_or(Segment::FLAT_DATA);
            let regs = self.state.cpu.regs_mut();
            (regs.ss, regs.segments[SegmentName::Ss as usize]) = (ss_new, stack);
        }
        Ok(())
    }

    /// Delivers exception `number`, a fault, through the trap table.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn inject(&mut self, number: u8, error_code: Option<u32>) -> Result<(), Undeliverable> {
        self.bounce_by_table(number, error_code, true)
    }

    /// Delivers an exception of the `iret` by which the hypervisor returns: what it was to load is in place.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn inject_at_iret(&mut self, fault: LoadFault) -> Result<(), Undeliverable> {
        match fault {
            LoadFault::Exception(number, error_code) => self.bounce_by_table(number, Some(error_code), false),
            LoadFault::Page(va) => self.bounce_page_fault(va, 0, false),
        }
    }

    /// Delivers exception or software interrupt `number`, a trap, or an NMI.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn inject_trap(&mut self, number: u8) -> Result<(), Undeliverable> {
        self.bounce_by_table(number, None, false)
    }

    fn bounce_by_table(&mut self, number: u8, error_code: Option<u32>, is_fault: bool) -> Result<(), Undeliverable> {
        let trap = self.state.traps[usize::from(number)];
        let mask_events = trap.flags & 4 != 0;
        let bounce = Bounce { address: trap.address, error_code, mask_events, is_failsafe: false, is_fault };
        self.bounce(bounce, exception_name(number))
    }

    /// Delivers a page fault: CR2, and the error code with U as the guest sees its own mode.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn inject_page_fault(&mut self, va: u64, error_code: u32) -> Result<(), Undeliverable> {
        self.bounce_page_fault(va, error_code, true)
    }

    fn bounce_page_fault(&mut self, va: u64, error_code: u32, is_fault: bool) -> Result<(), Undeliverable> {
        const PF_USER: u32 = 1 << 2;
        let code = if self.state.is_kernel() { error_code & !PF_USER } else { error_code | PF_USER };
        self.state.cr2 = va;
        self.vcpu.info.set_cr2(va);
        let trap = self.state.traps[usize::from(vector::PF)];
        let bounce = Bounce {
            address: trap.address,
            error_code: Some(code),
            mask_events: trap.flags & 4 != 0,
            is_failsafe: false,
            is_fault,
        };
        self.bounce(bounce, "a page fault").map_err(|Undeliverable(text, at)| Undeliverable(text, at.or(Some(va))))
    }

    /// Delivers #GP with an error code.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn inject_gp(&mut self, error_code: u32) -> Result<(), Undeliverable> {
        self.inject(vector::GP, Some(error_code))
    }

    /// Loads the data selectors that a new context brought. One that cannot be loaded becomes null, and the failsafe
    /// callback is told of all as they were wanted.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn load_segments(&mut self) -> Result<(), Undeliverable> {
        let wanted = self.state.cpu.regs().clone();
        let mut is_good = true;
        for (register, selector) in
            [(Register::DS, wanted.ds), (Register::ES, wanted.es), (Register::FS, wanted.fs), (Register::GS, wanted.gs)]
        {
            // Null ones keep the base that the context gave.
            if is_null(selector) {
                self.state.cpu.regs_mut().segments[segment_name(register) as usize] = Segment::NULL;
            } else if self.load_segment(register, selector).is_err() {
                is_good = false;
                let _ = self.load_segment(register, 0);
            }
        }
        if is_good {
            return Ok(());
        }
        let loaded = self.state.cpu.regs().clone();
        let regs = self.state.cpu.regs_mut();
        (regs.ds, regs.es, regs.fs, regs.gs) = (wanted.ds, wanted.es, wanted.fs, wanted.gs);
        let result = self.failsafe();
        let regs = self.state.cpu.regs_mut();
        (regs.ds, regs.es, regs.fs, regs.gs) = (loaded.ds, loaded.es, loaded.fs, loaded.gs);
        result
    }

    /// Enters the failsafe callback: a selector could not be loaded on the way into the guest.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn failsafe(&mut self) -> Result<(), Undeliverable> {
        let callback = self.state.failsafe;
        self.bounce(
            Bounce {
                address: callback.address,
                error_code: None,
                mask_events: callback.mask_events,
                is_failsafe: true,
                is_fault: false,
            },
            "the failsafe callback",
        )
    }

    /// Bounces a `syscall` of a guest user.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn syscall(&mut self) -> Result<(), Undeliverable> {
        let is_64bit = self.state.cpu.code_size() == CodeSize::Bits64;
        let callback = if is_64bit { self.state.syscall } else { self.state.syscall32 };
        // In compatibility mode only AMD's CPUs know it.
        if callback.address == 0 || (!is_64bit && !self.hv.cpuid.is_amd()) {
            // Xen without a syscall32 callback injects #UD at the instruction; the 64-bit one has no such check.
            let regs = self.state.cpu.regs_mut();
            regs.rip = regs.rip.wrapping_sub(2);
            return self.inject(vector::UD, None);
        }
        // The instruction forgets the selectors it was executed with: the frame has the flat ones.
        let regs = self.state.cpu.regs_mut();
        (regs.cs, regs.ss) = (if is_64bit { FLAT_RING3_CS64 } else { FLAT_RING3_CS32 }, FLAT_RING3_SS64);
        self.bounce(
            Bounce {
                address: callback.address,
                error_code: None,
                mask_events: callback.mask_events,
                is_failsafe: false,
                is_fault: false,
            },
            "the syscall callback",
        )?;
        // Kernels rely on it, as where they set the instruction's mask of flags themselves.
        self.state.cpu.regs_mut().rflags &= !rflags::DF;
        Ok(())
    }

    /// Delivers what is pending: an NMI, else an event upcall, unless that is held back. Called before every entry to the
    /// guest.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn deliver_pending(&mut self) -> Result<(), Undeliverable> {
        use std::sync::atomic::Ordering;
        if self.vcpu.nmi_pending.load(Ordering::Relaxed) && self.state.traps[2].address != 0 {
            self.vcpu.nmi_pending.store(false, Ordering::Relaxed);
            return self.inject_trap(vector::NMI);
        }
        if !self.vcpu.info.is_upcall_due() {
            self.state.progress.note_quiet();
            return Ok(());
        }
        let regs = self.state.cpu.regs();
        let at = (regs.rip, regs.get(GprName::Rsp));
        if self.state.progress.holds_back(at) {
            return Ok(());
        }
        let address = self.state.event_callback;
        let bounce = Bounce { address, error_code: None, mask_events: true, is_failsafe: false, is_fault: false };
        self.bounce(bounce, "the event callback")
    }
}

/// Name of an exception, for reports.
pub fn exception_name(number: u8) -> &'static str {
    match number {
        vector::DE => "#DE",
        vector::DB => "#DB",
        vector::NMI => "NMI",
        vector::BP => "#BP",
        vector::OF => "#OF",
        vector::BR => "#BR",
        vector::UD => "#UD",
        vector::NM => "#NM",
        vector::NP => "#NP",
        vector::SS => "#SS",
        vector::GP => "#GP",
        vector::PF => "#PF",
        vector::MF => "#MF",
        vector::AC => "#AC",
        vector::XM => "#XM",
        _ => "vector",
    }
}

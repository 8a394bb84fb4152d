//! Emulation of what is not in the unprivileged ISA: decode at RIP, do as real Xen does for a PV guest, else #GP(0).
//!
//! Differs from Xen 4.17: `cpuid` always traps (as with CPUID faulting), so that one policy holds for users too.

#![allow(clippy::cast_possible_truncation, reason = "instructions take the low part of a register")]

mod msr;
mod operand;
mod port;
mod registers;
mod segment;

pub use msr::Msrs;
pub use operand::segment_name;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};
use ring3_engine::{CodeSize, GprName, rflags, vector};

use super::bounce::{Running, Undeliverable};
use crate::cpuid::{self, Policy, Viewer};
use crate::memory::Fault;

/// CR0 as a PV guest reads it: PG, AM, WP, NE, ET, MP, PE.
pub const CR0_FIXED: u64 = 0x8005_0033;
/// TS in CR0.
pub const CR0_TS: u64 = 1 << 3;
/// CR4 as every PV guest reads it: PAE, MCE, OSFXSR, OSXMMEXCPT.
pub const CR4_FIXED: u64 = (1 << 5) | (1 << 6) | (1 << 9) | (1 << 10);
pub const CR4_TSD: u64 = 1 << 2;
pub const CR4_FSGSBASE: u64 = 1 << 16;
pub const CR4_OSXSAVE: u64 = 1 << 18;
const CR4_DE: u64 = 1 << 3;
/// CR4 bits that a guest may change, if its policy shows what they are for.
pub const CR4_GUEST: u64 = CR4_TSD | CR4_DE | CR4_FSGSBASE | CR4_OSXSAVE;

/// CR4 after a guest has asked for a value: what it may not change is passed over.
pub const fn guest_cr4(value: u64, choice: u64) -> u64 {
    CR4_FIXED | (value & choice)
}

/// The bits of CR4 that a guest may change by its policy.
pub fn cr4_choice(policy: &Policy) -> u64 {
    let of_features =
        [(cpuid::TSC, CR4_TSD), (cpuid::DE, CR4_DE), (cpuid::FSGSBASE, CR4_FSGSBASE), (cpuid::XSAVE, CR4_OSXSAVE)];
    of_features.iter().filter(|(feature, _)| policy.has(*feature)).fold(0, |all, (_, bit)| all | bit) & CR4_GUEST
}

/// How an emulation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Go on after the instruction.
    Next,
    /// RIP is set.
    Jumped,
    /// A handler of the guest kernel was entered.
    Entered,
    /// As `Next`, and no debug exception comes before the next instruction is done (SS was loaded).
    NextQuiet,
    /// Stopped half way, because the pCPU is wanted: the guest executes the instruction again.
    Again,
    /// The instruction faults; RIP stays.
    Fault(u8, Option<u32>),
    /// A memory operand faults.
    Page(Fault, bool),
}

/// #GP(0).
pub const GP0: Done = Done::Fault(vector::GP, Some(0));

/// Decoded instruction and the mode it ran in.
#[derive(Clone, Copy, Debug)]
pub struct Insn {
    pub insn: Instruction,
    pub code: CodeSize,
}

impl Running<'_> {
    /// Size of the code that CS selects.
    pub(crate) fn code_size(&self) -> CodeSize {
        self.state.cpu.code_size()
    }

    /// Handles `Exit::Privileged`.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn privileged(&mut self) -> Result<(), Undeliverable> {
        let code = self.code_size();
        let rip = self.state.cpu.regs().rip;
        let at = self.state.cpu.regs().code_address(code, rip);
        let mut bytes = [0u8; 15];
        let fetched = match self.domain.memory.fetch(&self.state.space(), at, &mut bytes) {
            Ok(fetched) => fetched,
            Err(Fault { va, error_code }) => return self.inject_page_fault(va, error_code),
        };
        let window = bytes.get(..fetched).unwrap_or_default();
        let insn = Decoder::with_ip(code.bits(), window, rip, DecoderOptions::NONE).decode();
        if insn.is_invalid() {
            if fetched < bytes.len() {
                let va = at.wrapping_add(fetched as u64);
                return self.inject_page_fault(va, ring3_engine::PF_FETCH);
            }
            return self.inject(vector::UD, None);
        }
        let was_stepping = self.is_stepping();
        let done = self.emulate(&Insn { insn, code });
        let hits = std::mem::take(&mut self.state.io_hits);
        match done {
            Done::Next | Done::NextQuiet => {
                let next = rip.wrapping_add(insn.len() as u64);
                let regs = self.state.cpu.regs_mut();
                regs.rip = if code.is_compat() { next & 0xffff_ffff } else { next };
                regs.rflags &= !rflags::RF;
                if done == Done::NextQuiet {
                    // Nor does a breakpoint on the execution of that instruction.
                    regs.rflags |= rflags::RF;
                    return Ok(());
                }
                self.instruction_done(hits, was_stepping)
            }
            Done::Jumped => self.instruction_done(hits, was_stepping),
            Done::Entered | Done::Again => Ok(()),
            Done::Fault(number, error_code) => self.inject(number, error_code),
            Done::Page(fault, is_write) => {
                let code = if is_write { fault.error_code | ring3_engine::PF_WRITE } else { fault.error_code };
                if crate::memory::is_canonical(fault.va) {
                    self.inject_page_fault(fault.va, code)
                } else {
                    self.inject_gp(0)
                }
            }
        }
    }

    fn emulate(&mut self, insn: &Insn) -> Done {
        let is_kernel = self.state.is_kernel();
        match insn.insn.mnemonic() {
            Mnemonic::Cpuid if !is_kernel && self.state.msrs.cpuid_faulting => GP0,
            Mnemonic::Cpuid => {
                self.emulate_cpuid(false);
                Done::Next
            }
            Mnemonic::In | Mnemonic::Out => self.in_out(insn),
            Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd | Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd => {
                self.string_io(insn)
            }
            Mnemonic::Cli | Mnemonic::Sti if self.has_iopl() => Done::Next,
            Mnemonic::Wbinvd | Mnemonic::Wbnoinvd if is_kernel => Done::Next,
            Mnemonic::Clts if is_kernel => {
                self.state.set_task_switched(false);
                Done::Next
            }
            Mnemonic::Mov => self.mov_special(insn),
            Mnemonic::Rdmsr if is_kernel => self.rdmsr(),
            Mnemonic::Wrmsr if is_kernel => self.wrmsr(),
            Mnemonic::Xsetbv if self.state.cr4 & CR4_OSXSAVE == 0 => Done::Fault(vector::UD, None),
            Mnemonic::Xsetbv if is_kernel => self.xsetbv(),
            Mnemonic::Rdfsbase | Mnemonic::Rdgsbase | Mnemonic::Wrfsbase | Mnemonic::Wrgsbase => {
                Done::Fault(vector::UD, None)
            }
            Mnemonic::Rdtsc | Mnemonic::Rdtscp if !is_kernel && self.state.cr4 & CR4_TSD != 0 => GP0,
            Mnemonic::Rdtsc | Mnemonic::Rdtscp => {
                let tsc = self.domain.tsc.lock().read(&self.hv.clock);
                let regs = self.state.cpu.regs_mut();
                regs.set(GprName::Rax, tsc & 0xffff_ffff);
                regs.set(GprName::Rdx, tsc >> 32);
                if insn.insn.mnemonic() == Mnemonic::Rdtscp {
                    let aux = u64::from(regs.tsc_aux);
                    regs.set(GprName::Rcx, aux);
                }
                Done::Next
            }
            Mnemonic::Sgdt | Mnemonic::Sidt | Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Smsw => {
                self.store_system_register(insn)
            }
            Mnemonic::Lar | Mnemonic::Lsl | Mnemonic::Verr | Mnemonic::Verw => self.probe_descriptor(insn),
            Mnemonic::Pop | Mnemonic::Push => self.push_pop_segment(insn),
            Mnemonic::Lds | Mnemonic::Les | Mnemonic::Lfs | Mnemonic::Lgs | Mnemonic::Lss => {
                self.load_far_pointer(insn)
            }
            Mnemonic::Jmp | Mnemonic::Call => self.far_branch(insn),
            Mnemonic::Retf | Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => self.far_return(insn),
            Mnemonic::Sysenter => self.sysenter(),
            Mnemonic::Ud0
            | Mnemonic::Ud1
            | Mnemonic::Ud2
            | Mnemonic::Vmcall
            | Mnemonic::Vmmcall
            | Mnemonic::Sysexit => Done::Fault(vector::UD, None),
            _ => GP0,
        }
    }

    /// `cpuid` by the domain's policy. A kernel that forces it sees OSXSAVE before it sets that: Linux needs it so.
    pub(crate) fn emulate_cpuid(&mut self, is_forced: bool) {
        let is_osxsave = self.state.cr4 & CR4_OSXSAVE != 0 || (is_forced && self.state.is_kernel());
        let regs = self.state.cpu.regs();
        let (leaf, subleaf) = (regs.get(GprName::Rax) as u32, regs.get(GprName::Rcx) as u32);
        let viewer = Viewer { vcpu: self.vcpu.id, is_osxsave, xcr0: self.state.xcr0 };
        let policy = self.domain.policy();
        let [eax, ebx, ecx, edx] = policy.query(leaf, subleaf, &viewer, &self.hv.clock, &self.domain.tsc.lock());
        let regs = self.state.cpu.regs_mut();
        regs.set(GprName::Rax, u64::from(eax));
        regs.set(GprName::Rbx, u64::from(ebx));
        regs.set(GprName::Rcx, u64::from(ecx));
        regs.set(GprName::Rdx, u64::from(edx));
    }

    fn sysenter(&mut self) -> Done {
        // AMD's CPUs know it in legacy mode only.
        if self.hv.cpuid.is_amd() {
            return Done::Fault(vector::UD, None);
        }
        let callback = self.state.sysenter;
        if callback.address == 0 {
            return GP0;
        }
        let saved = self.state.cpu.regs().clone();
        let regs = self.state.cpu.regs_mut();
        // Hardware keeps neither; the guest's entry code knows.
        regs.rip = 0;
        (regs.cs, regs.ss) = (3, ring3_abi::arch_x86::FLAT_RING3_SS64);
        regs.set(GprName::Rsp, 0);
        let bounce = super::bounce::Bounce {
            address: callback.address,
            error_code: None,
            mask_events: callback.mask_events,
            is_failsafe: false,
            is_fault: false,
        };
        match self.bounce(bounce, "the sysenter callback") {
            Ok(()) => Done::Entered,
            Err(_) => {
                *self.state.cpu.regs_mut() = saved;
                GP0
            }
        }
    }
}

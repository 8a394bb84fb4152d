//! Control and debug registers, MSRs, XCR0.
//! Sources: Intel SDM vol. 3 and 4; AMD APM vol. 2; Linux arch/x86/xen/enlighten_pv.c, the consumer.

#![allow(clippy::cast_possible_truncation, reason = "instructions take the low part of a register")]

use iced_x86::Register;
use ring3_engine::{Flush, GprName, GuestMode};

use super::super::bounce::Running;
use super::operand::{get, set};
use super::{CR0_TS, CR4_INITIAL, Done, GP0, Insn};
use crate::memory::is_canonical;

const MSR_IA32_TSC: u32 = 0x10;
const MSR_APIC_BASE: u32 = 0x1b;
const MSR_IA32_UCODE_REV: u32 = 0x8b;
const MSR_PLATFORM_INFO: u32 = 0xce;
const MSR_MISC_FEATURES_ENABLES: u32 = 0x140;
const MSR_ARCH_CAPABILITIES: u32 = 0x10a;
const MSR_SPEC_CTRL: u32 = 0x48;
const MSR_MCG_CAP: u32 = 0x179;
const MSR_MCG_STATUS: u32 = 0x17a;
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const MSR_IA32_CR_PAT: u32 = 0x277;
const MSR_EFER: u32 = 0xc000_0080;
const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;
const MSR_TSC_AUX: u32 = 0xc000_0103;
const MSR_K8_HWCR: u32 = 0xc001_0015;
const MSR_AMD64_DE_CFG: u32 = 0xc001_1029;

/// The PAT that Xen programs; guests depend on reading it.
const PAT: u64 = 0x0000_0501_0007_0406;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;
/// AUTOIBRS, which the CPUID policy shows.
const EFER_AUTOIBRS: u64 = 1 << 21;
/// CR4 bits that a PV guest may change: TSD, DE, PCE, FSGSBASE, OSXSAVE.
const CR4_GUEST: u64 = (1 << 2) | (1 << 3) | (1 << 8) | (1 << 16) | (1 << 18);

impl Running<'_> {
    /// `mov` to and from control, debug and segment registers.
    pub(super) fn mov_special(&mut self, insn: &Insn) -> Done {
        let (to, from) = (insn.insn.op0_register(), insn.insn.op1_register());
        if to.is_segment_register() || from.is_segment_register() {
            return self.mov_segment(insn);
        }
        if !self.state.is_kernel() {
            return GP0;
        }
        let source = get(self.state.cpu.regs(), from).unwrap_or(0);
        if to.is_cr() {
            return self.write_cr(to, source);
        }
        if to.is_dr() {
            return match self.state.set_debugreg(to.number(), source) {
                Ok(()) => Done::Next,
                Err(_) => GP0,
            };
        }
        let value = if from.is_cr() {
            match from {
                Register::CR0 => self.state.cr0,
                Register::CR2 => self.state.cr2,
                Register::CR3 => self.state.root(GuestMode::Kernel).address(),
                Register::CR4 => self.state.cr4,
                _ => return GP0,
            }
        } else if from.is_dr() {
            match self.state.get_debugreg(from.number()) {
                Ok(value) => value,
                Err(_) => return GP0,
            }
        } else {
            return GP0;
        };
        set(self.state.cpu.regs_mut(), to, value);
        Done::Next
    }

    fn write_cr(&mut self, register: Register, value: u64) -> Done {
        match register {
            Register::CR0 => {
                if (value ^ self.state.cr0) & !CR0_TS != 0 {
                    return GP0;
                }
                self.state.set_task_switched(value & CR0_TS != 0);
            }
            Register::CR2 => {
                self.state.cr2 = value;
                self.vcpu.info.set_cr2(value);
            }
            Register::CR3 => {
                if self.new_baseptr(ring3_machine::Mfn::containing(value & 0x000f_ffff_ffff_f000)).is_err() {
                    return GP0;
                }
            }
            Register::CR4 => {
                // Others keep what the hypervisor set, as Xen does, so that the guest's view is what it asked for.
                self.state.cr4 = (CR4_INITIAL & !CR4_GUEST) | (value & CR4_GUEST);
                self.state.cpu.flush(Flush::All);
            }
            _ => return GP0,
        }
        Done::Next
    }

    pub(super) fn rdmsr(&mut self) -> Done {
        let msr = self.state.cpu.regs().get(GprName::Rcx) as u32;
        let value = match self.read_msr(msr) {
            Some(value) => value,
            // Before the guest can take #GP, unknown MSRs read as zero. Source: ABI map, section 8.
            None if self.state.traps[13].address == 0 => 0,
            None => return GP0,
        };
        let regs = self.state.cpu.regs_mut();
        regs.set(GprName::Rax, value & 0xffff_ffff);
        regs.set(GprName::Rdx, value >> 32);
        Done::Next
    }

    fn read_msr(&self, msr: u32) -> Option<u64> {
        let regs = self.state.cpu.regs();
        let is_amd = self.hv.cpuid.is_amd();
        Some(match msr {
            MSR_FS_BASE => regs.fs_base,
            MSR_GS_BASE => regs.gs_base,
            MSR_KERNEL_GS_BASE => regs.kernel_gs_base,
            MSR_TSC_AUX => u64::from(regs.tsc_aux),
            MSR_EFER => EFER | self.state.efer_extra,
            MSR_ARCH_CAPABILITIES if !is_amd => crate::cpuid::ARCH_CAPS,
            // IBRS stays off: with IBRS_ALL, a guest sets it once and for all, to no effect here.
            MSR_SPEC_CTRL if !is_amd => self.state.spec_ctrl,
            MSR_IA32_TSC => crate::time::rdtsc(),
            MSR_APIC_BASE => 0xfee0_0800 | if self.vcpu.id == 0 { 0x100 } else { 0 },
            MSR_IA32_CR_PAT => PAT,
            MSR_MCG_CAP | MSR_MCG_STATUS | MSR_IA32_UCODE_REV => 0,
            MSR_PLATFORM_INFO | MSR_MISC_FEATURES_ENABLES if !is_amd => 0,
            // Fast strings; BTS and PEBS unavailable.
            MSR_IA32_MISC_ENABLE if !is_amd => (1 << 0) | (1 << 11) | (1 << 12),
            // TscFreqSel: the TSC counts at the P0 frequency.
            MSR_K8_HWCR if is_amd => 1 << 24,
            // LFENCE is dispatch serialising.
            MSR_AMD64_DE_CFG if is_amd => 1 << 1,
            _ => return None,
        })
    }

    pub(super) fn wrmsr(&mut self) -> Done {
        let regs = self.state.cpu.regs();
        let msr = regs.get(GprName::Rcx) as u32;
        let value = (regs.get(GprName::Rdx) << 32) | (regs.get(GprName::Rax) & 0xffff_ffff);
        let is_amd = self.hv.cpuid.is_amd();
        match msr {
            MSR_FS_BASE | MSR_GS_BASE | MSR_KERNEL_GS_BASE => {
                if !is_canonical(value) {
                    return GP0;
                }
                let regs = self.state.cpu.regs_mut();
                match msr {
                    MSR_FS_BASE => regs.fs_base = value,
                    MSR_GS_BASE => regs.gs_base = value,
                    _ => regs.kernel_gs_base = value,
                }
            }
            MSR_EFER if is_amd && value & !EFER_AUTOIBRS == EFER => self.state.efer_extra = value & EFER_AUTOIBRS,
            MSR_SPEC_CTRL if !is_amd && value & !1 == 0 => self.state.spec_ctrl = value,
            MSR_TSC_AUX => match u32::try_from(value) {
                Ok(aux) => self.state.cpu.regs_mut().tsc_aux = aux,
                Err(_) => return GP0,
            },
            // Microcode updates and such are ignored, as for any PV guest.
            MSR_IA32_UCODE_REV if !is_amd => {}
            MSR_MCG_STATUS | MSR_IA32_MISC_ENABLE if !is_amd => {}
            MSR_MCG_STATUS => {}
            MSR_AMD64_DE_CFG if is_amd => {}
            // Writing back what was read is harmless.
            _ if self.read_msr(msr) == Some(value) => {}
            _ => return GP0,
        }
        Done::Next
    }

    /// `xsetbv`: XCR0 may be set to what the engine runs with, or a valid subset, which is only noted.
    pub(super) fn xsetbv(&mut self) -> Done {
        let regs = self.state.cpu.regs();
        let index = regs.get(GprName::Rcx) as u32;
        let value = (regs.get(GprName::Rdx) << 32) | (regs.get(GprName::Rax) & 0xffff_ffff);
        let is_valid = value & 1 != 0 && value & !crate::cpuid::XCR0 == 0 && (value & 4 == 0 || value & 2 != 0);
        if index != 0 || !is_valid {
            return GP0;
        }
        self.state.xcr0 = value;
        Done::Next
    }
}

//! MSRs: one table of those that a PV guest's kernel can read or write, with what Xen 4.17 does. All others are #GP(0).
//!
//! Compared with a real Xen by `tests/guests/msrs`. Sources of the numbers: Intel SDM vol. 4; AMD APM vol. 2 and PPRs.

#![allow(clippy::cast_possible_truncation, reason = "instructions take the low part of a register")]

use ring3_engine::GprName;
use ring3_machine::Mfn;

use super::super::bounce::Running;
use super::{Done, GP0};
use crate::cpuid;
use crate::memory::is_canonical;

/// The MSRs that a vCPU keeps beside those among its registers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Msrs {
    /// EFER bits that the guest may set beside the fixed ones.
    efer_extra: u64,
    spec_ctrl: u64,
    mcg_status: u64,
    /// User mode may not execute `cpuid`.
    pub cpuid_faulting: bool,
}

const MSR_EFER: u32 = 0xc000_0080;
const MSR_FS_BASE: u32 = 0xc000_0100;
const MSR_GS_BASE: u32 = 0xc000_0101;
const MSR_TSC_AUX: u32 = 0xc000_0103;
const MSR_XEN_HYPERCALL_PAGE: u32 = 0x4000_0000;

/// The PAT that Xen programs; guests depend on reading it.
const PAT: u64 = 0x0000_0501_0007_0406;
/// SCE, LME, LMA, NXE.
const EFER: u64 = 0xd01;
/// AUTOIBRS, which the CPUID policy shows.
const EFER_AUTOIBRS: u64 = 1 << 21;
/// Banks that Xen shows; Intel's capability besides: software error recovery.
const NR_MC_BANKS: u32 = 2;
const MCG_SER_P: u64 = 1 << 24;
/// PLATFORM_INFO: CPUID faulting is there.
const CPUID_FAULTING: u64 = 1 << 31;

/// On which CPUs a row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum On {
    Any,
    Intel,
    Amd,
}

/// What a read gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Read {
    Fault,
    Value(u64),
    Tsc,
    ApicBase,
    UcodeRev,
    ArchCaps,
    PlatformInfo,
    McgCap,
    McgStatus,
    /// MCi_CTL, MCi_STATUS, MCi_ADDR, MCi_MISC of bank i, four numbers each.
    Bank,
    Efer,
    Base,
    TscAux,
    SpecCtrl,
    MiscFeatures,
    Hwcr,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Write {
    Fault,
    Ignored,
    /// Zero is ignored, all else faults.
    Zero,
    McgStatus,
    Bank,
    Efer,
    Base,
    TscAux,
    SpecCtrl,
    MiscFeatures,
    HypercallPage,
}

/// First and last number, CPUs, read, write.
type Row = (u32, u32, On, Read, Write);

const TABLE: &[Row] = &[
    (0x0, 0x1, On::Any, Read::Value(0), Write::Fault), // P5_MC_ADDR, P5_MC_TYPE
    (0x10, 0x10, On::Any, Read::Tsc, Write::Fault),    // IA32_TSC
    (0x17, 0x17, On::Intel, Read::Value(0), Write::Fault), // IA32_PLATFORM_ID
    (0x1b, 0x1b, On::Any, Read::ApicBase, Write::Fault), // APIC_BASE
    (0x3a, 0x3a, On::Intel, Read::Value(1), Write::Fault), // IA32_FEATURE_CONTROL: locked
    (0x48, 0x48, On::Intel, Read::SpecCtrl, Write::SpecCtrl), // SPEC_CTRL
    (0x8b, 0x8b, On::Intel, Read::UcodeRev, Write::Zero), // IA32_UCODE_REV
    (0x8b, 0x8b, On::Amd, Read::UcodeRev, Write::Fault), // PATCH_LEVEL
    (0xc1, 0xc8, On::Intel, Read::Value(0), Write::Ignored), // P6_PERFCTR
    (0xce, 0xce, On::Any, Read::PlatformInfo, Write::Fault), // PLATFORM_INFO
    (0xe7, 0xe8, On::Any, Read::Fault, Write::Ignored), // IA32_MPERF, IA32_APERF
    (0x10a, 0x10a, On::Intel, Read::ArchCaps, Write::Fault), // ARCH_CAPABILITIES
    (0x140, 0x140, On::Any, Read::MiscFeatures, Write::MiscFeatures), // MISC_FEATURES_ENABLES
    (0x179, 0x179, On::Any, Read::McgCap, Write::Ignored), // IA32_MCG_CAP
    (0x17a, 0x17a, On::Any, Read::McgStatus, Write::McgStatus), // IA32_MCG_STATUS
    (0x17b, 0x17b, On::Any, Read::Value(0), Write::Ignored), // IA32_MCG_CTL
    (0x186, 0x189, On::Intel, Read::Value(0), Write::Ignored), // P6_EVNTSEL
    (0x198, 0x198, On::Intel, Read::Value(0), Write::Fault), // IA32_PERF_STATUS
    (0x199, 0x199, On::Intel, Read::Value(0), Write::Ignored), // IA32_PERF_CTL
    (0x19a, 0x19a, On::Intel, Read::Fault, Write::Ignored), // IA32_THERM_CONTROL
    (0x19c, 0x19c, On::Intel, Read::Value(0), Write::Fault), // IA32_THERM_STATUS
    // IA32_MISC_ENABLE: fast strings; BTS, PEBS and xTPR unavailable.
    (0x1a0, 0x1a0, On::Intel, Read::Value(1 | 1 << 11 | 1 << 12 | 1 << 23), Write::Ignored),
    (0x1b0, 0x1b0, On::Intel, Read::Fault, Write::Ignored), // IA32_ENERGY_PERF_BIAS
    (0x277, 0x277, On::Any, Read::Value(PAT), Write::Fault), // IA32_CR_PAT
    (0x280, 0x29f, On::Any, Read::Value(0), Write::Ignored), // IA32_MCi_CTL2
    (0x309, 0x30b, On::Intel, Read::Value(0), Write::Ignored), // CORE_PERF_FIXED_CTR
    (0x345, 0x345, On::Any, Read::Value(0), Write::Fault),  // IA32_PERF_CAPABILITIES
    (0x38d, 0x390, On::Intel, Read::Value(0), Write::Ignored), // CORE_PERF_FIXED_CTR_CTRL to GLOBAL_OVF_CTRL
    (0x400, 0x47f, On::Any, Read::Bank, Write::Bank),
    (MSR_XEN_HYPERCALL_PAGE, MSR_XEN_HYPERCALL_PAGE, On::Any, Read::Value(0), Write::HypercallPage),
    (MSR_EFER, MSR_EFER, On::Any, Read::Efer, Write::Efer),
    (MSR_FS_BASE, 0xc000_0102, On::Any, Read::Base, Write::Base), // FS_BASE, GS_BASE, KERNEL_GS_BASE
    (MSR_TSC_AUX, MSR_TSC_AUX, On::Any, Read::TscAux, Write::TscAux),
    (0xc001_0000, 0xc001_0007, On::Amd, Read::Value(0), Write::Ignored), // K7_EVNTSEL, K7_PERFCTR
    (0xc001_0015, 0xc001_0015, On::Amd, Read::Hwcr, Write::Ignored),     // HWCR
    (0xc001_001f, 0xc001_001f, On::Any, Read::Value(0), Write::Ignored), // NB_CFG
    (0xc001_0041, 0xc001_0042, On::Amd, Read::Value(0), Write::Ignored), // FID_VID_CTL, FID_VID_STATUS
    (0xc001_0061, 0xc001_006b, On::Amd, Read::Value(0), Write::Ignored), // PSTATE_LIMIT to PSTATE7
    (0xc001_0200, 0xc001_020b, On::Amd, Read::Value(0), Write::Ignored), // FAM15H_EVNTSEL, FAM15H_PERFCTR
    (0xc001_1029, 0xc001_1029, On::Amd, Read::Value(1 << 1), Write::Ignored), // DE_CFG: LFENCE is dispatch serialising
];

impl Running<'_> {
    fn msr_row(&self, msr: u32) -> Option<&'static Row> {
        let cpu = if self.hv.cpuid.is_amd() { On::Amd } else { On::Intel };
        TABLE.iter().find(|row| (row.0..=row.1).contains(&msr) && (row.2 == On::Any || row.2 == cpu))
    }

    /// `rdmsr`.
    pub(super) fn rdmsr(&mut self) -> Done {
        let msr = self.state.cpu.regs().get(GprName::Rcx) as u32;
        let value = match self.read_msr(msr) {
            Some(value) => value,
            // Before the guest can take #GP, MSRs that a CPU has read as zero; later if the domain was made so.
            None if is_architectural(msr) && (self.state.traps[13].address == 0 || self.is_msr_relaxed(msr)) => 0,
            None => return GP0,
        };
        let regs = self.state.cpu.regs_mut();
        regs.set(GprName::Rax, value & 0xffff_ffff);
        regs.set(GprName::Rdx, value >> 32);
        Done::Next
    }

    /// `msr_relaxed` concerns what Xen has no opinion on.
    fn is_msr_relaxed(&self, msr: u32) -> bool {
        self.domain.is_msr_relaxed && self.msr_row(msr).is_none() && is_architectural(msr)
    }

    /// RDTSCP or RDPID show it.
    fn has_tsc_aux(&self) -> bool {
        let policy = self.domain.policy();
        policy.has(cpuid::RDTSCP) || policy.has(cpuid::RDPID)
    }

    pub(crate) fn read_msr(&self, msr: u32) -> Option<u64> {
        let (regs, msrs) = (self.state.cpu.regs(), &self.state.msrs);
        let is_amd = self.hv.cpuid.is_amd();
        Some(match self.msr_row(msr)?.3 {
            Read::Fault => return None,
            Read::Value(value) => value,
            Read::Tsc => self.domain.tsc.lock().read(&self.hv.clock),
            Read::ApicBase => 0xfee0_0800 | if self.vcpu.id == 0 { 0x100 } else { 0 },
            Read::UcodeRev => self.hv.cpuid.microcode(),
            Read::ArchCaps if !self.domain.policy().has(cpuid::ARCH_CAPS_BIT) => return None,
            Read::ArchCaps => self.domain.policy().msr(cpuid::MSR_ARCH_CAPABILITIES),
            Read::PlatformInfo => self.domain.policy().msr(cpuid::MSR_PLATFORM_INFO),
            Read::McgCap => u64::from(NR_MC_BANKS) | if is_amd { 0 } else { MCG_SER_P },
            Read::McgStatus => msrs.mcg_status,
            Read::Bank => {
                let is_control = msr & 3 == 0;
                if is_control && (msr - 0x400) / 4 < NR_MC_BANKS { u64::MAX } else { 0 }
            }
            Read::Efer => EFER | msrs.efer_extra,
            Read::Base => match msr {
                MSR_FS_BASE => regs.fs_base,
                MSR_GS_BASE => regs.gs_base,
                _ => regs.kernel_gs_base,
            },
            Read::TscAux if !self.has_tsc_aux() => return None,
            Read::TscAux => u64::from(regs.tsc_aux),
            // IBRS stays off: with IBRS_ALL, a guest sets it once and for all, to no effect here.
            Read::SpecCtrl => msrs.spec_ctrl,
            Read::MiscFeatures => u64::from(msrs.cpuid_faulting),
            // TscFreqSel: the TSC counts at the P0 frequency.
            Read::Hwcr => 1 << 24,
        })
    }

    /// `wrmsr`.
    pub(super) fn wrmsr(&mut self) -> Done {
        let regs = self.state.cpu.regs();
        let msr = regs.get(GprName::Rcx) as u32;
        let value = (regs.get(GprName::Rdx) << 32) | (regs.get(GprName::Rax) & 0xffff_ffff);
        match self.write_msr(msr, value) {
            Some(()) => Done::Next,
            None if self.is_msr_relaxed(msr) => Done::Next,
            None => GP0,
        }
    }

    pub(crate) fn write_msr(&mut self, msr: u32, value: u64) -> Option<()> {
        let is_amd = self.hv.cpuid.is_amd();
        let write = self.msr_row(msr)?.4;
        let has_tsc_aux = self.has_tsc_aux();
        let may_fault = self.domain.policy().msr(cpuid::MSR_PLATFORM_INFO) & CPUID_FAULTING != 0;
        let (regs, msrs) = (self.state.cpu.regs_mut(), &mut self.state.msrs);
        let is_valid = match write {
            Write::Fault => false,
            Write::Ignored => true,
            Write::Zero => value == 0,
            Write::McgStatus => {
                msrs.mcg_status = value;
                true
            }
            // Status, address and the rest can only be cleared.
            Write::Bank => msr & 3 == 0 || (msr - 0x400) / 4 >= NR_MC_BANKS || value == 0,
            Write::Efer => {
                let allowed = if is_amd { EFER_AUTOIBRS } else { 0 };
                let is_valid = value & !allowed == EFER;
                if is_valid {
                    msrs.efer_extra = value & allowed;
                }
                is_valid
            }
            Write::Base => {
                let is_valid = is_canonical(value);
                if is_valid {
                    match msr {
                        MSR_FS_BASE => regs.fs_base = value,
                        MSR_GS_BASE => regs.gs_base = value,
                        _ => regs.kernel_gs_base = value,
                    }
                }
                is_valid
            }
            Write::TscAux if !has_tsc_aux => false,
            Write::TscAux => {
                regs.tsc_aux = u32::try_from(value).ok()?;
                true
            }
            Write::SpecCtrl => {
                let is_valid = value & !1 == 0;
                if is_valid {
                    msrs.spec_ctrl = value;
                }
                is_valid
            }
            Write::MiscFeatures => {
                let is_valid = value & !u64::from(may_fault) == 0;
                if is_valid {
                    msrs.cpuid_faulting = value != 0;
                }
                is_valid
            }
            // A frame, and which page of the hypercall area: there is one.
            Write::HypercallPage => {
                value & 0xfff == 0 && self.hv.set_hypercall_page(self.domain.domid, Mfn::containing(value)).is_ok()
            }
        };
        is_valid.then_some(())
    }
}

/// Ranges in which CPUs have MSRs, as their virtualization extensions know them. Which of them a given CPU has, only
/// its kernel could try.
const fn is_architectural(msr: u32) -> bool {
    matches!(msr, 0..=0x1fff | 0xc000_0000..=0xc000_1fff | 0xc001_0000..=0xc001_1fff)
}

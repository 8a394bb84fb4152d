//! Exceptions of the guest: page faults with writable-page-table emulation, forced emulation, and the rest by bounce.

use ring3_abi::xen::VMASST_TYPE_writable_pagetables;
use ring3_engine::{Exit, PF_FETCH, PF_PRESENT, PF_RESERVED, PF_WRITE, WriteIntercept, vector};
use ring3_machine::Mfn;

use super::bounce::{Running, Undeliverable};
use crate::mm::{DomainMm, Error};

/// `ud2` and "xen": the next instruction is to be emulated. Source: xen/include/public/arch-x86/xen.h,
/// XEN_EMULATE_PREFIX.
pub const FORCED_EMULATION_PREFIX: [u8; 5] = [0x0f, 0x0b, 0x78, 0x65, 0x6e];

/// Receives the store of an emulated page-table write.
struct PtwrStore<'a> {
    mm: &'a DomainMm,
    /// Another vCPU changed the entry meanwhile: the guest runs the instruction again.
    has_raced: bool,
}

impl WriteIntercept for PtwrStore<'_> {
    fn store(&mut self, mfn: Mfn, offset: usize, old: &[u8], new: &[u8]) -> bool {
        // Naturally aligned stores of up to 8 bytes, as Xen emulates.
        if !matches!(new.len(), 1 | 2 | 4 | 8) || !offset.is_multiple_of(new.len()) {
            return false;
        }
        let result = self.mm.ptwr_update(mfn, offset, old, new);
        self.has_raced = result == Err(Error::Raced);
        result.is_ok()
    }
}

impl Running<'_> {
    /// Handles `Exit::Exception`.
    ///
    /// # Errors
    /// [`Undeliverable`].
    pub fn exception(&mut self, number: u8, error_code: Option<u32>, cr2: u64) -> Result<(), Undeliverable> {
        match number {
            vector::PF => self.page_fault(error_code.unwrap_or(0), cr2),
            vector::UD if self.is_forced_emulation() => self.forced_emulation(),
            vector::NM => {
                // As Xen: the guest finds TS clear.
                self.state.set_task_switched(false);
                self.inject(number, None)
            }
            _ => self.inject(number, error_code),
        }
    }

    fn page_fault(&mut self, error_code: u32, cr2: u64) -> Result<(), Undeliverable> {
        let is_ro_write = error_code & (PF_PRESENT | PF_WRITE | PF_FETCH | PF_RESERVED) == PF_PRESENT | PF_WRITE;
        if is_ro_write
            && self.state.is_kernel()
            && self.domain.has_assist(VMASST_TYPE_writable_pagetables)
            && self.emulate_pt_write(cr2)?
        {
            return Ok(());
        }
        self.inject_page_fault(cr2, error_code)
    }

    /// Emulates a store to a read-only mapped L1 table. Returns false when the fault is the guest's own.
    fn emulate_pt_write(&mut self, va: u64) -> Result<bool, Undeliverable> {
        let root = self.state.root(ring3_engine::GuestMode::Kernel);
        let Some(mfn) = self.domain.mm.ptwr_target(root, va) else { return Ok(false) };
        let was_stepping = self.is_stepping();
        let mut store = PtwrStore { mm: &self.domain.mm, has_raced: false };
        let exit = self.state.cpu.step(Some((mfn, &mut store)));
        match exit {
            Exit::Stepped => self.instruction_done(0, was_stepping).map(|()| true),
            Exit::Interrupted(_) | Exit::Spinning => Ok(true),
            // The store was refused, or the instruction is not one that the engine steps: the guest's page fault.
            Exit::Exception { vector: vector::GP, .. } | Exit::Privileged => Ok(store.has_raced),
            Exit::Exception { vector: number, error_code, cr2 } => {
                if number == vector::PF {
                    self.inject_page_fault(cr2, error_code.unwrap_or(0))?;
                } else {
                    self.inject(number, error_code)?;
                }
                Ok(true)
            }
            Exit::Failed(reason) => Err(Undeliverable(format!("the engine failed: {reason}"), None)),
            Exit::Hypercall | Exit::Syscall | Exit::SoftwareInterrupt { .. } | Exit::Debug { .. } => Ok(false),
        }
    }

    fn is_forced_emulation(&self) -> bool {
        let mut bytes = [0u8; 7];
        let cpu = &self.state.cpu;
        let at = cpu.regs().code_address(cpu.code_size(), cpu.regs().rip);
        let fetched = self.domain.memory.fetch(&self.state.space(), at, &mut bytes);
        fetched == Ok(7) && bytes[..5] == FORCED_EMULATION_PREFIX && bytes[5..] == [0x0f, 0xa2]
    }

    fn forced_emulation(&mut self) -> Result<(), Undeliverable> {
        if self.state.msrs.cpuid_faulting && !self.state.is_kernel() {
            // The fault is the `cpuid`'s, behind the prefix.
            let regs = self.state.cpu.regs_mut();
            regs.rip = regs.rip.wrapping_add(FORCED_EMULATION_PREFIX.len() as u64);
            return self.inject_gp(0);
        }
        self.emulate_cpuid(true);
        let was_stepping = self.is_stepping();
        let regs = self.state.cpu.regs_mut();
        regs.rip = regs.rip.wrapping_add(7);
        self.instruction_done(0, was_stepping)
    }
}

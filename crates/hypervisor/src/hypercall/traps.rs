//! set_trap_table, set_callbacks, callback_op, stack_switch, set_segment_base, fpu_taskswitch.

use iced_x86::Register;
use ring3_abi::arch_x86::{SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL, trap_info};
use ring3_abi::callback::*;
use ring3_abi::errno;
use ring3_abi::nmi::{XENNMI_register_callback, XENNMI_unregister_callback, xennmi_callback};

use super::{Caller, HypercallResult, Served, should_preempt};
use crate::memory::is_canonical;
use crate::vcpu::Callback;
use crate::vcpu::bounce::Running;

impl Running<'_> {
    /// set_trap_table: entries up to one with address 0; NULL clears the table.
    pub(super) fn set_trap_table(&mut self, traps: u64) -> Served {
        if traps == 0 {
            *self.state.traps = [trap_info::default(); 256];
            return Served::Done(0);
        }
        let caller = Caller::of_guest(self);
        let mut handle = traps;
        loop {
            let mut entry: trap_info = match caller.read(handle) {
                Ok(entry) => entry,
                Err(errno) => return Served::Done(-errno),
            };
            if entry.address == 0 {
                return Served::Done(0);
            }
            if !is_canonical(entry.address) {
                return Served::Done(-errno::EINVAL);
            }
            entry.cs |= 3;
            self.state.traps[usize::from(entry.vector)] = entry;
            handle = handle.wrapping_add(size_of::<trap_info>() as u64);
            if should_preempt(self) {
                return Served::Again([handle, 0, 0, 0]);
            }
        }
    }

    /// set_callbacks (before callback_op): event, failsafe, syscall.
    pub(super) fn set_callbacks(&mut self, event: u64, failsafe: u64, syscall: u64) -> HypercallResult {
        // Each by itself; what cannot be an address is passed over without a word.
        for (r#type, address) in
            [(CALLBACKTYPE_event, event), (CALLBACKTYPE_failsafe, failsafe), (CALLBACKTYPE_syscall, syscall)]
        {
            let _ = self.register_callback(&callback_register { r#type, flags: 0, _pad: 0, address });
        }
        Ok(0)
    }

    /// callback_op.
    pub(super) fn callback_op(&mut self, cmd: u32, arg: u64) -> HypercallResult {
        self.hv.table.count(ring3_abi::hypercall::__HYPERVISOR_callback_op, cmd);
        let caller = Caller::of_guest(self);
        match cmd {
            CALLBACKOP_register => {
                let register: callback_register = caller.read(arg)?;
                self.register_callback(&register)
            }
            CALLBACKOP_unregister => {
                let unregister: callback_unregister = caller.read(arg)?;
                match unregister.r#type {
                    CALLBACKTYPE_nmi => {
                        self.state.traps[2] = trap_info::default();
                        Ok(0)
                    }
                    CALLBACKTYPE_event
                    | CALLBACKTYPE_failsafe
                    | CALLBACKTYPE_syscall
                    | CALLBACKTYPE_sysenter
                    | CALLBACKTYPE_syscall32 => Err(errno::EINVAL),
                    _ => Err(errno::ENOSYS),
                }
            }
            _ => Err(errno::ENOSYS),
        }
    }

    fn register_callback(&mut self, register: &callback_register) -> HypercallResult {
        if !is_canonical(register.address) {
            return Err(errno::EINVAL);
        }
        let callback = Callback { address: register.address, mask_events: register.flags & CALLBACKF_mask_events != 0 };
        match register.r#type {
            CALLBACKTYPE_event => self.state.event_callback = register.address,
            CALLBACKTYPE_failsafe => self.state.failsafe = callback,
            CALLBACKTYPE_syscall => self.state.syscall = callback,
            CALLBACKTYPE_syscall32 => self.state.syscall32 = callback,
            CALLBACKTYPE_sysenter => self.state.sysenter = callback,
            CALLBACKTYPE_nmi => self.set_nmi_callback(register.address),
            _ => return Err(errno::ENOSYS),
        }
        Ok(0)
    }

    fn set_nmi_callback(&mut self, address: u64) {
        self.state.traps[2] = trap_info { vector: 2, flags: 4, address, ..Default::default() };
    }

    /// nmi_op: registers or forgets the callback for NMIs, of this vCPU.
    pub(super) fn nmi_op(&mut self, cmd: u32, arg: u64) -> HypercallResult {
        self.hv.table.count(ring3_abi::hypercall::__HYPERVISOR_nmi_op, cmd);
        match cmd {
            XENNMI_register_callback => {
                let callback: xennmi_callback = Caller::of_guest(self).read(arg)?;
                if !is_canonical(callback.handler_address) {
                    return Err(errno::EINVAL);
                }
                self.set_nmi_callback(callback.handler_address);
            }
            XENNMI_unregister_callback => self.state.traps[2] = trap_info::default(),
            _ => return Err(errno::ENOSYS),
        }
        Ok(0)
    }

    /// stack_switch: where bounce frames from user mode go.
    pub(super) fn stack_switch(&mut self, ss: u64, sp: u64) -> HypercallResult {
        self.state.kernel_ss = (ss & 0xffff) as u16 | 3;
        self.state.kernel_sp = sp;
        Ok(0)
    }

    /// set_segment_base.
    pub(super) fn set_segment_base(&mut self, which: u32, base: u64) -> HypercallResult {
        if which == SEGBASE_GS_USER_SEL {
            let selector = (base & 0xffff) as u16;
            // The kernel's base stays: only the selector and the user's base are loaded.
            let kernel_base = self.state.cpu.regs().gs_base;
            let result = self.load_segment(Register::GS, selector);
            let regs = self.state.cpu.regs_mut();
            if result.is_ok() {
                regs.kernel_gs_base = regs.gs_base;
            } else {
                // A bad selector loads as null.
                (regs.gs, regs.kernel_gs_base) = (0, 0);
            }
            regs.gs_base = kernel_base;
            return Ok(0);
        }
        if !is_canonical(base) {
            return Err(errno::EINVAL);
        }
        let regs = self.state.cpu.regs_mut();
        match which {
            SEGBASE_FS => regs.fs_base = base,
            SEGBASE_GS_USER => regs.kernel_gs_base = base,
            SEGBASE_GS_KERNEL => regs.gs_base = base,
            _ => return Err(errno::EINVAL),
        }
        Ok(0)
    }

    /// fpu_taskswitch: sets or clears CR0.TS.
    pub(super) fn fpu_taskswitch(&mut self, set: u32) -> HypercallResult {
        self.state.set_task_switched(set != 0);
        Ok(0)
    }
}

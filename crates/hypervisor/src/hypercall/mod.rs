//! Hypercalls: one dispatch for guests and one for dom0 processes, with the same handlers behind both.
//!
//! Handlers return `Ok(value)` or `Err(errno)`, positive; the register gets the value or the negated number.

mod batch;
mod caller;
mod cold;
mod console;
mod descriptors;
mod event_channel;
mod grant_table;
mod memory_op;
mod misc;
mod mmu;
mod mmuext;
mod multicall;
mod page;
mod physdev;
mod refused;
mod reservation;
mod rows;
mod sched_op;
mod table;
mod traps;
mod vcpu_op;
mod version;

use std::sync::Arc;

use ring3_abi::errno;
use ring3_abi::event_channel::{EVTCHNOP_send, evtchn_send};
use ring3_abi::hypercall::*;
use ring3_engine::GprName;

pub use caller::{Caller, Handles};
pub use cold::{ColdContext, ColdHandler, ColdHandlers, OwnedHandles};
pub use misc::VALID_ASSISTS;
pub use page::page_image;
pub use table::{Coverage, Row, Table, WHOLE};
pub use version::{XEN_MAJOR, XEN_MINOR};

use crate::domain::Connection;
use crate::hypervisor::Hypervisor;
use crate::vcpu::bounce::Running;

/// What a handler returns.
pub type HypercallResult = Result<i64, i64>;

/// Arguments in register order.
pub type Args = [u64; 6];

/// Result of a call that must be made again with other arguments, because the pCPU is wanted.
pub(crate) enum Served {
    Done(i64),
    /// New values of the first four arguments.
    Again([u64; 4]),
    /// The registers are another context's already: `iret` in a multicall.
    Left,
}

impl From<HypercallResult> for Served {
    fn from(result: HypercallResult) -> Self {
        Self::Done(result.unwrap_or_else(|errno| -errno))
    }
}

impl Served {
    /// A result; -ERESTART has the call made again with these arguments.
    fn or_again(result: HypercallResult, next: [u64; 4]) -> Self {
        if result == Err(errno::ERESTART) { Self::Again(next) } else { result.into() }
    }
}

/// Number in the first 32 bits of an argument: an `unsigned int` of the C prototype.
pub(crate) fn int(arg: u64) -> u32 {
    (arg & 0xffff_ffff) as u32
}

/// A hypercall of a guest kernel: the value for RAX. A call to be continued has its registers changed.
pub fn dispatch_guest(running: &mut Running<'_>, op: u64, args: &Args) -> i64 {
    match serve_guest(running, op, args) {
        Served::Done(value) => value,
        Served::Left => running.state.cpu.regs().get(GprName::Rax) as i64,
        Served::Again(next) => {
            let regs = running.state.cpu.regs_mut();
            for (name, value) in [GprName::Rdi, GprName::Rsi, GprName::Rdx, GprName::R10].into_iter().zip(next) {
                regs.set(name, value);
            }
            // Back to the two bytes of `syscall`, with the number in RAX again.
            regs.rip = regs.rip.wrapping_sub(2);
            op as i64
        }
    }
}

/// Tells a long call whether it should make room.
type Wanted<'a> = &'a dyn Fn() -> bool;

/// Whether a long call should make room: somebody wants the pCPU.
pub(crate) fn should_preempt(running: &Running<'_>) -> bool {
    running.vcpu.is_wanted_elsewhere()
}

pub(crate) fn serve_guest(running: &mut Running<'_>, op: u64, args: &Args) -> Served {
    let Ok(number) = u32::try_from(op) else { return Served::Done(-errno::ENOSYS) };
    running.hv.table.count(number, WHOLE);
    let [a1, a2, a3, a4, _, _] = *args;
    let result = match number {
        __HYPERVISOR_set_trap_table => return running.set_trap_table(a1),
        __HYPERVISOR_mmu_update => return running.mmu_update(a1, int(a2), a3, int(a4)),
        __HYPERVISOR_set_gdt => running.set_gdt(a1, int(a2)),
        __HYPERVISOR_stack_switch => running.stack_switch(a1, a2),
        __HYPERVISOR_set_callbacks => running.set_callbacks(a1, a2, a3),
        __HYPERVISOR_fpu_taskswitch => running.fpu_taskswitch(int(a1)),
        __HYPERVISOR_sched_op_compat => running.sched_op_compat(int(a1), a2),
        __HYPERVISOR_set_debugreg => running.state.set_debugreg(int(a1) as usize, a2).map(|()| 0),
        __HYPERVISOR_get_debugreg => running.state.get_debugreg(int(a1) as usize).map(|value| value as i64),
        __HYPERVISOR_update_descriptor => running.update_descriptor(a1, a2),
        __HYPERVISOR_multicall => return running.multicall(a1, int(a2)),
        __HYPERVISOR_update_va_mapping => running.update_va_mapping(a1, a2, a3),
        __HYPERVISOR_set_timer_op => running.set_timer_op(a1),
        __HYPERVISOR_vm_assist => running.vm_assist(int(a1), int(a2)),
        __HYPERVISOR_update_va_mapping_otherdomain => running.update_va_mapping_otherdomain(a1, a2, a3, a4),
        __HYPERVISOR_vcpu_op => return running.vcpu_op(int(a1), int(a2), a3),
        __HYPERVISOR_set_segment_base => running.set_segment_base(int(a1), a2),
        __HYPERVISOR_mmuext_op => return running.mmuext_op(a1, int(a2), a3, int(a4)),
        __HYPERVISOR_sched_op => running.sched_op(int(a1), a2),
        __HYPERVISOR_callback_op => running.callback_op(int(a1), a2),
        __HYPERVISOR_nmi_op => running.nmi_op(int(a1), a2),
        __HYPERVISOR_physdev_op => running.physdev_op(int(a1), a2),
        __HYPERVISOR_physdev_op_compat => running.physdev_op_compat(a1),
        __HYPERVISOR_console_io => return running.console_io(int(a1), int(a2), a3),
        __HYPERVISOR_memory_op => return running.memory_op(a1, a2, args),
        __HYPERVISOR_grant_table_op => return running.grant_table_op(int(a1), a2, int(a3)),
        __HYPERVISOR_event_channel_op => return running.event_channel_op(args),
        __HYPERVISOR_xen_version => Caller::of_guest(running).xen_version(int(a1), a2),
        _ => {
            // Cold handlers are not ours.
            running.state.cpu.park();
            let caller = Caller::of_guest(running);
            serve_common(&caller, number, args)
        }
    };
    result.into()
}

/// A hypercall of a dom0 process.
pub fn dispatch_dom0(hv: &Hypervisor, connection: &Arc<Connection>, op: u64, args: &Args) -> i64 {
    let Ok(number) = u32::try_from(op) else { return -errno::ENOSYS };
    hv.table.count(number, WHOLE);
    let caller = Caller::of_connection(hv, connection);
    let [a1, a2, a3, a4, _, _] = *args;
    let result = match number {
        __HYPERVISOR_mmu_update => caller.mmu_update_all(a1, int(a2), a3, int(a4)),
        __HYPERVISOR_mmuext_op => caller.mmuext_op_all(a1, int(a2), a3, int(a4)),
        __HYPERVISOR_update_va_mapping_otherdomain => caller.map_foreign(connection, a1, a2, int(a4)),
        __HYPERVISOR_multicall => caller.multicall_all(connection, a1, int(a2)),
        __HYPERVISOR_sched_op => caller.sched_op(int(a1), a2),
        __HYPERVISOR_console_io => caller.console_io(int(a1), int(a2), a3),
        __HYPERVISOR_grant_table_op => return at_once(caller.grant_table_op(int(a1), a2, int(a3), &|| false)),
        __HYPERVISOR_memory_op => return at_once(caller.memory_op(a1, a2, args, &|| false)),
        _ => serve_common(&caller, number, args),
    };
    result.unwrap_or_else(|errno| -errno)
}

/// `EVTCHNOP_send` of a dom0 process, of an event whose bell it has rung.
pub fn send_lazily(hv: &Hypervisor, connection: &Arc<Connection>, op: u64, args: &Args) -> i64 {
    if op != u64::from(__HYPERVISOR_event_channel_op) || int(args[0]) != EVTCHNOP_send {
        return -errno::EINVAL;
    }
    hv.table.count(__HYPERVISOR_event_channel_op, EVTCHNOP_send);
    let send: Result<evtchn_send, i64> = Caller::of_connection(hv, connection).read(args[1]);
    send.and_then(|send| hv.evtchn_send_lazily(connection, send.port)).map_or_else(|errno| -errno, |()| 0)
}

/// Nobody waits for a dom0 process's pCPU: it is never told to come again.
fn at_once(served: Served) -> i64 {
    match served {
        Served::Done(value) => value,
        Served::Again(_) | Served::Left => -errno::EAGAIN,
    }
}

/// What needs no vCPU.
fn serve_common(caller: &Caller<'_>, number: u32, args: &Args) -> HypercallResult {
    let [a1, a2, ..] = *args;
    match number {
        __HYPERVISOR_xen_version => caller.xen_version(int(a1), a2),
        __HYPERVISOR_event_channel_op => caller.event_channel_op(int(a1), a2, &|| false),
        __HYPERVISOR_event_channel_op_compat => caller.event_channel_op_compat(a1),
        _ => caller.refused(number, args).unwrap_or_else(|| caller.cold(number, args)),
    }
}

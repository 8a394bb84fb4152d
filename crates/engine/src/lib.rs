//! The contract between the hypervisor and a CPU engine.
//!
//! An engine runs guest instructions and nothing else: what an instruction *means* outside the user ISA (hypercall,
//! trap delivery, descriptor tables, MSRs, ports) is told to the hypervisor as an [`Exit`] and decided there.
//! Engines: `ring3-engine-bt` (binary translation), `ring3-engine-kvm` (later). The hypervisor knows only this crate.
//!
//! # Threads and safe points
//! A [`Vcpu`] is run by one thread at a time. Others reach it only through its [`VcpuControl`]. While
//! [`VcpuControl::is_in_guest`] holds, the vCPU may use stale translations; it stops doing so at its next *safe
//! point*, an instruction boundary at which it sees its requests. `Vcpu::run` serves requests before it enters the
//! guest, so a requester may go on as soon as the request is posted and `is_in_guest` has been seen false, or the
//! request bit has been seen cleared.

mod debug;
mod exit;
mod features;
mod paging;
mod regs;
mod segment;
mod vcpu;

pub use debug::{Breakpoint, BreakpointKind, NR_BREAKPOINTS, dr6};
pub use exit::{Exit, vector};
pub use features::Features;
pub use paging::{
    Access, AddressSpace, HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, PF_FETCH, PF_PRESENT, PF_RESERVED, PF_WRITE,
    PageFault, Translation, pte, table_index, walk,
};
pub use regs::{CodeSize, GprName, Regs, rflags};
pub use segment::{Segment, SegmentName};
pub use vcpu::{
    Config, DomainEngine, Engine, Error, Flush, Guards, GuestMode, Requests, Vcpu, VcpuControl, WriteIntercept,
};

#[cfg(test)]
mod tests;

//! The hypervisor: domains, the PV memory manager, event channels, grants, time, scheduling and hypercalls.
//!
//! It runs guests through the `ring3-engine` trait and knows no engine; it touches memory through `ring3-machine`
//! alone. Cold hypercalls go to handlers that whoever embeds it registers (`pymod`: Python).

// Matching on the ABI's constants, which keep Xen's spelling.
#![allow(non_upper_case_globals)]

mod audit;
pub mod cpuid;
mod dmesg;
pub mod domain;
pub mod evtchn;
pub mod gnttab;
mod heap_unsafe;
pub mod hypercall;
mod hypervisor;
mod idle;
pub mod memory;
pub mod mm;
pub mod sched;
pub mod time;
pub mod vcpu;

pub use dmesg::Dmesg;
pub use hypervisor::{Error, Hypervisor};

/// Public for `fuzz/`, which drives the parsers of guest bytes by the tests' guests.
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod tests;

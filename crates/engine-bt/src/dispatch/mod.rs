//! Running a vCPU: enter translated code, serve its exits, translate what is missing.

mod archive;
mod caches;
mod compat;
mod debug;
mod deferred;
mod domain;
mod exclusive;
mod lookup;
mod priority;
mod run;
mod state_unsafe;
mod step;
mod trace;
mod vcpu;
pub(crate) mod xstate;

pub use domain::BtDomain;
pub use state_unsafe::StateMemory;
pub use vcpu::BtVcpu;

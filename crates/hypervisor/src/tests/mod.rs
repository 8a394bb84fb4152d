//! Tests of the hypervisor around a scripted engine: no guest code runs, exits come from a list.

// Numbers here are small by construction.
#![allow(clippy::cast_possible_truncation)]
// What only `fuzz/` sees, and what it does not use.
#![allow(missing_debug_implementations, clippy::unwrap_used)]
#![cfg_attr(not(test), allow(dead_code, unused_imports))]

#[cfg(test)]
mod bells;
mod debug;
#[cfg(test)]
mod delivery;
pub mod double;
#[cfg(test)]
mod emulation;
#[cfg(test)]
mod fifo;
pub mod fuzz;
#[cfg(test)]
mod grants;
#[cfg(test)]
mod hypercalls;
#[cfg(test)]
mod lifecycle;
#[cfg(test)]
mod preempt;
#[cfg(test)]
mod shared_code;
pub mod support;
#[cfg(test)]
mod transfer;

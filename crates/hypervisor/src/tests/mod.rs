//! Tests of the hypervisor around a scripted engine: no guest code runs, exits come from a list.

// Numbers here are small by construction.
#![allow(clippy::cast_possible_truncation)]

mod debug;
mod delivery;
pub mod double;
mod emulation;
mod fifo;
mod fuzz;
mod grants;
mod hypercalls;
mod lifecycle;
pub mod support;

//! Tests of the hypervisor around a scripted engine: no guest code runs, exits come from a list.

mod delivery;
mod double;
mod emulation;
mod hypercalls;
mod lifecycle;
mod support;

//! Emission of host code.

pub mod asm;
pub mod stubs;
pub mod tlb;

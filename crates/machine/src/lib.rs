//! Machine memory: one sparse memfd, in which MFN `n` is the page at offset `n << 12`.
//!
//! Every access goes through [`Machine`]: bounds are checked here, guest-writable bytes are read and written by
//! volatile or atomic operations and never borrowed. Contents only: who owns a frame, and as what, is the frame
//! table's business (`ring3-hypervisor`, `mm`).

mod code_map;
mod contents;
mod error;
mod folded;
mod frame;
mod memory_unsafe;
mod packed;

pub use code_map::CodeMap;
pub use error::Error;
pub use frame::{Gfn, Mfn, PAGE_SHIFT, PAGE_SIZE, PAGE_SIZE_BYTES, Pfn};
pub use memory_unsafe::Machine;

#[cfg(test)]
mod tests;

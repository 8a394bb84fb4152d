//! Errors of machine memory.

use crate::Mfn;

/// What machine memory can refuse.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The frame number lies past the end of machine memory.
    #[error("frame {mfn:?} is outside machine memory of {nr_frames:#x} frames")]
    NoSuchFrame { mfn: Mfn, nr_frames: u64 },
    /// `offset + len` leaves the frame.
    #[error("range {offset:#x}+{len:#x} leaves a frame")]
    OutsideFrame { offset: usize, len: usize },
    /// An atomic access that is not naturally aligned.
    #[error("offset {offset:#x} is not aligned to {alignment}")]
    Misaligned { offset: usize, alignment: usize },
    /// The host refused memory.
    #[error("host refused {what} for {nr_frames:#x} frames: {source}")]
    Host { what: &'static str, nr_frames: u64, source: std::io::Error },
}

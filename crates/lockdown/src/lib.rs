//! What the hypervisor's process gives up once it has started: the file system, the network, other programs. A guest
//! that breaks out of its domain finds itself in a process that can do little but run guests.
//!
//! docs/security.md says what this promises, and against whom.

mod files;
mod syscalls;

pub use files::{Walls, forbid_files};
pub use syscalls::forbid_syscalls;

/// The host's kernel refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Landlock.
    #[error("Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// The filter of system calls.
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
}

impl From<seccompiler::BackendError> for Error {
    fn from(error: seccompiler::BackendError) -> Self {
        Self::Seccomp(error.into())
    }
}

//! Landlock: no file but those of /proc, no TCP port, no abstract Unix socket, no signal to a process outside.

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus,
    Scope, path_beneath_rules,
};

use crate::Error;

/// How much of it the host's kernel has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walls {
    /// All that this crate knows of.
    Whole,
    /// An older kernel: files, but not all of sockets and signals.
    Partial,
    /// No Landlock: the filter of system calls is all there is.
    None,
}

/// Where a process may read about itself: the nursery of direct execution does, to give back what it inherited. The
/// hypervisor's own threads open nothing at all.
const READABLE: &str = "/proc";

/// Takes every file, TCP port, abstract Unix socket and process outside from the calling thread and from every thread
/// and process that it starts from now on. What is open stays open.
///
/// # Errors
/// [`Error::Landlock`]; a kernel without Landlock is no error.
pub fn forbid_files() -> Result<Walls, Error> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))?
        .handle_access(AccessNet::from_all(abi))?
        .scope(Scope::from_all(abi))?
        .create()?
        .add_rules(path_beneath_rules([READABLE], AccessFs::ReadFile))?
        .restrict_self()?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Walls::Whole,
        RulesetStatus::PartiallyEnforced => Walls::Partial,
        RulesetStatus::NotEnforced => Walls::None,
    })
}

//! Direct execution: guest user code that computes for long runs as it is, in a process of its own.
//!
//! Translated code pays at every memory access and every jump; user code that neither calls its kernel nor faults need not. Such
//! phases move to a *runner*: a process whose address space is the guest's, made of shared mappings of machine memory, with a
//! seccomp filter that lets no system call through. Whatever stops it (a system call, a fault that the guest's tables do not
//! allow, a request) brings the registers back, and the translator goes on at the same instruction: it alone knows what the
//! instruction means. So nothing of the guest ABI is here; `docs/design/0007-direct-execution.md` has the argument.
//!
//! | file | subject |
//! |---|---|
//! | `policy.rs` | when it pays |
//! | `run.rs` | a run, from the vCPU's side |
//! | `space.rs`, `plan.rs` | what of the guest's address space is mapped; the calls for it |
//! | `scan.rs` | code that must not run directly |
//! | `frame.rs`, `layout.rs` | registers in the signal frame; addresses |
//! | `runner_unsafe.rs`, `stub_unsafe.rs`, `nursery_unsafe.rs`, `shed_unsafe.rs` | the process: our side, its side, its birth |
//! | `filter.rs`, `messages_unsafe.rs`, `host_unsafe.rs` | its seccomp filter; descriptors over sockets; small host calls |

mod filter;
mod frame;
mod host_unsafe;
mod layout;
mod messages_unsafe;
mod nursery_unsafe;
mod plan;
mod policy;
mod run;
mod runner_unsafe;
mod scan;
mod shed_unsafe;
mod space;
mod stub_unsafe;

use std::sync::Arc;

use ring3_machine::{Machine, Mfn};

use host_unsafe::Bound;
pub use host_unsafe::kick;
pub use nursery_unsafe::Nursery;
pub use policy::DirectPolicy;
use policy::Pace;
pub use scan::{Examined, examine};
pub use shed_unsafe::open_maps;
use space::{Epoch, Space};

use crate::host_unsafe::{auxiliary_value, has_fsgsbase};

/// The signal that makes a runner leave guest code.
const KICK: i32 = libc::SIGURG;
/// Runners of a vCPU: as many processes of the guest can compute in turns without losing their mappings.
const MAX_SPACES: usize = 4;

/// What a vCPU has for direct execution.
#[derive(Debug, Default)]
pub struct Direct {
    /// `None`: this host or the user does without.
    nursery: Option<Arc<Nursery>>,
    policy: DirectPolicy,
    /// Least recently used first.
    spaces: Vec<Space>,
    epoch: Epoch,
    pace: Pace,
    /// The user page table whose code runs directly at present.
    wanted: Option<Mfn>,
    bound: Option<Bound>,
    /// Time of the present run that the runner had, in TSC ticks.
    running: u64,
}

impl Direct {
    pub fn new(nursery: Option<Arc<Nursery>>, policy: DirectPolicy) -> Self {
        Self { nursery, policy, ..Self::default() }
    }

    /// The TLB was flushed, in whole or in part.
    pub fn note_flush(&mut self) {
        self.epoch.tables += 1;
    }

    /// A frame was marked as code, or code of a frame was dropped.
    pub fn note_code(&mut self) {
        self.epoch.code += 1;
    }

    /// User code left for its kernel.
    pub fn note_kernel_entry(&mut self) {
        self.pace.kernel_entries += 1;
    }

    /// Gives the thread back the CPUs that it was kept from.
    pub fn unbind(&mut self) {
        if let Some(bound) = self.bound.take() {
            bound.release();
        }
    }
}

/// Whether this host runs user code directly, and if not, why.
///
/// # Errors
/// What a runner lacks.
pub fn check(machine: &Machine) -> Result<(), String> {
    let nursery = start_nursery().ok_or("no FSGSBASE, or a signal frame too large for the stub")?;
    runner_unsafe::Runner::start(&nursery, machine.memfd()).map(|_| ()).map_err(|error| error.to_string())
}

/// A nursery, where the host has what direct execution needs.
pub fn start_nursery() -> Option<Arc<Nursery>> {
    const AT_MINSIGSTKSZ: u64 = 51;
    // Without room for the frame, or without FSGSBASE, everything is translated, which is slower and nothing else.
    let fits = auxiliary_value(AT_MINSIGSTKSZ) <= layout::STACK_BYTES / 2;
    (has_fsgsbase() && fits).then(Nursery::start)?.ok().map(Arc::new)
}

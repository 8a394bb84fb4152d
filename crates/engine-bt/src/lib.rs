//! The binary translation engine: guest x86-64 to host x86-64, in an ordinary process.
//!
//! README.md in this crate follows one block from decode to execution.

#![allow(
    clippy::cast_possible_truncation,
    reason = "the emitter takes numbers apart into bytes and fields all the time"
)]

mod cache;
mod direct;
mod dispatch;
mod emit;
mod fault;
mod host_unsafe;
mod interp;
mod jumps;
mod state;
mod tlb;
mod translate;
#[cfg(any(debug_assertions, feature = "verify"))]
mod verify;

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use ring3_engine::{DomainEngine, Engine, Error};
use ring3_machine::{Machine, Mfn};

pub use direct::{DirectPolicy, check as check_direct, open_maps};
pub use dispatch::{BtDomain, BtVcpu};

/// Opens the file of `RING3_PERF_MAP`, if that is set: before the process loses the file system.
pub fn open_perf_map() {
    let _ = cache::open_perf_map();
}

/// For the differential test, which asks what the policy shows.
#[doc(hidden)]
pub use translate::{Kind, classify};

/// The engine, as registered.
#[derive(Debug)]
pub struct BtEngine {
    shared: Arc<Shared>,
}

/// What all domains of an engine know.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    domains: Mutex<Vec<Weak<BtDomain>>>,
    /// `None` where nothing runs directly.
    pub(crate) nursery: Option<Arc<direct::Nursery>>,
    pub(crate) direct_policy: DirectPolicy,
}

impl Shared {
    /// See [`Engine::invalidate_code`].
    fn invalidate_code(&self, mfn: Mfn) {
        let domains: Vec<_> = {
            let mut all = self.domains.lock();
            all.retain(|d| d.strong_count() > 0);
            all.iter().filter_map(Weak::upgrade).collect()
        };
        // Every domain of an engine shares one machine; the mark is cleared first, so that a translator that saw it
        // set has entered its block by the time the block is looked for.
        if domains.first().is_some_and(|d| d.machine().code().clear(mfn)) {
            for domain in domains {
                domain.drop_frame(mfn);
            }
        }
    }
}

impl BtEngine {
    /// Checks the host and prepares it. User code that computes runs directly where the host allows that, unless
    /// `RING3_DIRECT=never` is in the environment.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the host lacks what the engine needs, [`Error::Host`].
    pub fn new() -> Result<Self, Error> {
        let is_off = std::env::var_os("RING3_DIRECT").is_some_and(|value| value == "never");
        Self::with_policy(if is_off { DirectPolicy::Never } else { DirectPolicy::Measured })
    }

    /// As [`BtEngine::new`], with a policy for direct execution.
    ///
    /// # Errors
    /// As [`BtEngine::new`].
    pub fn with_policy(direct_policy: DirectPolicy) -> Result<Self, Error> {
        fault::install()?;
        let nursery = if direct_policy == DirectPolicy::Never { None } else { direct::start_nursery() };
        Ok(Self { shared: Arc::new(Shared { nursery, direct_policy, ..Shared::default() }) })
    }
}

impl Engine for BtEngine {
    fn name(&self) -> &'static str {
        "bt"
    }

    fn create_domain(&self, machine: &Arc<Machine>) -> Result<Arc<dyn DomainEngine>, Error> {
        let domain = BtDomain::new(machine, &self.shared)?;
        self.shared.domains.lock().push(Arc::downgrade(&domain));
        Ok(domain)
    }

    fn invalidate_code(&self, mfn: Mfn) {
        self.shared.invalidate_code(mfn);
    }
}

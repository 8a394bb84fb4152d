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
mod flag_word;
mod host_unsafe;
mod interp;
mod jumps;
mod shelf;
mod state;
mod tlb;
mod translate;
#[cfg(any(debug_assertions, feature = "verify"))]
mod verify;

use std::fs::File;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;

use parking_lot::{Mutex, MutexGuard};
use ring3_engine::{DomainEngine, Engine, Error};
use ring3_machine::{Machine, Mfn};

pub use direct::{DirectPolicy, check as check_direct, open_maps};
pub use dispatch::{BtDomain, BtVcpu};
use shelf::Shelf;

/// Opens the file of `RING3_PERF_MAP`, if that is set: before the process loses the file system.
pub fn open_perf_map() {
    let _ = cache::open_perf_map();
}

#[doc(hidden)]
pub use host_unsafe::decoder_options;
/// For the differential test, which asks what the policy shows.
#[doc(hidden)]
pub use translate::{Kind, classify, is_word_branch, segment_name};

/// The engine, as registered.
#[derive(Debug)]
pub struct BtEngine {
    shared: Arc<Shared>,
}

/// What all domains of an engine know.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    domains: Mutex<Vec<Weak<BtDomain>>>,
    /// Held while a frame is marked as code, each for a part of the frames. Nobody waits for one inside the guest.
    marking: [Mutex<()>; 32],
    /// `None` where nothing runs directly.
    pub(crate) nursery: Option<Arc<direct::Nursery>>,
    pub(crate) direct_policy: DirectPolicy,
    pub(crate) follows_all: bool,
    /// Room for the translated code of each domain.
    pub(crate) cache_bytes: usize,
    /// What earlier runs left, and how many new blocks are worth another archive.
    pub(crate) shelf: Shelf,
    pub(crate) archive_min_blocks: u64,
    /// Who is writing archives.
    pub(crate) keepers: Mutex<Vec<JoinHandle<()>>>,
    /// What domains have counted that are no more.
    pub(crate) gone: Mutex<cache::Counters>,
}

impl Shared {
    /// The domains that there are.
    pub(crate) fn domains(&self) -> Vec<Arc<BtDomain>> {
        let mut all = self.domains.lock();
        all.retain(|d| d.strong_count() > 0);
        all.iter().filter_map(Weak::upgrade).collect()
    }

    /// Excludes others who mark the frame as code, of whatever domain.
    pub(crate) fn lock_marking(&self, mfn: Mfn) -> Option<MutexGuard<'_, ()>> {
        self.marking.get(mfn.0 as usize % self.marking.len()).map(Mutex::lock)
    }

    /// See [`Engine::invalidate_code`].
    fn invalidate_code(&self, mfn: Mfn) {
        let domains = self.domains();
        // Every domain of an engine shares one machine; the mark is cleared first, so that a translator that saw it
        // set has entered its block by the time the block is looked for.
        if domains.first().is_some_and(|d| d.machine().code().clear(mfn)) {
            for domain in domains {
                domain.drop_frame(mfn);
            }
        }
    }
}

/// What an engine may be told.
#[derive(Debug)]
pub struct Options {
    /// Which user code runs directly.
    pub direct: DirectPolicy,
    /// Look for a loop (see `translate::trace`) at each jump that is taken for the first time. For tests.
    pub follows_all: bool,
    /// Room for the translated code of each domain.
    pub cache_bytes: usize,
    /// Files, open for reading and writing, in which kernels' translations are kept between runs: of this build of the
    /// engine and this host's CPU only. Whoever can write to them can have any code run in this process.
    pub archives: Vec<File>,
    /// New blocks that an archive is written for.
    pub archive_min_blocks: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            direct: DirectPolicy::default(),
            follows_all: false,
            cache_bytes: cache::DEFAULT_BYTES,
            archives: Vec::new(),
            archive_min_blocks: 4096,
        }
    }
}

impl Options {
    /// As the environment has it: `RING3_DIRECT=never` has no user code run directly, `RING3_CODE_CACHE_MIB` is the room for
    /// each domain's translated code.
    pub fn from_environment() -> Self {
        let is_off = std::env::var_os("RING3_DIRECT").is_some_and(|value| value == "never");
        let mib = std::env::var("RING3_CODE_CACHE_MIB").ok().and_then(|value| value.parse::<usize>().ok());
        Self {
            direct: if is_off { DirectPolicy::Never } else { DirectPolicy::Measured },
            cache_bytes: mib.map_or(cache::DEFAULT_BYTES, |mib| mib.saturating_mul(1 << 20)),
            ..Self::default()
        }
    }
}

impl BtEngine {
    /// Checks the host and prepares it, as the environment has it.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if the host lacks what the engine needs, [`Error::Host`].
    pub fn new() -> Result<Self, Error> {
        Self::with_options(Options::from_environment())
    }

    /// As [`BtEngine::new`], with options.
    ///
    /// # Errors
    /// As [`BtEngine::new`].
    pub fn with_options(options: Options) -> Result<Self, Error> {
        fault::install()?;
        let nursery = if options.direct == DirectPolicy::Never { None } else { direct::start_nursery() };
        let shelf = Shelf::new(options.archives);
        let Options { direct: direct_policy, follows_all, cache_bytes, archive_min_blocks, .. } = options;
        let shared =
            Shared { nursery, direct_policy, follows_all, cache_bytes, shelf, archive_min_blocks, ..Shared::default() };
        Ok(Self { shared: Arc::new(shared) })
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

    fn finish(&self) {
        let keepers = std::mem::take(&mut *self.shared.keepers.lock());
        for keeper in keepers {
            // One that panicked has kept nothing, which costs the next start time only.
            let _ = keeper.join();
        }
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let domains: Vec<_> = self.shared.domains.lock().iter().filter_map(Weak::upgrade).collect();
        let mut sum = *self.shared.gone.lock();
        for domain in domains {
            sum.add(domain.cache().counters());
        }
        sum.named()
    }
}

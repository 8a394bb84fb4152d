//! When a domain's blocks come out of an archive, and when they go into one.
//!
//! Which archive is asked by the first page that the domain executes: that tells kernels apart. Most often it is the one that
//! was written last, which so is unpacked while the domain is built. It goes back when the domain falls idle, most of all
//! after its kernel's start, and when it ends.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use ring3_machine::{Mfn, PAGE_SIZE_BYTES};

use super::domain::BtDomain;
use crate::Shared;
use crate::cache::{Addition, Cache, Outline, Unpacked};
use crate::shelf::{self, checksum};

/// What a domain knows of its archive.
#[derive(Debug)]
pub(super) struct Archive {
    identity: OnceLock<u64>,
    expected: Mutex<Option<Expected>>,
}

/// An archive that is being unpacked, and its code put in its place.
#[derive(Debug)]
struct Expected {
    /// Whether that must do.
    is_wanted: Arc<AtomicBool>,
    /// Returns its identity, too.
    thread: JoinHandle<Option<(u64, Unpacked)>>,
}

impl Archive {
    /// Of a new domain, which has this cache.
    pub(super) fn expecting(shared: &Arc<Shared>, cache: &Cache) -> Self {
        let expected = cache.has_archive.then(|| Expected::begin(Arc::clone(shared), cache.outline()));
        Self { identity: OnceLock::new(), expected: Mutex::new(expected.and_then(Result::ok)) }
    }
}

impl Expected {
    fn begin(shared: Arc<Shared>, outline: Outline) -> io::Result<Self> {
        let is_wanted = Arc::new(AtomicBool::new(false));
        let is_wanted_now = Arc::clone(&is_wanted);
        let unpack = move || {
            let (identity, body) = shared.shelf.newest()?;
            let mut unpacked = outline.unpack(body)?;
            outline.fill(&mut unpacked, &is_wanted_now);
            Some((identity, unpacked))
        };
        let thread = std::thread::Builder::new().name("archive".to_owned()).spawn(unpack)?;
        Ok(Self { is_wanted, thread })
    }

    /// Waits for it.
    fn finish(self) -> Option<(u64, Unpacked)> {
        self.is_wanted.store(true, Ordering::Relaxed);
        self.thread.join().ok()?
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        if let Some(expected) = self.expected.get_mut() {
            expected.is_wanted.store(true, Ordering::Relaxed);
        }
    }
}

impl BtDomain {
    /// Puts back what an earlier run left of this kernel, before the domain's first instruction, which is on `mfn`.
    pub(super) fn put_archive_back(&self, mfn: Mfn) {
        let shelf = &self.shared().shelf;
        if shelf.is_empty() || self.archive().identity.get().is_some() {
            return;
        }
        self.archive().identity.get_or_init(|| {
            let mut page = [0; PAGE_SIZE_BYTES];
            let _ = self.machine().read(mfn, 0, &mut page);
            // Blocks differ with what the policy hides.
            let identity = checksum(&page) ^ self.hidden().0.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let found = match self.archive().expected.lock().take().and_then(Expected::finish) {
                Some((expected, unpacked)) if expected == identity => Some(unpacked),
                other => {
                    if other.is_some() {
                        self.cache().discard();
                    }
                    let outline = self.cache().outline();
                    shelf.find(identity).and_then(|body| outline.unpack(body))
                }
            };
            if let Some(unpacked) = found {
                self.cache().put_back(unpacked);
            }
            identity
        });
    }

    /// What of the kernel's blocks later runs should have, if there is enough that is new.
    pub(super) fn archive_addition(&self) -> Option<Addition> {
        let cache = self.cache();
        let has_place = self.archive().identity.get().is_some() && !self.shared().shelf.is_empty();
        let is_wanted = has_place && !cache.is_draining() && cache.is_worth_keeping(self.shared().archive_min_blocks);
        is_wanted.then(|| cache.to_archive())
    }

    /// Keeps it, by a thread of its own.
    pub(super) fn keep_archive(&self, addition: Addition) {
        let Some(&identity) = self.archive().identity.get() else { return };
        let shared = Arc::clone(self.shared());
        let keep = move || {
            let former = if addition.needs_former() { shared.shelf.find(identity) } else { None };
            let body = addition.follow(former.as_ref().map(AsRef::as_ref));
            drop(former); // a file in use is not written to
            if let Some(body) = body.filter(|body| body.len() <= shelf::MAX_BYTES) {
                // What cannot be kept, because another machine has the file or the disk is full, costs the next start time only.
                let _ = shared.shelf.keep(identity, &body);
            }
        };
        if let Ok(keeper) = std::thread::Builder::new().name("archive".to_owned()).spawn(keep) {
            let mut keepers = self.shared().keepers.lock();
            keepers.retain(|keeper| !keeper.is_finished());
            keepers.push(keeper);
        }
    }
}

//! What the vCPUs of a domain share: the code cache.
//!
//! Lock order: `Shared::marking`, then the cache's lock, which is innermost; nobody waits for a vCPU while holding that.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use ring3_engine::{Config, DomainEngine, Error, Features, Requests, Vcpu, VcpuControl};
use ring3_machine::{Machine, Mfn, PAGE_SIZE_BYTES};

use super::archive::Archive;
use super::exclusive::Exclusive;
use super::state_unsafe::slow_access_address;
use super::vcpu::BtVcpu;
use crate::Shared;
use crate::cache::Cache;
use crate::direct::{Direct, Examined, examine};
use crate::fault;
use crate::state::Control;

/// The engine's part of a domain.
#[derive(Debug)]
pub struct BtDomain {
    machine: Arc<Machine>,
    shared: Arc<Shared>,
    this: Weak<BtDomain>,
    cache: Mutex<Cache>,
    vcpus: Mutex<Vec<Weak<Control>>>,
    exclusive: Exclusive,
    /// Frames that runners may execute from, and how. Each is marked as code.
    direct_code: Mutex<HashMap<Mfn, Examined>>,
    /// See [`DomainEngine::hide`].
    hidden: AtomicU64,
    archive: Archive,
    range: (u64, u64),
}

impl BtDomain {
    /// # Errors
    /// [`Error::Host`].
    pub(crate) fn new(machine: &Arc<Machine>, shared: &Arc<Shared>) -> Result<Arc<Self>, Error> {
        let avx = std::arch::is_x86_feature_detected!("avx");
        let mut cache = Cache::new(shared.cache_bytes, slow_access_address(), avx)?;
        cache.has_archive = !shared.shelf.is_empty();
        let archive = Archive::expecting(shared, &cache);
        let range = cache.range();
        if !fault::register_range(range.0, range.1) {
            let source = std::io::Error::from(std::io::ErrorKind::OutOfMemory);
            return Err(Error::Host { what: "a slot for one more domain's code", source });
        }
        Ok(Arc::new_cyclic(|this| Self {
            machine: Arc::clone(machine),
            shared: Arc::clone(shared),
            this: Weak::clone(this),
            cache: Mutex::new(cache),
            vcpus: Mutex::new(Vec::new()),
            exclusive: Exclusive::default(),
            direct_code: Mutex::default(),
            hidden: AtomicU64::new(0),
            archive,
            range,
        }))
    }

    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    pub(super) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(super) fn archive(&self) -> &Archive {
        &self.archive
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock()
    }

    /// What the domain's policy hides of the host's instructions.
    pub(super) fn hidden(&self) -> Features {
        Features(self.hidden.load(Ordering::SeqCst))
    }

    pub(super) fn exclusive(&self) -> &Exclusive {
        &self.exclusive
    }

    pub(super) fn controls(&self) -> Vec<Arc<Control>> {
        self.vcpus.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Makes every vCPU serve `requests`, or be out of the guest. The caller's own vCPU is out of the guest.
    fn sync(&self, requests: Requests) {
        for control in self.controls() {
            control.request_and_wait(requests);
        }
    }

    /// Forgets the code of a frame; returns when nobody executes it any more.
    pub(crate) fn drop_frame(&self, mfn: Mfn) {
        let was_translated = self.cache.lock().drop_frame(mfn);
        let ran_directly = self.direct_code.lock().remove(&mfn).is_some();
        if ran_directly {
            self.sync(Requests::FLUSH_CODE);
        } else if was_translated {
            // What the jump caches know of the frame leads to a lookup from now on.
            self.sync(Requests::SYNC);
        }
    }

    /// See [`ring3_engine::Engine::invalidate_code`].
    pub(crate) fn invalidate(&self, mfn: Mfn) {
        self.shared.invalidate_code(mfn);
    }

    /// Marks a frame as holding code; afterwards no vCPU but `except` has write access cached: of this domain, or of any if
    /// others may map the frame.
    pub(crate) fn mark_code(&self, mfn: Mfn, except: &Arc<Control>) {
        // Who finds the mark of somebody that still waits does so too: until then a store may go by unseen.
        let _marking = self.shared.lock_marking(mfn);
        let code = self.machine.code();
        if !code.is_settled(mfn) {
            code.mark(mfn);
            let controls = if code.is_shared(mfn) {
                self.shared.domains().iter().flat_map(|domain| domain.controls()).collect()
            } else {
                self.controls()
            };
            for control in controls.iter().filter(|c| !Arc::ptr_eq(c, except)) {
                control.request_and_wait(Requests::PROTECT_CODE);
            }
            code.settle(mfn);
        }
    }

    /// What a new vCPU has for direct execution.
    pub(crate) fn new_direct(&self) -> Direct {
        Direct::new(self.shared.nursery.clone(), self.shared.direct_policy)
    }

    /// Has stores to a frame watched, and looks whether its code may run directly. Returns whether it was not watched
    /// before; the vCPU of `except` must drop write access itself then. The caller is out of the guest.
    pub(crate) fn prepare_direct(&self, mfn: Mfn, except: &Arc<Control>) -> bool {
        if self.machine.code().has_writer(mfn) || self.direct_code.lock().contains_key(&mfn) {
            return false;
        }
        self.mark_code(mfn, except);
        let mut page = [0u8; PAGE_SIZE_BYTES];
        let examined = if self.machine.read(mfn, 0, &mut page).is_ok() { examine(&page) } else { Examined::REFUSED };
        let mut known = self.direct_code.lock();
        // A store since then has cleared the mark first, and finds the entry only if it is made while the mark is set.
        if self.machine.code().is_settled(mfn) && !self.machine.code().has_writer(mfn) {
            known.insert(mfn, examined);
        }
        true
    }

    /// How the code of a frame may run directly: not at all unless it was prepared.
    pub(crate) fn examined(&self, mfn: Mfn) -> Examined {
        self.direct_code.lock().get(&mfn).cloned().unwrap_or(Examined::REFUSED)
    }

    /// Makes room in the cache, at the expense of its oldest blocks. The caller is out of the guest.
    pub(crate) fn make_room(&self) {
        {
            let mut cache = self.cache.lock();
            if cache.is_draining() || !cache.begin_eviction() {
                return;
            }
        }
        self.sync(Requests::EVICT_CODE);
        self.cache.lock().finish_eviction();
    }

    /// Drops all translated code. The caller is out of the guest.
    fn reset(&self) {
        self.reset_and(|_| ());
    }

    /// As `reset`; `work` finds the cache empty, before a vCPU fills it anew. Returns whether it could be emptied.
    fn reset_and(&self, work: impl FnOnce(&mut Cache)) -> bool {
        {
            let mut cache = self.cache.lock();
            if cache.is_draining() {
                return false;
            }
            cache.begin_reset();
        }
        self.sync(Requests::FLUSH_CODE);
        let mut cache = self.cache.lock();
        cache.finish_reset();
        work(&mut cache);
        true
    }
}

/// Code that an idle domain may keep.
const IDLE_CODE_BYTES: usize = 4 << 20;

impl DomainEngine for BtDomain {
    fn create_vcpu(&self, id: u32, config: &Config) -> Result<Box<dyn Vcpu>, Error> {
        let domain = self.this.upgrade().ok_or_else(|| Error::Host {
            what: "a domain that is going",
            source: std::io::Error::from(std::io::ErrorKind::NotFound),
        })?;
        let vcpu = BtVcpu::new(domain, id, config);
        self.vcpus.lock().push(Arc::downgrade(vcpu.shared_control()));
        Ok(Box::new(vcpu))
    }

    fn hide(&self, features: Features) {
        self.hidden.store(features.0, Ordering::SeqCst);
        self.cache.lock().hidden = features;
        self.forget_code();
    }

    fn forget_code(&self) {
        let known: Vec<Mfn> = self.direct_code.lock().drain().map(|(mfn, _)| mfn).collect();
        if !known.is_empty() || self.cache.lock().used() > 0 {
            self.reset();
        }
    }

    /// Gives the code's memory back: most of it is the kernel's start, which it will not need again.
    fn note_idle(&self) -> bool {
        if self.cache.lock().used() <= IDLE_CODE_BYTES {
            return true;
        }
        let addition = self.archive_addition();
        let is_done = self.reset_and(|cache| {
            cache.discard();
            if let Some(addition) = &addition {
                cache.go_on_behind(addition);
            }
        });
        if let Some(addition) = addition.filter(|_| is_done) {
            self.keep_archive(addition);
        }
        is_done
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        self.cache.lock().counters().named()
    }
}

impl Drop for BtDomain {
    fn drop(&mut self) {
        if let Some(addition) = self.archive_addition() {
            self.keep_archive(addition);
        }
        fault::unregister_range(self.range.0);
        let counters = self.cache.get_mut().counters();
        self.shared.gone.lock().add(counters);
    }
}

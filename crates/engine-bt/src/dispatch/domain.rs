//! What the vCPUs of a domain share: the code cache.
//!
//! Lock order: the cache's lock is innermost; nobody waits for a vCPU while holding it.

use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use ring3_engine::{Config, DomainEngine, Error, Requests, Vcpu, VcpuControl};
use ring3_machine::{Machine, Mfn};

use super::state_unsafe::slow_access_address;
use super::vcpu::BtVcpu;
use crate::Shared;
use crate::cache::Cache;
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
    range: (u64, u64),
}

impl BtDomain {
    /// # Errors
    /// [`Error::Host`].
    pub(crate) fn new(machine: &Arc<Machine>, shared: &Arc<Shared>) -> Result<Arc<Self>, Error> {
        let cache = Cache::new(slow_access_address(), std::arch::is_x86_feature_detected!("avx"))?;
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
            range,
        }))
    }

    pub fn machine(&self) -> &Arc<Machine> {
        &self.machine
    }

    pub(crate) fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock()
    }

    fn controls(&self) -> Vec<Arc<Control>> {
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
        if self.cache.lock().drop_frame(mfn) {
            self.sync(Requests::FLUSH_CODE);
        }
    }

    /// See [`ring3_engine::Engine::invalidate_code`].
    pub(crate) fn invalidate(&self, mfn: Mfn) {
        self.shared.invalidate_code(mfn);
    }

    /// Marks a frame as holding code; afterwards no vCPU of this domain but `except` has write access cached.
    pub(crate) fn mark_code(&self, mfn: Mfn, except: &Arc<Control>) {
        if !self.machine.code().mark(mfn) {
            for control in self.controls().iter().filter(|c| !Arc::ptr_eq(c, except)) {
                control.request_and_wait(Requests::PROTECT_CODE);
            }
        }
    }

    /// Drops all translated code, for room. The caller is out of the guest.
    pub(crate) fn reset(&self) {
        {
            let mut cache = self.cache.lock();
            if cache.is_draining() {
                return;
            }
            cache.begin_reset();
        }
        self.sync(Requests::FLUSH_CODE);
        self.cache.lock().finish_reset();
    }
}

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
}

impl Drop for BtDomain {
    fn drop(&mut self) {
        fault::unregister_range(self.range.0);
    }
}

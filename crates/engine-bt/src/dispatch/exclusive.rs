//! One vCPU of a domain alone: for atomic instructions that no host instruction does atomically, because their operand
//! crosses pages, or is misaligned where it goes by a buffer.
//!
//! Who wants to be alone takes the lock, out of the guest, says so, and has every other vCPU leave the guest. They wait at the
//! lock when they serve the request, and before each access that they do in Rust (`interp`): so nothing of theirs comes
//! between the instruction's load and its store.
//!
//! Lock order: outermost in the engine; who holds it may wait for vCPUs. Nobody waits for it inside the guest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Mutex, MutexGuard};
use ring3_engine::{Requests, VcpuControl};

use super::domain::BtDomain;
use super::vcpu::BtVcpu;
use crate::state::Control;

/// Whether a vCPU is alone, or about to be.
#[derive(Debug, Default)]
pub struct Exclusive {
    lock: Mutex<()>,
    is_wanted: AtomicBool,
}

/// As long as it lives, no other vCPU of the domain is in the guest.
pub(super) struct Alone<'a> {
    exclusive: &'a Exclusive,
    _guard: MutexGuard<'a, ()>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.exclusive.is_wanted.store(false, Ordering::SeqCst);
    }
}

impl Exclusive {
    /// Whether some vCPU is alone, or waits to be.
    pub fn is_wanted(&self) -> bool {
        self.is_wanted.load(Ordering::SeqCst)
    }

    /// Returns once no vCPU is alone.
    pub fn wait(&self) {
        drop(self.lock.lock());
    }
}

impl BtDomain {
    /// Has every vCPU but `me` stay out of the guest. The caller is out of it.
    pub(super) fn make_alone(&self, me: &Arc<Control>) -> Alone<'_> {
        let exclusive = self.exclusive();
        let guard = exclusive.lock.lock();
        exclusive.is_wanted.store(true, Ordering::SeqCst);
        let alone = Alone { exclusive, _guard: guard };
        for control in self.controls().iter().filter(|control| !Arc::ptr_eq(control, me)) {
            control.request_and_wait(Requests::EXCLUSIVE);
        }
        alone
    }
}

impl BtVcpu {
    /// Serves `Requests::EXCLUSIVE`. Called outside the guest.
    pub(super) fn let_others_be_alone(&self) {
        if !self.is_alone {
            self.exclusive().wait();
        }
    }

    /// Enters the guest for one access by Rust; see `interp`.
    pub(crate) fn enter_for_access(&self) {
        loop {
            self.enter_guest();
            if self.is_alone || !self.exclusive().is_wanted() {
                return;
            }
            self.leave_guest();
            self.exclusive().wait();
        }
    }
}

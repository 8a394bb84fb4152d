//! `vcpu_info`: the 64 bytes that a vCPU and the hypervisor share, wherever they are at the moment.
//!
//! Default place: `shared_info.vcpu_info[id]`; `VCPUOP_register_vcpu_info` moves it once.
//! Source: xen/include/public/xen.h, struct vcpu_info.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ring3_machine::{Machine, Mfn, PAGE_SIZE};

const EVTCHN_UPCALL_PENDING: usize = 0;
const EVTCHN_UPCALL_MASK: usize = 1;
const EVTCHN_PENDING_SEL: usize = 8;
const ARCH_CR2: usize = 16;
/// Offset of the `vcpu_time_info` in it.
pub const TIME: usize = 32;
/// Its size in bytes.
pub const SIZE_BYTES: usize = 64;

/// Where one vCPU's `vcpu_info` is, with access to its fields.
#[derive(Debug)]
pub struct InfoArea {
    machine: Arc<Machine>,
    /// Machine address.
    maddr: AtomicU64,
    registered: AtomicBool,
}

impl InfoArea {
    /// At a machine address, 8-byte aligned, wholly within one frame of machine memory.
    pub fn new(machine: Arc<Machine>, maddr: u64) -> Self {
        Self { machine, maddr: AtomicU64::new(maddr), registered: AtomicBool::new(false) }
    }

    /// Frame and offset.
    pub fn place(&self) -> (Mfn, usize) {
        let maddr = self.maddr.load(Ordering::Acquire);
        (Mfn::containing(maddr), (maddr & (PAGE_SIZE - 1)) as usize)
    }

    /// Whether the guest has moved it.
    pub fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Acquire)
    }

    /// Moves it, copying the old content, and marks every event pending, lest one be lost in between.
    /// The caller has checked and holds the frame. Returns whether the move was the first.
    pub fn register(&self, maddr: u64) -> bool {
        if self.registered.swap(true, Ordering::AcqRel) {
            return false;
        }
        let (mfn, offset) = self.place();
        let mut content = [0u8; SIZE_BYTES];
        let _ = self.machine.read(mfn, offset, &mut content);
        let (new_mfn, new_offset) = (Mfn::containing(maddr), (maddr & (PAGE_SIZE - 1)) as usize);
        let _ = self.machine.write(new_mfn, new_offset, &content);
        self.maddr.store(maddr, Ordering::SeqCst);
        self.set_all_pending();
        true
    }

    /// Back to a place in `shared_info`, for a context reset.
    pub fn reset(&self, maddr: u64) {
        self.maddr.store(maddr, Ordering::SeqCst);
        self.registered.store(false, Ordering::SeqCst);
    }

    fn set_all_pending(&self) {
        let (mfn, offset) = self.place();
        if let Ok(selector) = self.machine.word64(mfn, offset + EVTCHN_PENDING_SEL) {
            selector.store(u64::MAX, Ordering::SeqCst);
        }
        self.set_upcall_pending();
    }

    /// Sets `evtchn_upcall_pending`; returns whether it was set before.
    pub fn set_upcall_pending(&self) -> bool {
        let (mfn, offset) = self.place();
        self.machine.byte(mfn, offset + EVTCHN_UPCALL_PENDING).is_ok_and(|b| b.swap(1, Ordering::SeqCst) != 0)
    }

    /// Whether an upcall is due: pending and not masked.
    pub fn is_upcall_due(&self) -> bool {
        let (mfn, offset) = self.place();
        self.machine
            .byte(mfn, offset)
            .is_ok_and(|pending| pending.load(Ordering::SeqCst) != 0 && !self.is_upcall_masked())
    }

    /// Whether `evtchn_upcall_pending` is set.
    pub fn is_upcall_pending(&self) -> bool {
        let (mfn, offset) = self.place();
        self.machine.byte(mfn, offset).is_ok_and(|pending| pending.load(Ordering::SeqCst) != 0)
    }

    /// Whether `evtchn_upcall_mask` is set.
    pub fn is_upcall_masked(&self) -> bool {
        let (mfn, offset) = self.place();
        self.machine.byte(mfn, offset + EVTCHN_UPCALL_MASK).is_ok_and(|mask| mask.load(Ordering::SeqCst) != 0)
    }

    /// Sets `evtchn_upcall_mask`.
    pub fn set_upcall_mask(&self, masked: bool) {
        let (mfn, offset) = self.place();
        if let Ok(mask) = self.machine.byte(mfn, offset + EVTCHN_UPCALL_MASK) {
            mask.store(u8::from(masked), Ordering::SeqCst);
        }
    }

    /// Sets a bit of `evtchn_pending_sel`; returns whether it was set before.
    pub fn set_pending_sel(&self, word: usize) -> bool {
        let (mfn, offset) = self.place();
        let bit = 1u64 << (word & 63);
        self.machine
            .word64(mfn, offset + EVTCHN_PENDING_SEL)
            .is_ok_and(|selector| selector.fetch_or(bit, Ordering::SeqCst) & bit != 0)
    }

    /// Sets `arch.cr2`.
    pub fn set_cr2(&self, cr2: u64) {
        let (mfn, offset) = self.place();
        if let Ok(word) = self.machine.word64(mfn, offset + ARCH_CR2) {
            word.store(cr2, Ordering::Relaxed);
        }
    }
}

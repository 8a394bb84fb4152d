//! Who runs next. No locks, no threads, no clock: the scheduler's lock is held by the caller, and `now` is an argument.
//!
//! vCPUs are ordered by the time that they had (`Vcpu::vtime_ns`), so that who slept or waited runs before who ran. A
//! sleeper does not save up more than a little. Who yields stands last, and names who should run in its place: the one
//! that it may be waiting for.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::vcpu::{Leave, Vcpu};

/// How long a vCPU runs while others wait: at most, and at least. In between it is what gives everybody a turn within
/// `TURN_NS`.
const SLICE_MAX_NS: u64 = 10_000_000;
const SLICE_MIN_NS: u64 = 2_000_000;
const TURN_NS: u64 = 24_000_000;
/// What a sleeper may be ahead of who runs.
const WAKE_CREDIT_NS: u64 = 5_000_000;
/// How far behind a waking vCPU somebody must be to be preempted at once.
const WAKE_GRANULARITY_NS: u64 = 1_000_000;

/// A vCPU on a pCPU.
#[derive(Debug, Clone)]
struct Current {
    vcpu: Arc<Vcpu>,
    since_ns: u64,
    /// It was told to leave.
    is_leaving: bool,
}

impl Current {
    fn ran_ns(&self, now_ns: u64) -> u64 {
        now_ns.saturating_sub(self.since_ns)
    }

    fn vtime_ns(&self, now_ns: u64) -> u64 {
        vtime(&self.vcpu) + self.ran_ns(now_ns)
    }
}

/// The run queue and what runs.
#[derive(Debug)]
pub(super) struct Queue {
    /// In order of virtual time.
    ready: VecDeque<Arc<Vcpu>>,
    /// Of those that are ready, who runs next whatever the order.
    hint: Option<Arc<Vcpu>>,
    running: Vec<Option<Current>>,
    /// No runnable vCPU is below it; it never falls.
    floor_ns: u64,
}

fn vtime(vcpu: &Vcpu) -> u64 {
    vcpu.vtime_ns.load(Ordering::Relaxed)
}

impl Queue {
    pub fn new(nr_pcpus: usize) -> Self {
        Self { ready: VecDeque::new(), hint: None, running: vec![None; nr_pcpus], floor_ns: 0 }
    }

    pub fn nr_ready(&self) -> usize {
        self.ready.len()
    }

    fn insert(&mut self, vcpu: &Arc<Vcpu>) {
        let mine = vtime(vcpu);
        let place = self.ready.partition_point(|other| vtime(other) <= mine);
        self.ready.insert(place, Arc::clone(vcpu));
        vcpu.queued.store(true, Ordering::SeqCst);
    }

    /// Takes a vCPU out, if it is in.
    pub fn remove(&mut self, vcpu: &Arc<Vcpu>) {
        if vcpu.queued.swap(false, Ordering::SeqCst) {
            self.ready.retain(|other| !Arc::ptr_eq(other, vcpu));
        }
        if self.hint.as_ref().is_some_and(|hint| Arc::ptr_eq(hint, vcpu)) {
            self.hint = None;
        }
    }

    /// Takes out who runs next.
    pub fn pop(&mut self) -> Option<Arc<Vcpu>> {
        let hint = self.hint.take().filter(|hint| hint.queued.load(Ordering::SeqCst));
        let next = hint.or_else(|| self.ready.front().cloned())?;
        self.remove(&next);
        Some(next)
    }

    /// A vCPU that ran before, or sleeps no more, waits for a pCPU. Returns who should leave its pCPU for it at once.
    pub fn wake(&mut self, vcpu: &Arc<Vcpu>, now_ns: u64) -> Option<Arc<Vcpu>> {
        self.raise_floor(now_ns);
        vcpu.vtime_ns.fetch_max(self.floor_ns.saturating_sub(WAKE_CREDIT_NS), Ordering::Relaxed);
        self.insert(vcpu);
        if self.running.iter().any(Option::is_none) {
            return None;
        }
        let staying = self.running.iter_mut().flatten().filter(|current| !current.is_leaving);
        let last = staying.max_by_key(|current| current.vtime_ns(now_ns))?;
        if last.vtime_ns(now_ns) <= vtime(vcpu) + WAKE_GRANULARITY_NS {
            return None;
        }
        last.is_leaving = true;
        Some(Arc::clone(&last.vcpu))
    }

    fn raise_floor(&mut self, now_ns: u64) {
        let running = self.running.iter().flatten().map(|current| current.vtime_ns(now_ns));
        let least = running.chain(self.ready.front().map(|vcpu| vtime(vcpu))).min();
        self.floor_ns = self.floor_ns.max(least.unwrap_or(0));
    }

    /// A vCPU was put on a pCPU.
    pub fn start(&mut self, pcpu: usize, vcpu: &Arc<Vcpu>, now_ns: u64) {
        vcpu.is_spinning.store(false, Ordering::Relaxed);
        if let Some(slot) = self.running.get_mut(pcpu) {
            *slot = Some(Current { vcpu: Arc::clone(vcpu), since_ns: now_ns, is_leaving: false });
        }
    }

    /// A vCPU left its pCPU.
    pub fn end(&mut self, pcpu: usize, vcpu: &Arc<Vcpu>, why: Leave, now_ns: u64) {
        self.raise_floor(now_ns);
        if let Some(current) = self.running.get_mut(pcpu).and_then(Option::take) {
            vcpu.vtime_ns.fetch_add(current.ran_ns(now_ns), Ordering::Relaxed);
        }
        if why == Leave::Yielded {
            vcpu.is_spinning.store(true, Ordering::Relaxed);
            if let Some(last) = self.ready.back() {
                vcpu.vtime_ns.fetch_max(vtime(last), Ordering::Relaxed);
            }
            self.hint = self.awaited_by(vcpu).or(self.hint.take());
        }
        if vcpu.is_runnable() && !vcpu.queued.load(Ordering::SeqCst) {
            self.insert(vcpu);
        }
    }

    /// Who a vCPU that spins may be waiting for: one of its domain that has an event to handle, else one that was stopped
    /// in its kernel and was not waiting itself.
    fn awaited_by(&self, vcpu: &Vcpu) -> Option<Arc<Vcpu>> {
        let others = || self.ready.iter().filter(|other| other.domain.ptr_eq(&vcpu.domain) && other.id != vcpu.id);
        let may_hold_a_lock = |other: &&Arc<Vcpu>| {
            other.left_in_kernel.load(Ordering::Relaxed) && !other.is_spinning.load(Ordering::Relaxed)
        };
        others().find(|other| other.info.is_upcall_due()).or_else(|| others().find(may_hold_a_lock)).cloned()
    }

    /// The time slice while as many wait as do now.
    fn slice_ns(&self) -> u64 {
        let nr_turns = self.ready.len().div_ceil(self.running.len().max(1)) + 1;
        (TURN_NS / nr_turns as u64).clamp(SLICE_MIN_NS, SLICE_MAX_NS)
    }

    /// When the next time slice ends; none does, if nobody waits.
    pub fn next_end(&self) -> Option<u64> {
        let staying = self.running.iter().flatten().filter(|current| !current.is_leaving);
        let first = staying.map(|current| current.since_ns).min()?;
        (!self.ready.is_empty()).then(|| first + self.slice_ns())
    }

    /// Who has a pCPU.
    pub fn running(&self) -> Vec<Arc<Vcpu>> {
        self.running.iter().flatten().map(|current| Arc::clone(&current.vcpu)).collect()
    }

    /// Whose time slice is over: they should leave now.
    pub fn expire(&mut self, now_ns: u64) -> Vec<Arc<Vcpu>> {
        let mut over = Vec::new();
        while self.next_end().is_some_and(|end| end <= now_ns) {
            let staying = self.running.iter_mut().flatten().filter(|current| !current.is_leaving);
            let Some(first) = staying.min_by_key(|current| current.since_ns) else { break };
            first.is_leaving = true;
            over.push(Arc::clone(&first.vcpu));
        }
        over
    }
}

//! The scheduler: one run queue (`queue.rs` says who is next), one worker thread for each pCPU.
//!
//! A vCPU's scheduling fields change under the queue's lock, except `blocked`, which its own thread sets and any
//! waker clears: the one that clears it queues the vCPU. Lock order: the queue's lock is innermost but for the timers'.

mod patience;
mod queue;
#[cfg(test)]
mod tests;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};
use ring3_engine::Requests;

use crate::hypervisor::Hypervisor;
use crate::vcpu::Vcpu;
use patience::Patience;
use queue::Queue;

pub(crate) use worker::{run_timers, run_worker};

#[derive(Debug)]
struct Shared {
    queue: Queue,
    nr_idle: usize,
    /// Whether one of the idle workers looks at `nr_ready` before it sleeps.
    is_looking: bool,
    patience: Patience,
    /// When a vCPU was queued last while a worker was idle.
    wanted_at_ns: u64,
    stopping: bool,
}

/// Run queue and workers' meeting point.
#[derive(Debug)]
pub struct Scheduler {
    shared: Mutex<Shared>,
    /// vCPUs in the queue, to be looked at without its lock.
    nr_ready: AtomicUsize,
    work: Condvar,
    descheduled: Condvar,
}

/// How often vCPUs that run are sampled.
const SAMPLE_NS: u64 = 4_000_000;

/// When to look again at what runs, given the end of a time slice.
fn next_tick(slice_end: Option<u64>, now_ns: u64) -> u64 {
    let sample = now_ns + SAMPLE_NS;
    slice_end.map_or(sample, |end| end.min(sample))
}

impl Scheduler {
    /// For `nr_pcpus` workers.
    pub fn new(nr_pcpus: usize) -> Self {
        Self {
            shared: Mutex::new(Shared {
                queue: Queue::new(nr_pcpus),
                nr_idle: 0,
                is_looking: false,
                patience: Patience::default(),
                wanted_at_ns: 0,
                stopping: false,
            }),
            nr_ready: AtomicUsize::new(0),
            work: Condvar::new(),
            descheduled: Condvar::new(),
        }
    }

    fn count_ready(&self, queue: &Queue) {
        self.nr_ready.store(queue.nr_ready(), Ordering::Relaxed);
    }

    /// Whether a vCPU waits for a pCPU.
    pub fn is_wanted(&self) -> bool {
        self.nr_ready.load(Ordering::Relaxed) != 0
    }

    /// Makes a blocked vCPU runnable.
    pub fn wake(&self, vcpu: &Arc<Vcpu>, hv: &Hypervisor) {
        vcpu.blocked.store(false, Ordering::SeqCst);
        self.enqueue(vcpu, hv);
    }

    /// Queues a vCPU if it is runnable and neither queued nor running. Call after anything that may make it so.
    pub fn enqueue(&self, vcpu: &Arc<Vcpu>, hv: &Hypervisor) {
        let mut shared = self.shared.lock();
        if !vcpu.is_runnable() || vcpu.running_on.load(Ordering::SeqCst) >= 0 || vcpu.queued.load(Ordering::SeqCst) {
            return;
        }
        let now_ns = hv.clock.now_ns();
        vcpu.runstate.lock().change(ring3_abi::vcpu::RUNSTATE_runnable, now_ns);
        let victim = shared.queue.wake(vcpu, now_ns);
        let slice_end = shared.queue.next_end();
        self.count_ready(&shared.queue);
        if shared.nr_idle > 0 {
            shared.wanted_at_ns = now_ns;
            let is_seen = shared.is_looking && shared.queue.nr_ready() == 1;
            drop(shared);
            if !is_seen {
                self.work.notify_one();
            }
            return;
        }
        drop(shared);
        if let Some(victim) = victim {
            victim.control.request(Requests::RESCHEDULE);
        } else if let Some(end) = slice_end {
            hv.timers.arm_tick(end);
        }
    }

    /// Posts RESCHEDULE to a vCPU that runs, and returns at once.
    pub fn preempt(&self, vcpu: &Vcpu) {
        if vcpu.running_on.load(Ordering::SeqCst) >= 0 {
            vcpu.control.request(Requests::RESCHEDULE);
        }
    }

    /// Waits until a vCPU that must not run any more has left its pCPU and the queue. The caller has made it not
    /// runnable, is not its thread, and holds no lock.
    pub fn sync_deschedule(&self, vcpu: &Arc<Vcpu>) {
        let mut shared = self.shared.lock();
        loop {
            shared.queue.remove(vcpu);
            self.count_ready(&shared.queue);
            if vcpu.running_on.load(Ordering::SeqCst) < 0 {
                return;
            }
            vcpu.control.request(Requests::RESCHEDULE);
            self.descheduled.wait(&mut shared);
        }
    }

    /// The end of a time slice: preempts who ran long enough, if somebody waits. Or time for vCPUs to be sampled. Returns when to
    /// look again, unless nobody runs.
    fn tick(&self, now_ns: u64) -> Option<u64> {
        let (over, running, next) = {
            let mut shared = self.shared.lock();
            (shared.queue.expire(now_ns), shared.queue.running(), shared.queue.next_end())
        };
        over.iter().for_each(|vcpu| vcpu.control.request(Requests::RESCHEDULE));
        running.iter().for_each(|vcpu| vcpu.control.sample());
        (!running.is_empty()).then(|| next_tick(next, now_ns))
    }

    /// Ends all workers; every vCPU is off the pCPUs already.
    pub fn stop(&self) {
        self.shared.lock().stopping = true;
        self.work.notify_all();
    }
}

//! The scheduler: one run queue, one worker thread for each pCPU, round robin with a time slice.
//!
//! A vCPU's scheduling fields change under the queue's lock, except `blocked`, which its own thread sets and any
//! waker clears: the one that clears it queues the vCPU. Lock order: the queue's lock is innermost but for the timers'.

mod worker;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Condvar, Mutex};
use ring3_engine::Requests;

use crate::hypervisor::Hypervisor;
use crate::vcpu::Vcpu;

pub(crate) use worker::{run_timers, run_worker};

/// How long a vCPU runs while others wait.
pub const TIME_SLICE_NS: u64 = 10_000_000;

/// A vCPU on a pCPU.
#[derive(Debug, Clone)]
struct Current {
    vcpu: Arc<Vcpu>,
    since_ns: u64,
}

#[derive(Debug, Default)]
struct Queue {
    ready: VecDeque<Arc<Vcpu>>,
    nr_idle: usize,
    running: Vec<Option<Current>>,
    stopping: bool,
}

/// Run queue and workers' meeting point.
#[derive(Debug)]
pub struct Scheduler {
    queue: Mutex<Queue>,
    work: Condvar,
    descheduled: Condvar,
}

impl Scheduler {
    /// For `nr_pcpus` workers.
    pub fn new(nr_pcpus: usize) -> Self {
        let queue = Queue { running: vec![None; nr_pcpus], ..Queue::default() };
        Self { queue: Mutex::new(queue), work: Condvar::new(), descheduled: Condvar::new() }
    }

    /// Makes a blocked vCPU runnable.
    pub fn wake(&self, vcpu: &Arc<Vcpu>, hv: &Hypervisor) {
        vcpu.blocked.store(false, Ordering::SeqCst);
        self.enqueue(vcpu, hv);
    }

    /// Queues a vCPU if it is runnable and neither queued nor running. Call after anything that may make it so.
    pub fn enqueue(&self, vcpu: &Arc<Vcpu>, hv: &Hypervisor) {
        let mut queue = self.queue.lock();
        if !vcpu.is_runnable()
            || vcpu.running_on.load(Ordering::SeqCst) >= 0
            || vcpu.queued.swap(true, Ordering::SeqCst)
        {
            return;
        }
        vcpu.runstate.lock().change(ring3_abi::vcpu::RUNSTATE_runnable, hv.clock.now_ns());
        queue.ready.push_back(Arc::clone(vcpu));
        if queue.nr_idle > 0 {
            drop(queue);
            self.work.notify_one();
            return;
        }
        let oldest = queue.running.iter().flatten().map(|current| current.since_ns).min();
        drop(queue);
        if let Some(since) = oldest {
            hv.timers.arm_tick(since + TIME_SLICE_NS);
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
        let mut queue = self.queue.lock();
        loop {
            if vcpu.queued.load(Ordering::SeqCst) {
                queue.ready.retain(|queued| !Arc::ptr_eq(queued, vcpu));
                vcpu.queued.store(false, Ordering::SeqCst);
            }
            if vcpu.running_on.load(Ordering::SeqCst) < 0 {
                return;
            }
            vcpu.control.request(Requests::RESCHEDULE);
            self.descheduled.wait(&mut queue);
        }
    }

    /// The end of a time slice: preempts who ran long enough, if somebody waits. Returns when to look again.
    pub fn tick(&self, now_ns: u64) -> Option<u64> {
        let queue = self.queue.lock();
        if queue.ready.is_empty() {
            return None;
        }
        let mut next = u64::MAX;
        for current in queue.running.iter().flatten() {
            let end = current.since_ns + TIME_SLICE_NS;
            if end <= now_ns {
                current.vcpu.control.request(Requests::RESCHEDULE);
                next = next.min(now_ns + TIME_SLICE_NS);
            } else {
                next = next.min(end);
            }
        }
        (next != u64::MAX).then_some(next)
    }

    /// Ends all workers; every vCPU is off the pCPUs already.
    pub fn stop(&self) {
        self.queue.lock().stopping = true;
        self.work.notify_all();
    }

    /// vCPUs that wait for a pCPU.
    pub fn nr_ready(&self) -> usize {
        self.queue.lock().ready.len()
    }
}

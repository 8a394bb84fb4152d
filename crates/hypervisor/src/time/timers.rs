//! The timers of all vCPUs: an ordered set under one lock, and the thread that fires them.
//!
//! Each vCPU has at most one entry of each kind, so that a guest cannot grow the set. Lock order: the set's lock is
//! taken alone; firing happens after it is dropped.

use std::collections::BTreeMap;
use std::sync::Weak;
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::Clock;
use crate::vcpu::Vcpu;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TimerKind {
    /// `VCPUOP_set_singleshot_timer` and `set_timer_op`: raises VIRQ_TIMER.
    Singleshot = 0,
    /// `VCPUOP_set_periodic_timer`: raises VIRQ_TIMER.
    Periodic = 1,
    /// `SCHEDOP_poll` with a timeout: wakes the vCPU.
    Poll = 2,
    /// `SCHEDOP_watchdog`, on vCPU 0 for the whole domain: shuts it down.
    Watchdog1 = 3,
    Watchdog2 = 4,
}

/// Number of kinds.
pub const NR_TIMER_KINDS: usize = 5;
/// All of them.
const KINDS: [TimerKind; NR_TIMER_KINDS] =
    [TimerKind::Singleshot, TimerKind::Periodic, TimerKind::Poll, TimerKind::Watchdog1, TimerKind::Watchdog2];
/// `Vcpu::timers` of a timer that is not armed.
const OFF: u64 = u64::MAX;

#[derive(Debug, Default)]
struct Set {
    /// By deadline and timer identity.
    armed: BTreeMap<(u64, u64), (Weak<Vcpu>, TimerKind)>,
    /// Deadline of the next scheduler tick.
    tick: Option<u64>,
    /// Until when the timer thread sleeps; 0 while it does not.
    asleep_until: u64,
    stopping: bool,
}

impl Set {
    /// Whether the timer thread must be woken, or it would sleep past a deadline. A guest moves its timer to and fro each
    /// time it idles: what becomes later the thread sees when it looks next.
    fn must_wake(&mut self, deadline: u64) -> bool {
        let is_missed = deadline < self.asleep_until;
        if is_missed {
            self.asleep_until = 0;
        }
        is_missed
    }
}

/// All timers of the machine.
#[derive(Debug, Default)]
pub struct Timers {
    set: Mutex<Set>,
    changed: Condvar,
}

/// What the timer thread must do next.
#[derive(Debug)]
pub enum Due {
    Fire(Vec<(Weak<Vcpu>, TimerKind)>, bool),
    Stop,
}

impl Timers {
    /// Arms or re-arms a timer for system time `deadline`.
    pub fn arm(&self, vcpu: &std::sync::Arc<Vcpu>, kind: TimerKind, deadline: u64) {
        let deadline = deadline.min(OFF - 1);
        let identity = vcpu.uid * NR_TIMER_KINDS as u64 + kind as u64;
        let mut set = self.set.lock();
        let Some(slot) = vcpu.timers.get(kind as usize) else { return };
        let old = slot.swap(deadline, Ordering::Relaxed);
        if old != OFF {
            set.armed.remove(&(old, identity));
        }
        set.armed.insert((deadline, identity), (std::sync::Arc::downgrade(vcpu), kind));
        let is_missed = set.must_wake(deadline);
        drop(set);
        if is_missed {
            self.changed.notify_one();
        }
    }

    /// Disarms a timer; one that is firing now may still fire.
    pub fn disarm(&self, vcpu: &Vcpu, kind: TimerKind) {
        let Some(slot) = vcpu.timers.get(kind as usize) else { return };
        if slot.load(Ordering::Relaxed) == OFF {
            return;
        }
        let mut set = self.set.lock();
        let old = slot.swap(OFF, Ordering::Relaxed);
        if old != OFF {
            set.armed.remove(&(old, vcpu.uid * NR_TIMER_KINDS as u64 + kind as u64));
        }
    }

    /// Disarms all timers of a vCPU.
    pub fn disarm_all(&self, vcpu: &Vcpu) {
        for kind in KINDS {
            self.disarm(vcpu, kind);
        }
    }

    /// Asks for a scheduler tick at `deadline`, unless an earlier one is due.
    pub fn arm_tick(&self, deadline: u64) {
        let mut set = self.set.lock();
        if set.tick.is_none_or(|tick| deadline < tick) {
            set.tick = Some(deadline);
            let is_missed = set.must_wake(deadline);
            drop(set);
            if is_missed {
                self.changed.notify_one();
            }
        }
    }

    /// Number of armed timers.
    pub fn nr_armed(&self) -> usize {
        self.set.lock().armed.len()
    }

    /// Ends the timer thread.
    pub fn stop(&self) {
        self.set.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Waits for the next deadline. Called by the timer thread alone.
    pub fn wait(&self, clock: &Clock) -> Due {
        let mut set = self.set.lock();
        loop {
            if set.stopping {
                return Due::Stop;
            }
            let now = clock.now_ns();
            let mut fired = Vec::new();
            while let Some(entry) = set.armed.first_entry() {
                if entry.key().0 > now {
                    break;
                }
                let (vcpu, kind) = entry.remove();
                if let Some(slot) = vcpu.upgrade().as_ref().and_then(|v| v.timers.get(kind as usize)) {
                    slot.store(OFF, Ordering::Relaxed);
                }
                fired.push((vcpu, kind));
            }
            let tick = set.tick.is_some_and(|tick| tick <= now);
            if tick {
                set.tick = None;
            }
            if tick || !fired.is_empty() {
                return Due::Fire(fired, tick);
            }
            let next = set.armed.first_key_value().map(|(key, _)| key.0).into_iter().chain(set.tick).min();
            set.asleep_until = next.unwrap_or(OFF);
            match next {
                Some(deadline) => {
                    let _ = self.changed.wait_for(&mut set, Duration::from_nanos(deadline - now));
                }
                None => self.changed.wait(&mut set),
            }
            set.asleep_until = 0;
        }
    }
}

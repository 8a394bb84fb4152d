//! Memory of domains that have gone idle: a thread looks from time to time, has the engine give back its part, gives back to
//! the host what holds one byte all over, and packs the rest.
//!
//! A kernel touches much that it then frees or never uses, and clears pages that nobody gets: of a 512 MiB guest at its
//! shell one seventh; as much again it fills with 0xcc when it frees its image. Of what is left, half is saved by packing. Who may store to a frame of a domain, and why none does while it is looked at:
//!
//! 1. its vCPUs, translated or directly: they are off their pCPUs;
//! 2. other domains and back ends, by grants: frames that an entry of its grant table names stay, and those that are
//!    mapped, or were. New mappings wait for the lock of the table. The rings of console and xenstore, which our daemons
//!    map by number, are in the reserved entries;
//! 3. the hypervisor, for events: the frames that it holds for that stay;
//! 4. the toolstack by page-table updates or by the machine's file: it pauses a domain for that, and one that is
//!    paused so is passed over; who would pause it now waits for the lock of its life.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use ring3_engine::Requests;
use ring3_machine::Mfn;

use crate::audit::hold_vcpus;
use crate::domain::Domain;
use crate::evtchn;
use crate::heap_unsafe::trim_heap;
use crate::hypervisor::{Error, Hypervisor};
use crate::mm::Held;

/// How often the thread looks.
const PERIOD: Duration = Duration::from_millis(500);
/// A domain is idle that used less than this share of a period.
const IDLE_SHARE: u64 = 16;
/// It is worth a look if it has run for so long since the last one ...
const BUSY_MIN_NS: u64 = 100_000_000;
/// ... and for so many times as long as that took.
const BUSY_TIMES: u64 = 200;
/// The same where frames are packed, which takes a tenth of a second after a start, and as much in pauses.
const BUSY_TIMES_TO_PACK: u64 = 25;
/// While frames are packed a domain is stopped half of the time. If it uses more than this share nevertheless ...
const AWAKE_SHARE: u64 = 3;
/// ... of so long, it is idle no more.
const AWAKE_NS: u64 = 60_000_000;

/// How frames go back.
#[derive(Clone, Copy, Debug)]
enum How {
    /// Those that hold one byte all over.
    Uniform,
    /// Those that become clearly smaller.
    Packed,
}

impl How {
    /// Frames that are looked at with the domain stopped: less than a millisecond.
    const fn frames_at_once(self) -> u64 {
        match self {
            Self::Uniform => 2048,
            Self::Packed => 64,
        }
    }
}

/// Wakes the thread at the end.
#[derive(Debug, Default)]
pub(crate) struct IdleThread {
    stopping: Mutex<bool>,
    changed: Condvar,
    /// One look at a time.
    is_looking: AtomicBool,
}

impl IdleThread {
    pub fn stop(&self) {
        *self.stopping.lock() = true;
        self.changed.notify_all();
    }

    /// Waits for a period; false at the end.
    fn wait(&self) -> bool {
        let mut stopping = self.stopping.lock();
        if !*stopping {
            self.changed.wait_for(&mut stopping, PERIOD);
        }
        !*stopping
    }
}

/// The last look of a kind at a domain: the CPU time that it had then, and how long it took, in nanoseconds.
#[derive(Debug, Default)]
struct Look {
    at: u64,
    cost: u64,
}

impl Look {
    fn is_due(&self, cpu_time: u64, busy_times: u64) -> bool {
        cpu_time.saturating_sub(self.at) >= BUSY_MIN_NS.max(self.cost.saturating_mul(busy_times))
    }
}

/// What a look at a domain gave.
#[derive(Debug, Default)]
struct Given {
    /// Frames that went back.
    nr: u64,
    /// Nanoseconds that it took.
    cost: u64,
    /// All frames were looked at.
    is_whole: bool,
}

/// What is remembered of a domain.
#[derive(Debug, Default)]
struct Watch {
    domain: Weak<Domain>,
    /// Its CPU time at the end of the last period.
    before: u64,
    for_uniform: Look,
    for_packed: Look,
}

impl Watch {
    /// Takes note of a domain's CPU time at the end of a period; whether it was idle.
    fn is_idle(&mut self, cpu_time: u64, period: u64) -> bool {
        let used = cpu_time.saturating_sub(self.before);
        self.before = cpu_time;
        used < period / IDLE_SHARE
    }
}

/// The time that all vCPUs of a domain have run.
fn cpu_time_ns(domain: &Domain, now: u64) -> u64 {
    domain.vcpus.iter().map(|vcpu| vcpu.runstate.lock().cpu_time_ns(now)).sum()
}

/// Body of the thread.
pub(crate) fn run(hv: &Hypervisor) {
    let mut watches: BTreeMap<u16, Watch> = BTreeMap::new();
    let mut then = hv.clock.now_ns();
    while hv.idle.wait() {
        let now = hv.clock.now_ns();
        let period = now.saturating_sub(then);
        then = now;
        let domains: Vec<_> = hv.domains.read().values().cloned().collect();
        watches.retain(|_, watch| watch.domain.strong_count() > 0);
        let mut has_looked = false;
        for domain in domains {
            let watch = watches.entry(domain.domid).or_default();
            if !std::ptr::eq(watch.domain.as_ptr(), Arc::as_ptr(&domain)) {
                *watch = Watch { domain: Arc::downgrade(&domain), ..Watch::default() };
            }
            let cpu_time = cpu_time_ns(&domain, now);
            if !watch.is_idle(cpu_time, period) {
                continue;
            }
            if watch.for_uniform.is_due(cpu_time, BUSY_TIMES) {
                let is_done = domain.engine.as_ref().is_none_or(|engine| engine.note_idle());
                let look = hv.give_back(&domain, How::Uniform, |_| true);
                if is_done {
                    watch.for_uniform = Look { at: cpu_time, cost: look.cost };
                }
                has_looked = true;
            }
            if watch.for_packed.is_due(cpu_time, BUSY_TIMES_TO_PACK) {
                let mut since = (hv.clock.now_ns(), cpu_time);
                let look = hv.give_back(&domain, How::Packed, |stopped| hv.may_go_on(&domain, &mut since, stopped));
                if look.is_whole {
                    watch.for_packed = Look { at: cpu_time, cost: look.cost };
                }
                has_looked = true;
            }
        }
        if has_looked {
            // Translating its start has left holes, too.
            trim_heap();
        }
    }
}

impl Hypervisor {
    /// Gives frames of every domain back to the host. Returns how many that hold one byte all over, and how many packed ones.
    pub fn give_back_all(&self) -> (u64, u64) {
        let domains: Vec<_> = self.domains.read().values().cloned().collect();
        let all = |how| domains.iter().map(|domain| self.give_back(domain, how, |_| true).nr).sum();
        (all(How::Uniform), all(How::Packed))
    }

    /// Has all frames of a domain in the machine's memfd, where who paused it may read them.
    pub(crate) fn unfold_all(&self, domain: &Domain) {
        let machine = &self.memory.machine;
        for mfn in machine.folded() {
            if self.frames.info(mfn).is_some_and(|info| info.owner == Some(domain.domid)) {
                let _ = machine.frame(mfn); // it is one of the machine's
            }
        }
    }

    /// Lets an idle domain run for as long as it was just stopped. False if it is idle no more, or ring3d is about to end. `since`
    /// is when it was last asked for its CPU time, and that.
    fn may_go_on(&self, domain: &Domain, since: &mut (u64, u64), stopped_ns: u64) -> bool {
        std::thread::sleep(Duration::from_nanos(stopped_ns));
        let now = self.clock.now_ns();
        let passed = now.saturating_sub(since.0);
        if passed >= AWAKE_NS {
            let before = std::mem::replace(since, (now, cpu_time_ns(domain, now)));
            if since.1.saturating_sub(before.1) > passed / AWAKE_SHARE {
                return false;
            }
        }
        !*self.idle.stopping.lock()
    }

    /// Gives a domain's frames back. Asks `may_go_on` after each stop, with the time that it took.
    fn give_back(&self, domain: &Arc<Domain>, how: How, mut may_go_on: impl FnMut(u64) -> bool) -> Given {
        let started = self.clock.now_ns();
        if self.idle.is_looking.swap(true, Ordering::SeqCst) {
            return Given::default();
        }
        let machine = &self.memory.machine;
        let (mut from, mut given) = (0, Given { is_whole: true, ..Given::default() });
        while let Some(run) = machine.next_resident(Mfn(from)) {
            let part = run.start..run.end.min(run.start + how.frames_at_once());
            from = part.end;
            // Frames of others between its own cost no stop.
            if part.clone().any(|mfn| self.frames.info(Mfn(mfn)).is_some_and(|info| info.owner == Some(domain.domid))) {
                let stopped = self.clock.now_ns();
                given.nr += self.give_back_of(domain, how, part);
                if !may_go_on(self.clock.now_ns().saturating_sub(stopped)) {
                    given.is_whole = false;
                    break;
                }
            }
        }
        self.idle.is_looking.store(false, Ordering::SeqCst);
        given.cost = self.clock.now_ns().saturating_sub(started);
        given
    }

    fn give_back_of(&self, domain: &Arc<Domain>, how: How, part: Range<u64>) -> u64 {
        // Whoever destroys a domain does not wait for us, nor we for him.
        let Some(_destroy) = self.destroy.try_lock() else { return 0 };
        if domain.is_dying.load(Ordering::SeqCst) {
            return 0;
        }
        let given = self.with_paused(domain, || {
            let mut held = Held::default();
            hold_vcpus(domain, &mut held);
            evtchn::hold_frames(domain, &mut held);
            let life = domain.life.lock();
            if life.controller_pauses != 0 {
                return Ok(0);
            }
            let grants = domain.gnttab.lock();
            grants.hold_granted(&self.memory.machine, &mut held);
            let is_held = |mfn| held.contains(mfn);
            let nr = match how {
                How::Uniform => self.frames.give_back_uniform(domain.domid, part, is_held),
                How::Packed => self.frames.give_back_packed(domain.domid, part, is_held),
            };
            drop((grants, life));
            if nr != 0 {
                // They may know addresses of frames that are to be made anew.
                domain.vcpus.iter().for_each(|vcpu| vcpu.control.request(Requests::FLUSH_DATA));
            }
            Ok::<_, Error>(nr)
        });
        given.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::{BUSY_MIN_NS, BUSY_TIMES, Look, Watch};

    #[test]
    fn test_a_domain_is_idle_that_used_little_of_a_period() {
        const PERIOD: u64 = 500_000_000;
        let mut watch = Watch::default();
        assert!(watch.is_idle(1_000_000, PERIOD));
        assert!(!watch.is_idle(PERIOD, PERIOD));
        assert!(watch.is_idle(PERIOD + 1_000_000, PERIOD));
    }

    #[test]
    fn test_an_idle_domain_is_looked_at_once_for_each_time_that_it_was_busy() {
        let look = Look::default();
        assert!(!look.is_due(BUSY_MIN_NS - 1, BUSY_TIMES), "it has hardly run yet");
        assert!(look.is_due(BUSY_MIN_NS, BUSY_TIMES));
        let look = Look { at: BUSY_MIN_NS, cost: 5_000_000 };
        assert!(!look.is_due(BUSY_MIN_NS, BUSY_TIMES), "it was looked at");
        assert!(!look.is_due(2 * BUSY_MIN_NS, BUSY_TIMES), "the look cost too much for so little");
        assert!(look.is_due(BUSY_MIN_NS + 1_000_000_000, BUSY_TIMES));
    }
}

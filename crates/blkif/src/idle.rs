//! How long it pays to look at a ring before sleeping: to sleep and be woken costs both sides tens of microseconds.
//! `ring3-hypervisor` does the same where a worker has no vCPU to run.

use std::time::{Duration, Instant};

/// For how long the next request of a burst is waited for.
pub const GAP: Duration = Duration::from_micros(160);
const SCORE_MAX: i8 = 16;
const LOSS: i8 = 4;
/// So often it is tried although it has not paid.
const TRY_AFTER: u32 = 128;
/// Longer bursts count as so long.
const LENGTH_MAX: usize = 64;

const FIRST: Duration = Duration::from_micros(10);

/// Looks longer where the last sleeps were short, and not at all where they were long.
#[derive(Debug)]
pub struct Patience {
    max: Duration,
    now: Duration,
    /// When it began to look in vain.
    idle_since: Option<Instant>,
}

impl Patience {
    /// Looks no longer than `max`.
    pub fn new(max: Duration) -> Self {
        Self { max, now: Duration::ZERO, idle_since: None }
    }

    /// How long to look now.
    pub fn get(&self) -> Duration {
        self.now
    }

    /// Nothing came while it looked, till now.
    pub fn sleep(&mut self, now: Instant) {
        self.idle_since = now.checked_sub(self.now);
    }

    /// Something came, after the sleep if there was one. Returns how long that was, with the look before it.
    pub fn wake(&mut self, now: Instant) -> Option<Duration> {
        let idle = now.saturating_duration_since(self.idle_since.take()?);
        self.now = if idle <= self.max { (self.now * 2).clamp(FIRST, self.max) } else { Duration::ZERO };
        Some(idle)
    }
}

/// A front end makes a large transfer of many requests, one soon after the other: a burst. While one goes on, it pays to
/// look at the ring, and to hold back events: each would interrupt the guest in submitting. When it is over, the guest
/// waits: it should be told of the first answer already. Which is the case is learned for each length of a burst.
#[derive(Debug)]
pub struct Burst {
    /// Index of its first request.
    start: u32,
    scores: [i8; LENGTH_MAX + 1],
    nr_not_tried: u32,
}

impl Burst {
    /// None yet; all are worth a try.
    pub fn new() -> Self {
        Self { start: 0, scores: [1; LENGTH_MAX + 1], nr_not_tried: 0 }
    }

    /// How many requests it has, with those up to `req_prod`.
    fn length(&self, req_prod: u32) -> usize {
        usize::try_from(req_prod.wrapping_sub(self.start)).map_or(LENGTH_MAX, |length| length.min(LENGTH_MAX))
    }

    /// Whether mostly another request has come soon after so many.
    fn is_going_on(&self, req_prod: u32) -> bool {
        self.scores[self.length(req_prod)] > 0
    }

    /// Whether to hold back an event now, until no request has come for [`GAP`].
    pub fn should_hold(&mut self, req_prod: u32) -> bool {
        if self.is_going_on(req_prod) {
            return true;
        }
        self.nr_not_tried += 1;
        self.nr_not_tried.is_multiple_of(TRY_AFTER)
    }

    /// For how long to look at an empty ring, where that would be `time` otherwise.
    pub fn look(&self, req_prod: u32, time: Duration) -> Duration {
        if self.is_going_on(req_prod) { time.max(GAP) } else { time }
    }

    /// Whether another one came soon after `req_prod`. If not, the burst is over.
    pub fn learn(&mut self, req_prod: u32, has_come: bool) {
        let score = &mut self.scores[self.length(req_prod)];
        *score = if has_come { (*score + 1).min(SCORE_MAX) } else { (*score - LOSS).max(0) };
        if !has_come {
            self.start = req_prod;
        }
    }

    /// The first request after `index` came after so long.
    pub fn resume(&mut self, index: u32, idle: Duration) {
        if idle <= GAP {
            self.learn(index, true);
        } else {
            self.start = index;
        }
    }
}

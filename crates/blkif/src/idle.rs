//! How long it pays to look at a ring before sleeping: to sleep and be woken costs both sides tens of microseconds.
//! `ring3-hypervisor` does the same where a worker has no vCPU to run.

use std::time::{Duration, Instant};

/// For how long an event may wait while the front end's vCPU is busy, and the next request of a burst is looked for.
pub const GAP: Duration = Duration::from_micros(160);
/// For how long any event may wait so: a guest that waits for its answer is about to block, and a packet takes as long.
pub const SOON: Duration = Duration::from_micros(30);
const SCORE_MAX: i8 = 16;
const LOSS: i8 = 4;
/// So often an event is let wait although that has not paid.
const TRY_AFTER: u32 = 64;
/// Longer bursts count as so long.
const LENGTH_MAX: usize = 64;

const FIRST: Duration = Duration::from_micros(10);
/// What a sleep takes that ends at once. So much longer it seems to whoever slept.
const WAKE: Duration = Duration::from_micros(60);

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

    /// Something came, after the sleep if there was one.
    pub fn wake(&mut self, now: Instant) {
        let Some(since) = self.idle_since.take() else { return };
        let idle = now.saturating_duration_since(since);
        self.now = if idle <= self.max + WAKE { (self.now * 2).max(FIRST).min(self.max) } else { Duration::ZERO };
    }
}

/// A front end makes a large transfer of many requests, one soon after the other, before it looks at answers: a burst. In
/// the midst of one an event would interrupt the guest in submitting, so it may wait until the guest does. How long bursts
/// are is learned: for each length, whether there mostly was another request.
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

    /// How many requests it has, of those before `index`.
    fn length(&self, index: u32) -> usize {
        usize::try_from(index.wrapping_sub(self.start)).map_or(LENGTH_MAX, |length| length.min(LENGTH_MAX))
    }

    /// Whether mostly another request has come after those before `index`.
    pub fn is_going_on(&self, index: u32) -> bool {
        self.scores[self.length(index)] > 0
    }

    /// Whether an event may wait that tells of the answers before `index`.
    pub fn may_wait(&mut self, index: u32) -> bool {
        if self.is_going_on(index) {
            return true;
        }
        self.nr_not_tried += 1;
        self.nr_not_tried.is_multiple_of(TRY_AFTER)
    }

    /// Request `index` has come. The front end had seen all answers before it, or it goes on with what it began.
    pub fn take(&mut self, index: u32, has_seen_all: bool) {
        let length = self.length(index);
        if length == 0 {
            return;
        }
        let score = &mut self.scores[length];
        if has_seen_all {
            *score = (*score - LOSS).max(0);
            self.start = index;
        } else {
            *score = (*score + 1).min(SCORE_MAX);
        }
    }
}

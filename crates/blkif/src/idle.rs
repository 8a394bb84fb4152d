//! How long it pays to look at a ring before sleeping: to sleep and be woken costs both sides tens of microseconds.
//! `ring3-hypervisor` does the same where a worker has no vCPU to run.

use std::time::{Duration, Instant};

/// How long an event is held back.
const HOLD: Duration = Duration::from_micros(40);
const HOLD_SCORE_MAX: i32 = 16;
const HOLD_LOSS: i32 = 4;
const HOLD_TRY_AFTER: u32 = 32;

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

    /// Something came, after the sleep if there was one.
    pub fn wake(&mut self, now: Instant) {
        let Some(since) = self.idle_since.take() else { return };
        self.now = if now.saturating_duration_since(since) <= self.max {
            (self.now * 2).clamp(FIRST, self.max)
        } else {
            Duration::ZERO
        };
    }
}

/// Whether it pays to hold back an event until the front end has submitted what it is submitting: it makes a large transfer
/// of many requests, and each event interrupts it. It does where the next request mostly comes soon.
#[derive(Debug, Default)]
pub struct Hold {
    score: i32,
    nr_not_held: u32,
}

impl Hold {
    /// For how long to hold an event back now.
    pub fn get(&mut self) -> Duration {
        if self.score > 0 {
            return HOLD;
        }
        self.nr_not_held += 1;
        if self.nr_not_held.is_multiple_of(HOLD_TRY_AFTER) { HOLD } else { Duration::ZERO }
    }

    /// Whether a request came while an event was held back.
    pub fn learn(&mut self, has_come: bool) {
        self.score = if has_come { (self.score + 1).min(HOLD_SCORE_MAX) } else { (self.score - HOLD_LOSS).max(0) };
    }
}

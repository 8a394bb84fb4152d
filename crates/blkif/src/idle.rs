//! How long it pays to look at a ring before sleeping: to sleep and be woken costs both sides tens of microseconds.
//! `ring3-hypervisor` does the same where a worker has no vCPU to run.

use std::time::{Duration, Instant};

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

//! Whether it pays to take pages out of the CPUs' caches when they change hands.
//!
//! The front end's CPU and ours write and read the same pages in turn. A line that one CPU has read must be taken from it
//! before the other may write. That is nothing where both share a cache; between the halves of a large host, as virtual
//! machines get them, a megabyte then takes 500 us instead of 25. To take the lines out of all caches costs 40 us. Which
//! it is, and that may change from second to second, shows by trying.

use std::time::{Duration, Instant};

/// Smaller transfers do not count, and their pages stay in the caches.
const LARGE_BYTES: usize = 64 << 10;
/// What a window transfers.
const WINDOW_BYTES: usize = 16 << 20;
/// A window during which nothing was asked for so long says nothing.
const GAP_MAX: Duration = Duration::from_millis(1);
/// After so many windows the other way is tried for one.
const TRY_AFTER: u32 = 15;
/// So often in a row it must have been better.
const NR_WINS: u32 = 2;

/// Decides by what windows of transfers take in either way.
#[derive(Debug)]
pub struct Handover {
    is_on: bool,
    is_trial: bool,
    nr_windows: u32,
    nr_wins: u32,
    /// What a window takes.
    usual: Duration,
    started: Instant,
    last: Instant,
    nr_bytes: usize,
}

impl Handover {
    /// Pages stay in the caches at first.
    pub fn new(now: Instant) -> Self {
        let usual = Duration::ZERO;
        Self { is_on: false, is_trial: false, nr_windows: 0, nr_wins: 0, usual, started: now, last: now, nr_bytes: 0 }
    }

    /// Whether to take the pages of a transfer of so many bytes out of the caches.
    pub fn should_flush(&self, nr_bytes: usize) -> bool {
        nr_bytes >= LARGE_BYTES && self.is_on != self.is_trial
    }

    /// A transfer is done.
    pub fn note(&mut self, nr_bytes: usize, now: Instant) {
        if nr_bytes < LARGE_BYTES {
            return;
        }
        if now.saturating_duration_since(self.last) > GAP_MAX {
            self.nr_bytes = 0;
        }
        self.last = now;
        if self.nr_bytes == 0 {
            self.started = now; // this transfer is not in the window: when it began is not known
        }
        self.nr_bytes += nr_bytes;
        if self.nr_bytes > WINDOW_BYTES {
            self.nr_bytes = 0;
            self.end_window(now.saturating_duration_since(self.started));
        }
    }

    fn end_window(&mut self, took: Duration) {
        if self.is_trial {
            self.is_trial = false;
            self.nr_windows = 0;
            self.nr_wins = if took < self.usual * 9 / 10 { self.nr_wins + 1 } else { 0 };
            if self.nr_wins == NR_WINS {
                self.nr_wins = 0;
                self.is_on = !self.is_on;
                self.usual = took;
            }
            return;
        }
        self.usual = if self.nr_windows == 0 { took } else { (self.usual * 3 + took) / 4 };
        self.nr_windows += 1;
        self.is_trial = self.nr_windows == TRY_AFTER;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Transfers so much, where that takes so long with and without; returns how often pages were flushed.
    fn transfer(handover: &mut Handover, now: &mut Instant, with_us: u64, without_us: u64) -> usize {
        let mut nr_flushed = 0;
        for _ in 0..20_000 {
            let is_on = handover.should_flush(128 << 10);
            nr_flushed += usize::from(is_on);
            *now += Duration::from_micros(if is_on { with_us } else { without_us });
            handover.note(128 << 10, *now);
        }
        nr_flushed
    }

    #[test]
    fn pages_are_flushed_where_that_pays() {
        let mut now = Instant::now();
        let mut handover = Handover::new(now);
        let share = |nr: usize| nr * 100 / 20_000;
        assert!(share(transfer(&mut handover, &mut now, 40, 35)) <= 7, "tried only");
        assert!(share(transfer(&mut handover, &mut now, 45, 80)) >= 75);
        assert!(share(transfer(&mut handover, &mut now, 45, 80)) >= 90);
        assert!(share(transfer(&mut handover, &mut now, 45, 30)) <= 25, "what was learned is forgotten again");
        assert!(!handover.should_flush(4096));
    }

    #[test]
    fn pauses_say_nothing() {
        let mut now = Instant::now();
        let mut handover = Handover::new(now);
        for turn in 0..100_000u64 {
            now += if turn % 100 == 0 { Duration::from_millis(20) } else { Duration::from_micros(40) };
            handover.note(128 << 10, now);
            assert!(!handover.should_flush(1 << 20));
        }
    }
}

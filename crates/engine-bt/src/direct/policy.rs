//! When user code runs directly.
//!
//! To move there and back costs some 10 µs (two switches of threads, a signal), so it pays for code that stays out of its kernel
//! for longer than that. Two timer ticks in user mode with few kernel entries between them call for an attempt; what runs
//! gain and cost decides whether it goes on.

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DirectPolicy {
    /// As measured at run time.
    #[default]
    Measured,
    /// All 64-bit user code, from its first instruction. For tests.
    Always,
    /// None.
    Never,
}

/// Interrupts nearer to each other than this say nothing, those farther apart have had a pause between them. TSC units: 1 to
/// 2 ms and some 20 ms on today's CPUs.
const NEAR: u64 = 1 << 22;
const FAR: u64 = 1 << 26;
/// A kernel entry for each of these (0.1 ms) is too many.
const PER_ENTRY: u64 = 1 << 18;
/// What a signal and two switches of threads take (10 µs): that much of a run is not the guest's.
pub const SWITCHES: u64 = 1 << 15;
/// Losses that end direct execution of a page table's code for the time being (0.2 ms), and gains that are remembered.
const MAX_LOSS: i64 = 1 << 19;
const MAX_GAIN: i64 = 1 << 21;
/// A gain that makes up for earlier failures (1 ms).
const SUCCESS: i64 = 1 << 21;
/// Most computing periods to be seen before another attempt.
const MAX_PATIENCE: u32 = 64;

/// How often user code enters its kernel, and what attempts have come to.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    since: u64,
    pub kernel_entries: u32,
    /// Computing periods in a row, and how many of them call for an attempt.
    periods: u32,
    patience: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: 0, kernel_entries: 0, periods: 0, patience: 1 }
    }
}

impl Pace {
    /// User code was interrupted at time `now`: whether it has been computing for long enough.
    pub fn is_computing(&mut self, now: u64) -> bool {
        let elapsed = now.wrapping_sub(self.since);
        if elapsed < NEAR {
            return false;
        }
        let entries = u64::from(std::mem::take(&mut self.kernel_entries));
        self.since = now;
        let is_period = elapsed < FAR && entries * PER_ENTRY < elapsed;
        self.periods = if is_period { self.periods + 1 } else { 0 };
        self.periods >= self.patience
    }

    /// An attempt ended for its losses: the next one comes later.
    pub fn note_failure(&mut self) {
        self.periods = 0;
        self.patience = (self.patience * 2).min(MAX_PATIENCE);
    }
}

/// Time that direct runs have gained, less what they have cost.
#[derive(Clone, Copy, Debug, Default)]
pub struct Balance(i64);

impl Balance {
    /// Takes a run into account: its time from entry to exit, and the part of it that the runner ran. Returns whether the next phase shall run directly too. The translator would have taken three times as long.
    pub fn add(&mut self, total: u64, running: u64, pace: &mut Pace) -> bool {
        let signed = |ticks: u64| i64::try_from(ticks).unwrap_or(i64::MAX / 4);
        let cost = signed(total.saturating_sub(running));
        let gain = 2 * signed(running).min(MAX_GAIN) - cost;
        if gain > SUCCESS {
            pace.patience = 1;
        }
        self.0 = self.0.saturating_add(gain).min(MAX_GAIN);
        if self.0 >= -MAX_LOSS {
            return true;
        }
        self.0 = 0;
        pace.note_failure();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_two_ticks_without_kernel_entries_are_computing() {
        let mut pace = Pace::default();
        assert!(!pace.is_computing(1 << 40));
        assert!(!pace.is_computing((1 << 40) + NEAR / 2), "too soon to tell");
        assert!(pace.is_computing((1 << 40) + 2 * NEAR));
        pace.kernel_entries = 1000;
        assert!(!pace.is_computing((1 << 40) + 4 * NEAR), "a busy caller");
        assert!(!pace.is_computing((1 << 40) + 2 * FAR), "a sleeper");
    }

    #[test]
    fn test_losses_end_it_and_make_the_next_attempt_later() {
        let (mut balance, mut pace) = (Balance::default(), Pace::default());
        assert!((0..100).all(|_| balance.add(3 << 15, 1 << 15, &mut pace)), "as much as it costs");
        assert!(!(0..100).all(|_| balance.add(SWITCHES, 0, &mut pace)));
        let mut now = 1 << 40;
        let mut next = || {
            now += 2 * NEAR;
            pace.is_computing(now)
        };
        assert!(!next() && !next() && next(), "the first has no beginning, and two are called for");
    }
}

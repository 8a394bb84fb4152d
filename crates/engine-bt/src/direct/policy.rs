//! When user code runs directly.
//!
//! To move there and back costs some 10 µs (two switches of threads, a signal), so it pays for code that stays out of its kernel
//! for longer than that. Two timer ticks in user mode with few kernel entries between them say so; runs that end soon say the
//! opposite.

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
/// A direct run shorter than this (20 to 30 µs) was not worth its switches.
const SHORT: u64 = 1 << 16;
/// So many short runs more than long ones, and the translator gets the code back.
const MAX_SHORT: u32 = 4;

/// How often user code enters its kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pace {
    since: u64,
    pub kernel_entries: u32,
}

impl Pace {
    /// User code was interrupted at time `now`: whether it has been computing since the last time.
    pub fn is_computing(&mut self, now: u64) -> bool {
        let elapsed = now.wrapping_sub(self.since);
        if elapsed < NEAR {
            return false;
        }
        let entries = u64::from(std::mem::take(&mut self.kernel_entries));
        self.since = now;
        elapsed < FAR && entries * PER_ENTRY < elapsed
    }
}

/// Takes a direct run into account; returns whether the next shall be one too.
pub fn is_worth_it(short_runs: &mut u32, ticks: u64) -> bool {
    if ticks < SHORT {
        *short_runs += 1;
    } else {
        *short_runs = short_runs.saturating_sub(1);
    }
    *short_runs < MAX_SHORT
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
    fn test_short_runs_end_it_and_long_ones_keep_it() {
        let mut short = 0;
        assert!((0..100).all(|n| is_worth_it(&mut short, if n % 2 == 0 { 1 } else { SHORT })));
        assert!(!(0..10).all(|_| is_worth_it(&mut short, 1)));
    }
}

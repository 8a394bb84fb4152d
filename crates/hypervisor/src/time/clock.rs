//! System time: nanoseconds since this hypervisor started, from the host's TSC.
//!
//! One base and one scale serve for the process's life, so that what a guest computes from its `vcpu_time_info` and
//! what the hypervisor measures never disagree.

use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::tsc_unsafe::{host_cpuid, rdtsc};

/// How long the TSC is compared with the monotonic clock at start, at least and at most: a host that sleeps stops one of them.
const CALIBRATION: Duration = Duration::from_millis(10);
const CALIBRATION_MAX: Duration = Duration::from_secs(1);
/// Where the comparison began, if somebody could tell early that there would be one.
static BEGUN: OnceLock<(Instant, u64)> = OnceLock::new();

/// Conversion between TSC and system time.
#[derive(Clone, Debug)]
pub struct Clock {
    /// TSC at system time 0.
    pub tsc_base: u64,
    /// As `vcpu_time_info.tsc_to_system_mul`.
    pub mul: u32,
    /// As `vcpu_time_info.tsc_shift`.
    pub shift: i8,
    /// Whether the TSC runs at one rate in all host power states, alike on all CPUs.
    pub is_stable: bool,
    /// Real time at system time 0, since the Unix epoch.
    pub boot_wall: Duration,
    frequency_hz: u64,
}

fn sample() -> (Instant, u64) {
    // The tightest of a few pairs: an interrupt in between would cost precision.
    let mut best: Option<(u64, Instant, u64)> = None;
    for _ in 0..8 {
        let before = rdtsc();
        let now = Instant::now();
        let after = rdtsc();
        let width = after.wrapping_sub(before);
        if best.is_none_or(|(w, _, _)| width < w) {
            best = Some((width, now, before.wrapping_add(width / 2)));
        }
    }
    best.map_or_else(|| (Instant::now(), rdtsc()), |(_, now, tsc)| (now, tsc))
}

/// `mul` and `shift` such that `((delta << shift) * mul) >> 32` is nanoseconds.
pub(super) fn scale(frequency_hz: u64) -> (u32, i8) {
    let mut shift = 0i8;
    let mut hz = frequency_hz.max(1);
    while hz > 2_000_000_000 {
        hz >>= 1;
        shift -= 1;
    }
    while hz <= 1_000_000_000 {
        hz <<= 1;
        shift += 1;
    }
    // hz is in (1e9, 2e9]: the quotient lies in [2^31, 2^32).
    let exact = if shift < 0 { (1_000_000_000u128 << 32) << (-shift) } else { (1_000_000_000u128 << 32) >> shift };
    let mul = exact / u128::from(frequency_hz.max(1));
    (u32::try_from(mul).unwrap_or(u32::MAX), shift)
}

impl Clock {
    /// Has a calibration that comes later take less time.
    pub fn begin_calibration() {
        BEGUN.get_or_init(sample);
    }

    /// Calibrates the TSC against CLOCK_MONOTONIC; takes about 10 ms, or what is left of them since it was begun.
    pub fn calibrate() -> Self {
        let begun = BEGUN.get().copied().filter(|(start, _)| start.elapsed() < CALIBRATION_MAX);
        let (start, tsc_start) = begun.unwrap_or_else(sample);
        std::thread::sleep(CALIBRATION.saturating_sub(start.elapsed()));
        let (end, tsc_end) = sample();
        let ns = end.duration_since(start).as_nanos().max(1);
        let ticks = u128::from(tsc_end.wrapping_sub(tsc_start));
        let frequency_hz = u64::try_from(ticks * 1_000_000_000 / ns).unwrap_or(1_000_000_000);
        let (mul, shift) = scale(frequency_hz);
        // Invariant TSC. Source: AMD APM vol. 3 and Intel SDM vol. 2, CPUID Fn8000_0007 EDX bit 8.
        let is_stable = host_cpuid(0x8000_0000, 0)[0] >= 0x8000_0007 && host_cpuid(0x8000_0007, 0)[3] & (1 << 8) != 0;
        let mut clock = Self { tsc_base: tsc_end, mul, shift, is_stable, boot_wall: Duration::ZERO, frequency_hz };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        clock.boot_wall = wall.saturating_sub(Duration::from_nanos(clock.now_ns()));
        clock
    }

    /// TSC ticks per second.
    pub fn frequency_hz(&self) -> u64 {
        self.frequency_hz
    }

    /// Thousands of ticks per second.
    pub fn khz(&self) -> u32 {
        u32::try_from(self.frequency_hz / 1000).unwrap_or(u32::MAX)
    }

    /// System time of a TSC value, exactly as a guest computes it.
    #[allow(clippy::cast_possible_truncation, reason = "584 years of nanoseconds fit")]
    pub fn tsc_to_ns(&self, tsc: u64) -> u64 {
        let delta = tsc.saturating_sub(self.tsc_base);
        let shifted = if self.shift < 0 { delta >> -self.shift } else { delta << self.shift };
        ((u128::from(shifted) * u128::from(self.mul)) >> 32) as u64
    }

    /// System time now.
    pub fn now_ns(&self) -> u64 {
        self.tsc_to_ns(rdtsc())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_scale_converts_as_the_guest_formula() {
        for hz in [800_000_000u64, 1_000_000_000, 2_596_100_000, 5_200_000_000] {
            let (mul, shift) = scale(hz);
            let delta = hz * 10;
            let shifted = if shift < 0 { delta >> -shift } else { delta << shift };
            let ns = (u128::from(shifted) * u128::from(mul)) >> 32;
            assert!(ns.abs_diff(10_000_000_000) < 100, "{hz}: {ns}");
        }
    }

    #[test]
    fn test_clock_agrees_with_the_host() {
        Clock::begin_calibration();
        std::thread::sleep(Duration::from_millis(15));
        let before = Instant::now();
        let clock = Clock::calibrate();
        assert!(before.elapsed() < CALIBRATION, "it was begun long enough ago");
        let (start, first) = (Instant::now(), clock.now_ns());
        std::thread::sleep(Duration::from_millis(50));
        let (took, ns) = (start.elapsed(), clock.now_ns() - first);
        assert!(ns.abs_diff(u64::try_from(took.as_nanos()).unwrap()) < 5_000_000, "{ns} {took:?}");
    }
}

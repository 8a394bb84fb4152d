//! What TSC a domain reads: the host's, or one that the hypervisor makes of its clock (`tsc_mode`).
//!
//! Source: xen/include/public/domctl.h, struct xen_domctl_tsc_info; xen-tscmode(7); behaviour of Xen 4.17.

#![allow(clippy::cast_possible_truncation, reason = "584 years of nanoseconds fit")]

use super::Clock;

/// Modes of `XEN_DOMCTL_settscinfo`.
pub mod mode {
    /// Emulated where the host's is not reliable, or of another frequency.
    pub const DEFAULT: u32 = 0;
    pub const ALWAYS_EMULATE: u32 = 1;
    pub const NEVER_EMULATE: u32 = 2;
}

/// What the toolstack sets and gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TscInfo {
    pub mode: u32,
    pub khz: u32,
    pub incarnation: u32,
    pub elapsed_ns: u64,
}

/// The TSC of one domain.
#[derive(Debug)]
pub struct GuestTsc {
    mode: u32,
    khz: u32,
    incarnation: u32,
    is_emulated: bool,
    /// System time at which the emulated TSC was 0.
    offset_ns: i64,
    /// What was read last, as time of the domain: no two reads give the same.
    last_ns: i64,
    /// Ticks to nanoseconds.
    pub mul: u32,
    pub shift: i8,
}

impl GuestTsc {
    /// As a domain starts: default mode, the host's frequency. `None` for a mode that does not exist.
    pub fn new(info: &TscInfo, clock: &Clock) -> Option<Self> {
        let host_khz = clock.khz();
        let khz = if info.khz == 0 { host_khz } else { info.khz };
        let is_emulated = match info.mode {
            mode::DEFAULT => !clock.is_stable || khz != host_khz,
            mode::ALWAYS_EMULATE => true,
            mode::NEVER_EMULATE => false,
            _ => return None,
        };
        let (mul, shift) = super::clock::scale(u64::from(khz) * 1000);
        Some(Self {
            mode: info.mode,
            khz,
            incarnation: info.incarnation,
            is_emulated,
            offset_ns: (clock.now_ns() as i64).wrapping_sub(info.elapsed_ns as i64),
            last_ns: 0,
            mul,
            shift,
        })
    }

    /// As the toolstack gets it, to make another domain go on with it.
    pub fn info(&self, clock: &Clock) -> TscInfo {
        let (khz, elapsed) = match self.mode {
            mode::NEVER_EMULATE => (0, 0),
            _ if self.is_emulated => (self.khz, (clock.now_ns() as i64).wrapping_sub(self.offset_ns)),
            _ => (clock.khz(), clock.now_ns() as i64),
        };
        TscInfo { mode: self.mode, khz, incarnation: self.incarnation, elapsed_ns: elapsed.max(0) as u64 }
    }

    /// Whether reads must come to the hypervisor.
    pub fn is_emulated(&self) -> bool {
        self.is_emulated
    }

    /// The mode, the frequency, and how often the domain was restored.
    pub fn summary(&self) -> (u32, u32, u32) {
        (self.mode, self.khz, self.incarnation)
    }

    /// System time at which the emulated TSC was 0.
    pub fn offset_ns(&self) -> u64 {
        self.offset_ns as u64
    }

    /// The emulated TSC at a system time.
    pub fn at(&self, system_ns: u64) -> u64 {
        let ns = i128::from((system_ns as i64).wrapping_sub(self.offset_ns));
        (ns * i128::from(self.khz) / 1_000_000) as i64 as u64
    }

    /// Reads it.
    pub fn read(&mut self, clock: &Clock) -> u64 {
        if !self.is_emulated {
            return super::rdtsc();
        }
        self.last_ns = (clock.now_ns() as i64).max(self.last_ns.wrapping_add(1));
        self.at(self.last_ns as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_modes_and_frequencies() {
        let clock = Clock::calibrate();
        let make = |mode, khz| GuestTsc::new(&TscInfo { mode, khz, ..TscInfo::default() }, &clock);
        assert_eq!(make(0, 0).unwrap().is_emulated(), !clock.is_stable);
        assert!(make(0, 1_000_000).unwrap().is_emulated());
        assert!(make(1, 0).unwrap().is_emulated());
        assert!(!make(2, 1_000_000).unwrap().is_emulated());
        assert!(make(3, 0).is_none());
    }

    #[test]
    fn test_emulated_ticks_count_from_what_had_elapsed_and_never_stand() {
        let clock = Clock::calibrate();
        let info = TscInfo { mode: 1, khz: 1_000_000, incarnation: 3, elapsed_ns: 5_000_000_000 };
        let mut tsc = GuestTsc::new(&info, &clock).unwrap();
        let first = tsc.read(&clock);
        assert!((5_000_000_000..6_000_000_000).contains(&first), "{first}");
        assert!(tsc.read(&clock) > first);
        let later = tsc.info(&clock);
        assert_eq!((later.mode, later.khz, later.incarnation), (1, 1_000_000, 3));
        assert!(later.elapsed_ns >= 5_000_000_000);
    }
}

//! How long an idle worker looks for work before it sleeps. A guest that waits for a device is woken again within
//! microseconds, and to sleep and be woken costs both sides more than that.

/// No wait that is longer is worth a look.
const LOOK_MAX_NS: u64 = 100_000;
const LOOK_FIRST_NS: u64 = 10_000;

/// Looks longer where the last waits were short, and not at all where they were long.
#[derive(Debug, Default)]
pub(super) struct Patience {
    look_ns: u64,
}

impl Patience {
    pub fn look_ns(&self) -> u64 {
        self.look_ns
    }

    /// A worker looked in vain, then slept, and there was work after so long altogether. How long it took to wake does not
    /// count: where that is dear, looking pays most.
    pub fn slept(&mut self, waited_ns: u64) {
        self.look_ns = if waited_ns <= LOOK_MAX_NS { (self.look_ns * 2).clamp(LOOK_FIRST_NS, LOOK_MAX_NS) } else { 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_after_short_waits_only() {
        let mut patience = Patience::default();
        assert_eq!(patience.look_ns(), 0);
        for expected in [10_000, 20_000, 40_000, 80_000, 100_000, 100_000] {
            patience.slept(20_000);
            assert_eq!(patience.look_ns(), expected);
        }
        patience.slept(100_001);
        assert_eq!(patience.look_ns(), 0);
    }
}

//! Progress of a guest whose event handler causes the next event itself.
//!
//! An upcall is delivered at the handler's `iret`, before any instruction of what was interrupted. Where each upcall
//! raises the next one, that goes on for ever on Xen, and PREEMPT_RT kernels (5.10 to 7.x) get there: the
//! `rcu_read_unlock()` of an upcall asks for an irq_work as long as the interrupted task has not scheduled.
//!
//! Differs from Xen: after [`MAX_UPCALLS`] upcalls in a row at one place the guest executes [`NR_STEPS`] instructions
//! of what was interrupted first. An event may come late, so no guest can tell.

/// Far above what a guest has of true events in a row, far below what a person would notice.
pub const MAX_UPCALLS: u32 = 64;
/// Enough to mask events in, from wherever they were unmasked.
pub const NR_STEPS: u32 = 256;

/// Counts upcalls that came back to where they had interrupted, and came again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// RIP and RSP that the last upcall interrupted.
    at: (u64, u64),
    nr_upcalls: u32,
    nr_steps_left: u32,
    /// The vCPU has executed nothing since an `iret`.
    by_iret: bool,
}

impl Progress {
    /// The guest has just returned to somewhere by `iret`.
    pub const fn note_iret(&mut self) {
        self.by_iret = true;
    }

    /// No upcall is due: the guest goes on.
    pub const fn note_quiet(&mut self) {
        self.by_iret = false;
        self.nr_steps_left = 0;
    }

    /// Whether an upcall that is due is to wait for one more instruction. `at`: RIP and RSP.
    pub fn holds_back(&mut self, at: (u64, u64)) -> bool {
        if self.nr_steps_left > 0 {
            self.nr_steps_left -= 1;
            if self.nr_steps_left > 0 {
                return true;
            }
            self.by_iret = false;
        }
        let is_again = std::mem::take(&mut self.by_iret) && at == self.at;
        self.nr_upcalls = if is_again { self.nr_upcalls + 1 } else { 0 };
        self.at = at;
        if self.nr_upcalls < MAX_UPCALLS {
            return false;
        }
        self.nr_upcalls = 0;
        self.nr_steps_left = NR_STEPS;
        true
    }

    /// Whether [`Progress::holds_back`] has said so: one instruction is to be executed.
    pub const fn is_held_back(&self) -> bool {
        self.nr_steps_left > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: (u64, u64) = (0x1000, 0x2000);

    /// Upcalls at one place until one is held back; `None` if none of many is.
    fn upcalls(progress: &mut Progress, mut between: impl FnMut(&mut Progress)) -> Option<u32> {
        (0..3 * MAX_UPCALLS).find(|_| {
            let held = progress.holds_back(AT);
            progress.note_iret();
            between(progress);
            held
        })
    }

    #[test]
    fn test_upcalls_without_progress_are_held_back_for_some_instructions() {
        let mut progress = Progress::default();
        assert_eq!(upcalls(&mut progress, |_| ()), Some(MAX_UPCALLS));
        assert!(progress.is_held_back());
        let nr_steps = 1 + (0..2 * NR_STEPS).take_while(|_| progress.holds_back((0x1001, 0))).count();
        assert_eq!(nr_steps, NR_STEPS as usize);
        assert!(!progress.is_held_back(), "then the upcall is delivered");
        assert_eq!(upcalls(&mut progress, |_| ()), Some(MAX_UPCALLS));
    }

    #[test]
    fn test_upcalls_with_progress_between_are_not() {
        let mut progress = Progress::default();
        assert_eq!(upcalls(&mut progress, Progress::note_quiet), None);
        let mut rip = 0;
        assert!((0..3 * MAX_UPCALLS).all(|_| {
            rip += 1;
            progress.note_iret();
            !progress.holds_back((rip, 0))
        }));
    }

    #[test]
    fn test_masking_events_ends_it() {
        let mut progress = Progress::default();
        assert!(upcalls(&mut progress, |_| ()).is_some());
        progress.note_quiet();
        assert!(!progress.is_held_back());
        assert!(!progress.holds_back(AT));
    }
}

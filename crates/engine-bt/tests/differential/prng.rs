//! A small seeded generator of pseudo-random numbers (splitmix64), so that a failure is repeated by its seed.

#[derive(Clone, Debug)]
pub struct Prng {
    state: u64,
    /// Whether addresses are to lie on the read-only page more often than not.
    pub favours_read_only: bool,
    /// Whether many addresses are to be bad.
    pub favours_faults: bool,
    /// Whether there are to be many loops, and the engine is to follow each.
    pub favours_loops: bool,
}

impl Prng {
    pub fn new(seed: u64) -> Self {
        Self { state: seed, favours_read_only: false, favours_faults: false, favours_loops: false }
    }

    pub fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

//! What a code cache counts, for those who look into its performance.

/// What has become of blocks so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub translated: u64,
    /// Of those, the ones since the cache was last empty that are for an archive.
    pub lasting: u64,
    /// Of all of them, those that follow a loop.
    pub traces: u64,
    /// Taken out of an archive.
    pub woken: u64,
    /// Dropped, and taken up again as they were.
    pub revived: u64,
    /// Frames whose blocks were dropped because of a store, and how many blocks that were.
    pub dropped_frames: u64,
    pub dropped_blocks: u64,
    /// Regions that were emptied for room.
    pub evictions: u64,
}

impl Counters {
    pub fn add(&mut self, other: Self) {
        self.translated += other.translated;
        self.traces += other.traces;
        self.woken += other.woken;
        self.revived += other.revived;
        self.dropped_frames += other.dropped_frames;
        self.dropped_blocks += other.dropped_blocks;
        self.evictions += other.evictions;
    }

    /// The figures with their names.
    pub fn named(self) -> Vec<(&'static str, u64)> {
        vec![
            ("blocks translated", self.translated),
            ("loops followed", self.traces),
            ("blocks woken", self.woken),
            ("blocks revived", self.revived),
            ("frames written", self.dropped_frames),
            ("blocks dropped", self.dropped_blocks),
            ("regions emptied", self.evictions),
        ]
    }
}

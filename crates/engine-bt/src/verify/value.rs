//! What the verifier knows of registers and of words in the state at one place.

use super::layout::NR_WORDS;

/// Names a value: equal names are equal values. Values that nothing is known of have names too.
pub type Name = u64;

/// What a value is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Plain,
    /// The address `of`, shifted as the TLB wants it.
    Shifted {
        of: Name,
    },
    /// Offset of the TLB entry that the address `of` selects.
    Selects {
        of: Name,
    },
    /// The address `of` XOR a tag of the TLB entry at `entry`.
    Difference {
        of: Name,
        entry: Name,
        write: bool,
    },
    /// That, plus the value `count` times `scale`, which is at most a page.
    RunDifference {
        of: Name,
        entry: Name,
        write: bool,
        count: Name,
        scale: u32,
    },
    /// Low half of the address `of`.
    Low {
        of: Name,
    },
    /// Offset in its page of the address `of`.
    PageOffset {
        of: Name,
    },
    /// Host address of guest memory: this many bytes may be accessed from it on.
    Host {
        room: u64,
        write: bool,
    },
    /// Host address of guest memory: the value `count` times `scale` bytes may be accessed from it on.
    HostRun {
        count: Name,
        scale: u32,
        write: bool,
    },
    /// Perhaps a host address, and good for nothing.
    Spent,
    /// An address of the block's own.
    Code(u64),
}

/// An abstract value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    pub name: Name,
    /// At most this.
    pub max: u64,
    /// No other bits than these are set.
    pub bits: u64,
    pub kind: Kind,
}

impl Value {
    pub fn plain(name: Name) -> Self {
        Self { name, max: u64::MAX, bits: u64::MAX, kind: Kind::Plain }
    }

    pub fn of_kind(name: Name, kind: Kind) -> Self {
        Self { kind, ..Self::plain(name) }
    }

    pub fn masked(name: Name, bits: u64, kind: Kind) -> Self {
        Self { name, max: bits, bits, kind }
    }

    /// Whether it must not get to where the guest sees it.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Kind::Host { .. } | Kind::HostRun { .. } | Kind::Spent | Kind::Code(_))
    }

    fn join(&self, other: &Self, name: Name) -> Self {
        if self == other {
            return *self;
        }
        let kind = match (self.kind, other.kind) {
            (a, b) if a == b => a,
            (Kind::Host { room, write }, Kind::Host { room: other_room, write: other_write }) => {
                Kind::Host { room: room.min(other_room), write: write && other_write }
            }
            _ if self.is_secret() || other.is_secret() => Kind::Spent,
            _ => Kind::Plain,
        };
        let name = if self.name == other.name { self.name } else { name };
        Self { name, max: self.max.max(other.max), bits: self.bits | other.bits, kind }
    }
}

/// A TLB hit for a run: the bytes of `count` times `scale` from `of` on lie in the page of the entry at `entry`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunHit {
    pub of: Name,
    pub entry: Name,
    pub write: bool,
    pub count: Name,
    pub scale: u32,
}

/// What is known before an instruction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub registers: [Value; 16],
    pub words: [Value; NR_WORDS],
    /// What `State::access_info` holds.
    pub access_info: Option<u32>,
    /// The flags are those of a comparison of this value with a constant.
    pub compared: Option<(Name, u64)>,
    pub hits: Vec<RunHit>,
}

impl Known {
    /// At an entry of a block. R11 holds its linear address at the far one; the block that went before may have left
    /// anything in it, and in R10, at the near one.
    pub fn at_entry(place: u64, is_far: bool) -> Self {
        let is_scratch = |n: usize| n == 10 || n == 11 && !is_far;
        let kind = |n: usize| if is_scratch(n) { Kind::Spent } else { Kind::Plain };
        Self {
            registers: std::array::from_fn(|n| Value::of_kind(name_at(place, n), kind(n))),
            // What an earlier block left there.
            words: std::array::from_fn(|n| Value::of_kind(name_at(place, 16 + n), Kind::Spent)),
            access_info: None,
            compared: None,
            hits: Vec::new(),
        }
    }

    /// What holds whichever way `place` was reached.
    pub fn join(&self, other: &Self, place: u64) -> Self {
        let merged = |n: usize, a: &Value, b: &Value| a.join(b, name_at(place, 64 + n));
        Self {
            registers: std::array::from_fn(|n| merged(n, &self.registers[n], &other.registers[n])),
            words: std::array::from_fn(|n| merged(16 + n, &self.words[n], &other.words[n])),
            access_info: self.access_info.filter(|_| self.access_info == other.access_info),
            compared: self.compared.filter(|_| self.compared == other.compared),
            hits: self.hits.iter().copied().filter(|hit| other.hits.contains(hit)).collect(),
        }
    }
}

/// A name for what the instruction at `place` leaves in place `slot`.
pub fn name_at(place: u64, slot: usize) -> Name {
    place << 8 | slot as u64
}

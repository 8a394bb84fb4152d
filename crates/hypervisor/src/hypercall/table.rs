//! The table of hypercalls: coverage as data, and a counter for each row.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;
use ring3_abi::hypercall::NR_HYPERCALLS;

use super::rows::ROWS;

/// Sub-op of the row for a hypercall as a whole.
pub const WHOLE: u32 = u32::MAX;
/// Sub-ops below this are counted; there is no greater one in the ABI but by a hostile caller.
const NR_SUBOPS: usize = 128;

/// How much of a hypercall there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Coverage {
    Full,
    /// The note says what is missing.
    Partial,
    /// Answered with an error on purpose; the note says which.
    Refused,
    /// -ENOSYS.
    Absent,
}

impl Coverage {
    /// Name as in docs/coverage.md.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Partial => "partial",
            Self::Refused => "refused",
            Self::Absent => "absent",
        }
    }

    /// By name.
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Full, Self::Partial, Self::Refused, Self::Absent].into_iter().find(|c| c.name() == name)
    }
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub op: u32,
    /// [`WHOLE`] for the hypercall itself.
    pub subop: u32,
    pub name: String,
    pub coverage: Coverage,
    pub note: String,
}

#[derive(Debug)]
struct Counters {
    whole: AtomicU64,
    subops: Box<[AtomicU64]>,
}

/// Rows and counters.
#[derive(Debug)]
pub struct Table {
    rows: RwLock<Vec<Row>>,
    counters: Box<[Counters]>,
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

impl Table {
    /// The rows of all native hypercalls.
    pub fn new() -> Self {
        let rows = ROWS.iter().map(|&(op, subop, name, coverage, note)| Row {
            op,
            subop,
            name: name.to_owned(),
            coverage,
            note: note.to_owned(),
        });
        let counters = (0..NR_HYPERCALLS).map(|_| Counters {
            whole: AtomicU64::new(0),
            subops: (0..NR_SUBOPS).map(|_| AtomicU64::new(0)).collect(),
        });
        Self { rows: RwLock::new(rows.collect()), counters: counters.collect() }
    }

    /// Counts a call. No lock.
    pub fn count(&self, op: u32, subop: u32) {
        let Some(counters) = self.counters.get(op as usize) else { return };
        let counter = if subop == WHOLE { Some(&counters.whole) } else { counters.subops.get(subop as usize) };
        if let Some(counter) = counter {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Calls counted.
    pub fn calls(&self, op: u32, subop: u32) -> u64 {
        let Some(counters) = self.counters.get(op as usize) else { return 0 };
        let counter = if subop == WHOLE { Some(&counters.whole) } else { counters.subops.get(subop as usize) };
        counter.map_or(0, |c| c.load(Ordering::Relaxed))
    }

    /// Adds a row, unless there is one for the same call: native handlers come first, and so do their rows.
    pub fn add(&self, row: Row) {
        let mut rows = self.rows.write();
        if !rows.iter().any(|r| r.op == row.op && r.subop == row.subop) {
            rows.push(row);
        }
    }

    /// All rows with their counts, in order of number; calls that no row names are listed as absent.
    pub fn snapshot(&self) -> Vec<(Row, u64)> {
        let mut all: Vec<(Row, u64)> =
            self.rows.read().iter().map(|row| (row.clone(), self.calls(row.op, row.subop))).collect();
        for (op, counters) in (0u32..).zip(&self.counters) {
            let named = |subop: u32| all.iter().any(|(row, _)| row.op == op && row.subop == subop);
            let numbers = (0u32..).zip(&counters.subops).map(|(subop, c)| (subop, c.load(Ordering::Relaxed)));
            let whole = std::iter::once((WHOLE, counters.whole.load(Ordering::Relaxed)));
            let unnamed: Vec<_> = whole.chain(numbers).filter(|&(subop, n)| n != 0 && !named(subop)).collect();
            for (subop, calls) in unnamed {
                let name = if subop == WHOLE { format!("hypercall {op}") } else { format!("sub-op {subop}") };
                let row = Row { op, subop, name, coverage: Coverage::Absent, note: String::new() };
                all.push((row, calls));
            }
        }
        all.sort_by_key(|(row, _)| (row.op, row.subop.wrapping_add(1)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_rows_are_unique_and_counted() {
        let table = Table::new();
        table.count(24, 3);
        table.count(24, WHOLE);
        table.count(9999, 0);
        table.count(24, 12345);
        let rows = table.snapshot();
        for (index, (row, _)) in rows.iter().enumerate() {
            let twin = rows.iter().skip(index + 1).any(|(other, _)| (other.op, other.subop) == (row.op, row.subop));
            assert!(!twin, "{row:?}");
        }
        assert_eq!(table.calls(24, 3), 1);
        assert!(rows.iter().any(|(row, calls)| row.op == 24 && row.subop == WHOLE && *calls == 1));
    }

    #[test]
    fn test_unknown_calls_show_as_absent() {
        let table = Table::new();
        table.count(63, WHOLE);
        assert!(table.snapshot().iter().any(|(row, n)| row.op == 63 && row.coverage == Coverage::Absent && *n == 1));
    }
}

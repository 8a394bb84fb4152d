//! The jump caches: guest linear address to the far entry of a block, one table for each mode.
//!
//! A table is made of buckets of four entries, which share a cache line. Translated code looks at the entry that the
//! address selects; a stub then looks at the other three of its bucket before it asks Rust.

use std::mem::offset_of;

use crate::state::{JUMP_ENTRIES, JumpEntry, State};
use crate::tlb::FillLog;

/// Entries of a bucket.
pub const WAYS: usize = 4;
/// Multiplier of the hash: 2^32 divided by the golden ratio, odd.
pub const HASH: u32 = 0x9e37_79b1;
/// Shift that makes the hash of an address a byte offset in the table, but for the bits below an entry's size.
pub const HASH_SHIFT: u8 = (32 - JUMP_ENTRIES.trailing_zeros() - size_of::<JumpEntry>().trailing_zeros()) as u8;
/// What is kept of the shifted hash.
pub const HASH_MASK: u32 = ((JUMP_ENTRIES - 1) * size_of::<JumpEntry>()) as u32;

type Table = [JumpEntry; JUMP_ENTRIES];

/// Offset in the state of a mode's table.
pub fn offset(mode: usize) -> usize {
    offset_of!(State, jumps) + mode * size_of::<Table>()
}

/// The entry that an address selects. `far_exit` emits the same computation.
fn index(rip: u64) -> usize {
    ((rip as u32).wrapping_mul(HASH) >> HASH_SHIFT & HASH_MASK) as usize / size_of::<JumpEntry>()
}

fn bucket(rip: u64) -> impl Iterator<Item = usize> {
    let first = index(rip);
    (0..WAYS).map(move |way| first ^ way)
}

/// The host address for `rip`. Empty entries say RIP 0, which is never found.
pub fn find(table: &Table, rip: u64) -> Option<u64> {
    let entry = bucket(rip).filter_map(|index| table.get(index)).find(|entry| entry.rip == rip)?;
    (rip != 0).then_some(entry.host)
}

/// Enters an address. In a full bucket, what was in its place goes to one that `turn` chooses, perhaps to none: who was
/// wanted there comes back, and in time all that are wanted have settled in the place of those that are not.
pub fn enter(table: &mut Table, log: &mut FillLog, turn: usize, rip: u64, host: u64) {
    let free = |entry: &JumpEntry| entry.rip == rip || entry.rip == 0;
    let place = bucket(rip).find(|&index| table.get(index).is_some_and(free));
    let place = place.unwrap_or_else(|| {
        let first = index(rip);
        // Hashed, so as not to keep step with addresses that miss in turns.
        let other = first ^ (turn as u32).wrapping_mul(HASH) as usize >> 16 & (WAYS - 1);
        if let Some(&old) = table.get(first)
            && let Some(entry) = table.get_mut(other)
        {
            *entry = old;
            log.note(other, old.rip);
        }
        first
    });
    if let Some(entry) = table.get_mut(place) {
        *entry = JumpEntry { rip, host };
        log.note(place, rip);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Box<Table> {
        vec![JumpEntry { rip: 0, host: 1 }; JUMP_ENTRIES].into_boxed_slice().try_into().unwrap()
    }

    #[test]
    fn test_addresses_of_a_bucket_settle() {
        let mut table = table();
        let mut log = FillLog::default();
        let same = |rip: &u64| index(*rip) / WAYS == index(0xffff_ffff_8100_0000) / WAYS;
        let rips: Vec<u64> = (0xffff_ffff_8100_0000u64..).filter(same).take(8).collect();
        let (unwanted, wanted) = rips.split_at(4);
        for (turn, &rip) in unwanted.iter().enumerate() {
            enter(&mut table, &mut log, turn, rip, rip + 1);
            assert_eq!(find(&table, rip), Some(rip + 1));
        }
        let nr_misses = (0..100).map(|turn| wanted[turn % 3]).enumerate().filter(|&(turn, rip)| {
            let is_there = find(&table, rip) == Some(rip + 1);
            if !is_there {
                enter(&mut table, &mut log, turn, rip, rip + 1);
            }
            !is_there
        });
        assert!(nr_misses.count() < 20);
        // Every entry in use is listed.
        let mut listed = Vec::new();
        log.drain(JUMP_ENTRIES, |index| listed.push(index));
        assert!((0..JUMP_ENTRIES).all(|index| table[index].rip == 0 || listed.contains(&index)));
        assert_eq!(find(&table, 0), None);
    }
}

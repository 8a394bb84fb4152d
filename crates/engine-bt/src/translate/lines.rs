//! The bytes of a page that a block depends on, by lines of 64 bytes: a bit for each of its 64 lines.

use std::ops::Range;

use ring3_machine::PAGE_SIZE_BYTES;

/// A set of lines.
pub type Lines = u64;

/// Bytes of a line.
pub const LINE_BYTES: usize = PAGE_SIZE_BYTES / Lines::BITS as usize;

/// The lines that have a byte of `bytes`, which may go past the page's end.
pub fn lines(bytes: Range<usize>) -> Lines {
    let end = bytes.end.min(PAGE_SIZE_BYTES);
    if bytes.start >= end {
        return 0;
    }
    let (first, last) = (bytes.start / LINE_BYTES, (end - 1) / LINE_BYTES);
    (Lines::MAX >> (Lines::BITS as usize - 1 - (last - first))) << first
}

/// The bytes of a set of lines of a page.
pub fn chosen_lines(page: &[u8], of: Lines) -> impl Iterator<Item = &[u8]> {
    page.chunks_exact(LINE_BYTES)
        .take(Lines::BITS as usize)
        .enumerate()
        .filter(move |(n, _)| of >> n & 1 != 0)
        .map(|(_, line)| line)
}

/// Hashes of a page's lines. Equal sums for different bytes come about by chance only, or by the doing of a guest that
/// then runs its own old code.
#[derive(Debug)]
pub struct LineHashes([u64; Lines::BITS as usize]);

impl LineHashes {
    /// Of a page, as far as `wanted` goes.
    pub fn new(page: &[u8], wanted: Lines) -> Self {
        let mut hashes = [0; Lines::BITS as usize];
        for (n, (hash, line)) in hashes.iter_mut().zip(page.chunks_exact(LINE_BYTES)).enumerate() {
            if wanted >> n & 1 != 0 {
                *hash = hash_of(n, line);
            }
        }
        Self(hashes)
    }

    /// One number for a set of lines.
    pub fn sum(&self, of: Lines) -> u64 {
        let chosen = self.0.iter().enumerate().filter(|(n, _)| of >> n & 1 != 0);
        chosen.fold(0, |sum, (_, &hash)| mix(sum, hash))
    }
}

/// What `LineHashes::sum` returns for a page whose lines `of` have these bytes, one after the other.
pub fn sum_of(chosen: &[u8], of: Lines) -> u64 {
    let numbers = (0..Lines::BITS as usize).filter(|n| of >> n & 1 != 0);
    numbers.zip(chosen.chunks_exact(LINE_BYTES)).fold(0, |sum, (n, line)| mix(sum, hash_of(n, line)))
}

fn hash_of(n: usize, line: &[u8]) -> u64 {
    let words = line.chunks_exact(8).filter_map(|word| word.try_into().ok().map(u64::from_le_bytes));
    words.fold(n as u64, mix)
}

fn mix(sum: u64, word: u64) -> u64 {
    let product = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (product ^ product >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93).rotate_left(23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_lines_of_ranges() {
        assert_eq!(lines(0..0), 0);
        assert_eq!(lines(0..1), 1);
        assert_eq!(lines(63..65), 3);
        assert_eq!(lines(4095..4200), 1 << 63);
        assert_eq!(lines(0..4096), Lines::MAX);
        assert_eq!(lines(4096..5000), 0);
    }

    #[test]
    fn test_a_sum_tells_bytes_and_places_apart() {
        let mut page = [0u8; PAGE_SIZE_BYTES];
        let before = LineHashes::new(&page, Lines::MAX);
        page[64] = 1;
        let after = LineHashes::new(&page, Lines::MAX);
        assert_ne!(before.sum(2), after.sum(2));
        assert_ne!(before.sum(3), after.sum(3));
        assert_eq!(before.sum(!2), after.sum(!2));
        assert_ne!(before.sum(1), before.sum(4));
        let of = 1 << 1 | 1 << 7 | 1 << 63;
        page[450] = 3;
        let chosen: Vec<u8> = chosen_lines(&page, of).flatten().copied().collect();
        assert_eq!(sum_of(&chosen, of), LineHashes::new(&page, of).sum(of));
    }
}

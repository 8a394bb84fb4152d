//! Lists of blocks, kept by their region in one piece each: it goes as a whole, and thousands of small allocations would leave a
//! heap full of holes.

/// A part of a region's list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Part {
    pub first: u32,
    pub nr: u32,
}

impl Part {
    /// Puts things at the end of a list.
    pub fn add<T>(list: &mut Vec<T>, things: impl IntoIterator<Item = T>) -> Self {
        let first = list.len();
        list.extend(things);
        Self { first: first as u32, nr: (list.len() - first) as u32 }
    }

    /// What is listed there; nothing if that is not all within the list.
    pub fn of<T>(self, list: &[T]) -> &[T] {
        list.get(self.first as usize..).and_then(|rest| rest.get(..self.nr as usize)).unwrap_or_default()
    }
}

/// Where a block's list of jumps begins.
#[derive(Clone, Copy, Debug)]
pub struct Incoming(u32);

impl Incoming {
    pub const NONE: Self = Self(u32::MAX);
}

/// The jumps that were pointed at a region's blocks, by their numbers: a chain for each block.
#[derive(Debug)]
pub struct Jumps {
    /// Number of the jump, and where the chain goes on.
    cells: Vec<(u32, Incoming)>,
    free: Incoming,
}

impl Default for Jumps {
    fn default() -> Self {
        Self { cells: Vec::new(), free: Incoming::NONE }
    }
}

impl Jumps {
    pub fn push(&mut self, chain: &mut Incoming, number: u32) {
        let free = self.free;
        if let Some(cell) = self.cells.get_mut(free.0 as usize) {
            self.free = cell.1;
            *cell = (number, *chain);
            *chain = free;
        } else {
            self.cells.push((number, *chain));
            *chain = Incoming(self.cells.len() as u32 - 1);
        }
    }

    /// Takes a chain apart: from now on it is empty.
    pub fn take(&mut self, chain: &mut Incoming) -> Vec<u32> {
        let mut numbers = Vec::new();
        let mut at = std::mem::replace(chain, Incoming::NONE);
        while let Some(cell) = self.cells.get_mut(at.0 as usize) {
            numbers.push(cell.0);
            let next = std::mem::replace(&mut cell.1, self.free);
            self.free = at;
            at = next;
        }
        numbers
    }

    pub fn clear(&mut self) {
        self.cells.clear();
        self.free = Incoming::NONE;
    }
}

#[cfg(test)]
mod tests {
    use super::{Incoming, Jumps, Part};

    #[test]
    fn test_chains_are_taken_apart_and_their_cells_used_again() {
        let mut jumps = Jumps::default();
        let (mut one, mut other) = (Incoming::NONE, Incoming::NONE);
        for number in 0..10 {
            jumps.push(if number % 3 == 0 { &mut one } else { &mut other }, number);
        }
        assert_eq!(jumps.take(&mut one), [9, 6, 3, 0]);
        assert_eq!(jumps.take(&mut one), []);
        for number in 20..26 {
            jumps.push(&mut one, number);
        }
        assert_eq!(jumps.cells.len(), 12);
        assert_eq!(jumps.take(&mut other), [8, 7, 5, 4, 2, 1]);
        assert_eq!(jumps.take(&mut one), [25, 24, 23, 22, 21, 20]);
    }

    #[test]
    fn test_parts_lie_within_their_list() {
        let mut list = vec![1, 2];
        let part = Part::add(&mut list, [3, 4, 5]);
        assert_eq!((part, part.of(&list)), (Part { first: 2, nr: 3 }, [3, 4, 5].as_slice()));
        assert!(part.of(&list[..4]).is_empty());
        assert!(Part { first: 9, nr: 1 }.of(&list).is_empty());
    }
}

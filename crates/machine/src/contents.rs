//! What folded frames hold.
//!
//! Frames that hold the same, of whichever domain, share what is packed. Whether a frame is packed, and how long it takes to
//! make it anew, depends on its own bytes alone: no domain learns that way what another one holds.
#![allow(clippy::cast_possible_truncation, reason = "bytes out of notes, and parts of hashes")]

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use crate::PAGE_SIZE_BYTES;
use crate::packed::Packed;

/// What a folded frame holds.
#[derive(Debug)]
pub(crate) enum Content<P = Packed> {
    Byte(u8),
    Packed(P),
}

impl Content<&Packed> {
    pub fn copy(&self) -> [u8; PAGE_SIZE_BYTES] {
        match self {
            Self::Byte(byte) => [*byte; PAGE_SIZE_BYTES],
            Self::Packed(packed) => packed.unpack(),
        }
    }
}

/// What one frame or several hold.
#[derive(Debug)]
struct Slot {
    packed: Packed,
    nr_frames: u32,
}

/// The contents of folded frames.
#[derive(Debug)]
pub(crate) struct Contents {
    /// By frame: nothing, a byte, or a slot. Zeros that nobody has touched take no memory.
    notes: Vec<u32>,
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    /// The slots by part of their contents' hash: the first of those that have it in common.
    by_hash: HashMap<u32, u32>,
    hasher: RandomState,
}

/// Values of [`Contents::notes`]: 0 says nothing, then follow bytes, then slots.
const FIRST_BYTE: u32 = 1;
const FIRST_SLOT: u32 = FIRST_BYTE + 256;

impl Contents {
    pub fn new(nr_frames: usize) -> Self {
        let (notes, hasher) = (vec![0; nr_frames], RandomState::new());
        Self { notes, slots: Vec::new(), free: Vec::new(), by_hash: HashMap::new(), hasher }
    }

    fn note(&mut self, number: u64) -> Option<&mut u32> {
        usize::try_from(number).ok().and_then(|at| self.notes.get_mut(at))
    }

    fn slot(&mut self, slot: u32) -> Option<&mut Slot> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    pub fn insert(&mut self, number: u64, content: Content) {
        let value = match content {
            Content::Byte(byte) => FIRST_BYTE + u32::from(byte),
            Content::Packed(packed) => FIRST_SLOT + self.hold(packed),
        };
        self.note(number).into_iter().for_each(|note| *note = value);
    }

    /// Returns the slot that holds this, one more time.
    fn hold(&mut self, packed: Packed) -> u32 {
        let hash = self.hasher.hash_one(&packed) as u32;
        if let Some(slot) = self.by_hash.get(&hash).copied()
            && let Some(held) = self.slot(slot).filter(|held| held.packed == packed)
        {
            held.nr_frames += 1;
            return slot;
        }
        let new = Some(Slot { packed, nr_frames: 1 });
        let slot = if let Some(slot) = self.free.pop() {
            self.slots[slot as usize] = new;
            slot
        } else {
            self.slots.push(new);
            self.slots.len() as u32 - 1 // no more than frames
        };
        self.by_hash.entry(hash).or_insert(slot);
        slot
    }

    /// Forgets what a frame holds, which `last` may look at. Returns whether it held anything.
    pub fn remove(&mut self, number: u64, last: impl FnOnce(Content<&Packed>)) -> bool {
        let value = self.note(number).map(std::mem::take).unwrap_or_default();
        if let Some(slot) = value.checked_sub(FIRST_SLOT) {
            let Some(held) = self.slot(slot) else { return false };
            last(Content::Packed(&held.packed));
            held.nr_frames -= 1;
            if held.nr_frames == 0 {
                self.release(slot);
            }
            true
        } else if let Some(byte) = value.checked_sub(FIRST_BYTE) {
            last(Content::Byte(byte as u8));
            true
        } else {
            false
        }
    }

    fn release(&mut self, slot: u32) {
        let Some(held) = self.slots.get_mut(slot as usize).and_then(Option::take) else { return };
        let hash = self.hasher.hash_one(&held.packed) as u32;
        if self.by_hash.get(&hash) == Some(&slot) {
            self.by_hash.remove(&hash);
        }
        self.free.push(slot);
    }
}

//! The state word of a frame: both counts, the type and its flags, so that one compare-and-swap takes or drops a
//! general and a type reference together.

use std::sync::atomic::{AtomicU32, AtomicU64};

/// What a frame is used as. Numbers are this module's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum PageType {
    /// Never typed since it was allocated.
    None = 0,
    /// Page table, by level.
    L1 = 1,
    L2 = 2,
    L3 = 3,
    L4 = 4,
    /// GDT or LDT page.
    SegDesc = 5,
    /// Mapped writable, or written by the hypervisor for the guest.
    Writable = 7,
}

impl PageType {
    /// The page-table type of a level, 1 to 4.
    pub const fn table(level: u32) -> Option<Self> {
        match level {
            1 => Some(Self::L1),
            2 => Some(Self::L2),
            3 => Some(Self::L3),
            4 => Some(Self::L4),
            _ => None,
        }
    }

    /// Level of a page table, 1 to 4.
    pub const fn level(self) -> Option<u32> {
        match self {
            Self::L1 => Some(1),
            Self::L2 => Some(2),
            Self::L3 => Some(3),
            Self::L4 => Some(4),
            Self::None | Self::SegDesc | Self::Writable => None,
        }
    }

    const fn from_bits(bits: u64) -> Self {
        match bits & 7 {
            1 => Self::L1,
            2 => Self::L2,
            3 => Self::L3,
            4 => Self::L4,
            5 => Self::SegDesc,
            7 => Self::Writable,
            _ => Self::None,
        }
    }
}

const COUNT_BITS: u32 = 28;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
const TYPE_SHIFT: u32 = 2 * COUNT_BITS;

/// A value of [`Frame::word`].
///
/// Bits 0-27 general count, 28-55 type count, 56-58 type, then flags. The type stays when its count drops to zero:
/// only a *change* of type needs a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word(pub u64);

/// One general reference.
pub(super) const ONE: u64 = 1;
/// One type reference.
pub(super) const ONE_TYPE: u64 = 1 << COUNT_BITS;
/// A pin holds one reference of each kind.
pub(super) const PINNED: u64 = 1 << 59;
/// Contents were checked against the type; always set together with a non-zero count, except during a change.
pub(super) const VALIDATED: u64 = 1 << 60;
/// The allocation holds a general reference.
pub(super) const ALLOCATED: u64 = 1 << 61;
/// Xen-heap frame shared with the domain: not part of its reservation, writable for good.
pub(super) const SHARED: u64 = 1 << 62;
/// Was mapped by another domain since it was allocated, so its stale translations may be anywhere.
pub(super) const FOREIGN: u64 = 1 << 63;

impl Word {
    pub const fn count(self) -> u64 {
        self.0 & COUNT_MAX
    }

    pub const fn type_count(self) -> u64 {
        (self.0 >> COUNT_BITS) & COUNT_MAX
    }

    pub const fn page_type(self) -> PageType {
        PageType::from_bits(self.0 >> TYPE_SHIFT)
    }

    pub const fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    pub const fn is_full(self) -> bool {
        self.count() == COUNT_MAX || self.type_count() == COUNT_MAX
    }

    /// The word with another type, type count 0, neither validated nor pinned.
    pub const fn retyped(self, page_type: PageType) -> Self {
        let cleared = self.0 & !(7 << TYPE_SHIFT | COUNT_MAX << COUNT_BITS | VALIDATED | PINNED);
        Self(cleared | (page_type as u64) << TYPE_SHIFT)
    }
}

/// What is known of one frame. All zeros: free, or never used.
#[derive(Debug, bytemuck::Zeroable)]
#[repr(C)]
pub(super) struct Frame {
    /// A [`Word`].
    pub word: AtomicU64,
    /// Number of the first flush that would make it safe to change the type (see `flush`); 0: none is needed.
    pub stamp: AtomicU64,
    /// Owner's domid plus 1; 0: nobody. Changes only while the general count is zero, or at domain destruction.
    pub owner: AtomicU32,
    /// Index in the owner's page list; guarded by the heap lock.
    pub list_index: AtomicU32,
}

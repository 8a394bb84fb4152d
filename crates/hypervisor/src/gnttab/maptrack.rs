//! The mapper's half: a handle for each mapping of a grant.

use std::sync::Weak;

use ring3_machine::Mfn;

use crate::domain::Domain;

/// Handles in one maptrack frame of Xen, in which the toolstack counts the limit.
pub const HANDLES_PER_FRAME: u32 = 256;

/// One mapping.
#[derive(Clone, Debug)]
pub(crate) struct Mapping {
    /// Whose grant. It may be gone before the mapping.
    pub granter: Weak<Domain>,
    pub gref: u32,
    pub mfn: Mfn,
    /// GNTMAP_* of what is mapped still.
    pub flags: u32,
    /// Connection of domain 0 that made it; 0 for a guest's.
    pub holder: u32,
}

/// The mappings that one domain made.
#[derive(Debug)]
pub struct Maptrack {
    mappings: Vec<Option<Mapping>>,
    free: Vec<u32>,
    limit: u32,
}

impl Maptrack {
    /// Room for `max_frames` times 256 mappings.
    pub fn new(max_frames: u32) -> Self {
        Self { mappings: Vec::new(), free: Vec::new(), limit: max_frames.saturating_mul(HANDLES_PER_FRAME) }
    }

    /// Whether a handle is left.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() || (self.mappings.len() as u64) < u64::from(self.limit)
    }

    /// Enters a mapping; returns its handle. There must be room.
    pub(super) fn insert(&mut self, mapping: Mapping) -> u32 {
        if let Some(handle) = self.free.pop()
            && let Some(slot) = self.mappings.get_mut(handle as usize)
        {
            *slot = Some(mapping);
            return handle;
        }
        self.mappings.push(Some(mapping));
        u32::try_from(self.mappings.len() - 1).unwrap_or(u32::MAX)
    }

    /// The mapping of a handle that `holder` may change.
    pub(super) fn get_mut(&mut self, handle: u32, holder: u32) -> Option<&mut Mapping> {
        self.mappings.get_mut(handle as usize)?.as_mut().filter(|mapping| mapping.holder == holder)
    }

    /// Frees a handle.
    pub(super) fn remove(&mut self, handle: u32) {
        if self.mappings.get_mut(handle as usize).is_some_and(|slot| slot.take().is_some()) {
            self.free.push(handle);
        }
    }

    /// Takes out every mapping of a holder.
    pub(super) fn take_all(&mut self, holder: u32) -> Vec<Mapping> {
        let mut taken = Vec::new();
        for (handle, slot) in (0u32..).zip(&mut self.mappings) {
            if let Some(mapping) = slot.take_if(|mapping| mapping.holder == holder) {
                self.free.push(handle);
                taken.push(mapping);
            }
        }
        taken
    }

    /// Every mapping that is in use.
    pub(super) fn in_use(&self) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().flatten()
    }

    /// Number of mappings.
    pub fn nr_mapped(&self) -> usize {
        self.mappings.len() - self.free.len()
    }
}

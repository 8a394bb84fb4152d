//! What a process of domain 0 maps of other domains by frame number.
//!
//! A paravirtual domain 0 maps a frame by an entry of its page tables, and the entry holds references: the frame stays
//! the domain's, and is no page table while it is mapped writable. The tables of a process are the host's. So it says by
//! the same hypercall (update_va_mapping_otherdomain) what it is about to map of the machine's memfd, and where, and the
//! entry is kept here, with its references, until the process takes it back or ends.

use std::collections::HashMap;

use parking_lot::Mutex;
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::Connection;
use crate::hypervisor::Hypervisor;
use crate::mm::{Domid, Held, Result};

/// The entries of one process by page number of its linear address.
#[derive(Debug, Default)]
pub(crate) struct ForeignEntries {
    entries: Mutex<HashMap<u64, u64>>,
}

impl ForeignEntries {
    /// Adds the references of all entries.
    pub fn hold(&self, held: &mut Held) {
        for &entry in self.entries.lock().values() {
            if entry & pte::RW == 0 {
                held.general(pte::mfn(entry));
            } else {
                held.typed_by(pte::mfn(entry), "a mapping of domain 0");
            }
        }
    }
}

impl Hypervisor {
    /// Replaces the entry of a process for `va` by one that maps a frame of `pg_owner`; one that is not present unmaps.
    ///
    /// # Errors
    /// As for an L1 entry; the old one then stays.
    pub(crate) fn map_foreign(&self, connection: &Connection, va: u64, entry: u64, pg_owner: Domid) -> Result<()> {
        let mut entries = connection.foreign.entries.lock();
        let is_present = entry & pte::PRESENT != 0;
        if is_present {
            self.frames.get_foreign(entry, pg_owner)?;
            let _ = self.memory.machine.expose(pte::mfn(entry)); // there is such a frame
            if entry & pte::RW != 0 {
                self.add_writer(pte::mfn(entry));
            }
        }
        let page = va >> 12;
        let old = if is_present { entries.insert(page, entry) } else { entries.remove(&page) };
        if let Some(old) = old {
            self.drop_foreign(old);
        }
        Ok(())
    }

    /// Drops all entries of a process that is gone.
    pub(crate) fn release_foreign(&self, connection: &Connection) {
        let entries = std::mem::take(&mut *connection.foreign.entries.lock());
        entries.into_values().for_each(|entry| self.drop_foreign(entry));
    }

    fn drop_foreign(&self, entry: u64) {
        if entry & pte::RW != 0 {
            self.memory.machine.code().remove_writer(pte::mfn(entry));
        }
        self.frames.put_foreign(entry);
    }

    /// A process of domain 0 is about to write to a frame without telling: no code is kept of it until
    /// `CodeMap::remove_writer`.
    pub(crate) fn add_writer(&self, mfn: Mfn) {
        let code = self.memory.machine.code();
        code.add_writer(mfn);
        if code.has_code(mfn) {
            self.memory.engine.invalidate_code(mfn);
        }
    }
}

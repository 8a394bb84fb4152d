//! Do mappings and pins agree, and what do they hold?

use std::collections::HashMap;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ring3_abi::grant_table::*;
use ring3_machine::{Machine, Mfn};

use super::{GrantTable, Pins};
use crate::domain::Domain;
use crate::mm::Held;

impl GrantTable {
    /// Adds the frames that others may use: those of grants in use, and those that an entry names, whatever for.
    pub(crate) fn hold_granted(&self, machine: &Machine, held: &mut Held) {
        self.active.values().for_each(|active| held.general(active.mfn));
        for gref in (0..).take_while(|&gref| self.place(gref).is_some()) {
            let is_used = self.header_word(machine, gref).is_ok_and(|word| word.load(Ordering::SeqCst) & 0xffff != 0);
            if let (true, Some((frame, offset))) = (is_used, self.place(gref)) {
                let named = if self.version == 1 {
                    machine
                        .word32(frame, offset + offset_of!(grant_entry_v1, frame))
                        .map(|w| w.load(Ordering::SeqCst).into())
                } else {
                    machine.word64(frame, offset + 8).map(|w| w.load(Ordering::SeqCst))
                };
                held.general(Mfn(named.unwrap_or(0)));
            }
        }
    }
}

/// Adds the references that grants hold to `held`; says what does not agree. Nobody may use grants meanwhile.
pub(crate) fn audit(domains: &[Arc<Domain>], held: &mut Held) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut expected: HashMap<(u16, u32), Pins> = HashMap::new();
    for mapper in domains {
        for mapping in mapper.maptrack.lock().in_use() {
            let is_readonly = mapping.flags & GNTMAP_readonly != 0;
            for _ in 0..(mapping.flags & (GNTMAP_host_map | GNTMAP_device_map)).count_ones() {
                if is_readonly { held.general(mapping.mfn) } else { held.typed_by(mapping.mfn, "a grant") }
            }
            if mapping.flags & GNTMAP_host_map != 0 {
                held.allow_foreign(mapper.domid, mapping.mfn, !is_readonly);
            }
            let Some(granter) = mapping.granter.upgrade() else { continue };
            let pins = expected.entry((granter.domid, mapping.gref)).or_default();
            pins.counts(mapping.flags).for_each(|count| *count += 1);
            let table = granter.gnttab.lock();
            let is_pinned = table
                .active
                .get(&mapping.gref)
                .is_some_and(|active| active.mfn == mapping.mfn && active.grantee == mapper.domid);
            if !is_pinned {
                wrong.push(format!("domain {} maps {mapping:?}, which is not pinned", mapper.domid));
            }
        }
    }
    for granter in domains {
        for (&gref, active) in &granter.gnttab.lock().active {
            let explained = expected.get(&(granter.domid, gref)).copied().unwrap_or_default();
            if active.pins != explained {
                wrong.push(format!("domain {}: grant {gref} {active:?}, explained are {explained:?}", granter.domid));
            }
        }
    }
    wrong
}

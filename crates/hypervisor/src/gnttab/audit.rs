//! Do mappings and pins agree, and what do they hold?

use std::collections::HashMap;
use std::sync::Arc;

use ring3_abi::grant_table::*;

use super::Pins;
use crate::domain::Domain;
use crate::mm::Held;

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

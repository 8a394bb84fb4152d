//! Frames that several domains map are known to the engine as such: it keeps what is translated from them true.

use ring3_abi::grant_table::*;
use ring3_machine::Mfn;

use super::grants::{PAGE, VA, pair};

#[test]
fn test_a_frame_counts_as_shared_from_its_first_foreign_mapping_until_it_is_free() {
    let (granter, mapper) = pair();
    let mfn = granter.mfns[PAGE as usize];
    let code = granter.hv.memory.machine.code();
    granter.put_entry(9, GTF_permit_access, mapper.domid, mfn);
    assert!(!code.is_shared(mfn));
    // Read-only is enough: then it is the mapper who may run what the granter writes.
    let flags = GNTMAP_host_map | GNTMAP_readonly;
    let op = gnttab_map_grant_ref { host_addr: VA, flags, r#ref: 9, dom: granter.domid, ..Default::default() };
    let (result, op) = mapper.grant_op(GNTTABOP_map_grant_ref, &op);
    assert_eq!((result, op.status), (0, GNTST_okay));
    assert!(code.is_shared(mfn));
    assert!(!code.is_shared(Mfn(mfn.0 + 1)));
    granter.hv.domain_destroy(granter.domid).unwrap();
    assert!(code.is_shared(mfn), "the mapper still has it");
    granter.hv.domain_destroy(mapper.domid).unwrap();
    assert!(!code.is_shared(mfn));
}

//! Frames that change their owner by a grant.

use std::sync::atomic::Ordering;

use ring3_abi::grant_table::*;
use ring3_abi::hypercall::__HYPERVISOR_update_va_mapping;
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::grants::{PAGE, VA, pair};
use super::support::{BASE, Guest, NR_PAGES};

impl Guest {
    /// Transfers the frame of a page, which is not mapped any more.
    fn transfer(&self, mfn: Mfn, domid: u16, gref: u32) -> i16 {
        let op = gnttab_transfer { mfn: mfn.0, domid, r#ref: gref, ..Default::default() };
        let (result, op) = self.grant_op(GNTTABOP_transfer, &op);
        assert_eq!(result, 0);
        op.status
    }

    fn unmapped(&self, page: u64) -> Mfn {
        assert_eq!(self.call(__HYPERVISOR_update_va_mapping, &[BASE + page * 4096, 0, 0]), 0);
        self.mfns[page as usize]
    }
}

#[test]
fn test_transferred_frame_is_the_receivers_with_its_contents() {
    let (giver, receiver) = pair();
    let hv = &giver.hv;
    giver.write(VA, &0x1234u64);
    hv.domain_set_max_pages(receiver.domid, NR_PAGES + 1).unwrap();
    receiver.put_entry(10, GTF_accept_transfer, giver.domid, Mfn(99));
    assert_eq!(giver.transfer(giver.mfns[PAGE as usize], receiver.domid, 10), GNTST_bad_page, "still mapped");
    let mfn = giver.unmapped(PAGE);
    assert_eq!(giver.transfer(mfn, receiver.domid, 10), GNTST_okay);
    let info = hv.frames.info(mfn).unwrap();
    assert_eq!((info.owner, info.count, info.type_count), (Some(receiver.domid), 1, 0));
    assert_eq!(hv.frames.m2p_entry(mfn), Some(99));
    let all = GTF_accept_transfer | GTF_transfer_committed | GTF_transfer_completed;
    assert_eq!(receiver.flags(10), all);
    let frame = hv.memory.machine.word32(receiver.table_frame(), 10 * 8 + 4).unwrap();
    assert_eq!(u64::from(frame.load(Ordering::SeqCst)), mfn.0);
    let entry = mfn.address() | pte::PRESENT | pte::RW | pte::USER;
    assert_eq!(receiver.call(__HYPERVISOR_update_va_mapping, &[VA, entry, 0]), 0);
    assert_eq!(receiver.read::<u64>(VA), 0x1234);
    assert_eq!(giver.transfer(mfn, receiver.domid, 10), GNTST_bad_page, "it is not the giver's any more");
    assert_eq!((giver.domain().mm.nr_pages(), receiver.domain().mm.nr_pages()), (NR_PAGES - 1, NR_PAGES + 1));
    assert!(hv.audit_stopped().is_empty(), "{:?}", hv.audit_stopped());
}

#[test]
fn test_refused_transfer_loses_the_frame_and_commits_nothing() {
    let (giver, receiver) = pair();
    let hv = &giver.hv;
    assert_eq!(giver.transfer(receiver.mfns[5], receiver.domid, 10), GNTST_bad_page, "another's");
    assert_eq!(giver.transfer(Mfn(u64::MAX >> 12), receiver.domid, 10), GNTST_bad_page);
    assert_eq!(giver.transfer(giver.root(), receiver.domid, 10), GNTST_bad_page, "a page table");
    assert_eq!(giver.transfer(giver.unmapped(16), 77, 10), GNTST_bad_domain);
    receiver.put_entry(10, GTF_accept_transfer, giver.domid, Mfn(99));
    assert_eq!(giver.transfer(giver.unmapped(17), receiver.domid, 10), GNTST_general_error, "no room");
    assert_eq!(receiver.flags(10), GTF_accept_transfer);
    hv.domain_set_max_pages(receiver.domid, NR_PAGES + 4).unwrap();
    receiver.put_entry(11, GTF_permit_access, giver.domid, Mfn(99));
    receiver.put_entry(12, GTF_accept_transfer, 77, Mfn(99));
    for (page, gref) in [(18, 11), (19, 12), (21, 1 << 20)] {
        assert_eq!(giver.transfer(giver.unmapped(page), receiver.domid, gref), GNTST_general_error);
    }
    assert_eq!((giver.domain().mm.nr_pages(), receiver.domain().mm.nr_pages()), (NR_PAGES - 5, NR_PAGES));
    assert!(hv.audit_stopped().is_empty(), "{:?}", hv.audit_stopped());
}

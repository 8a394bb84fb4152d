//! Reservations, Xen-heap frames, teardown.

use ring3_abi::errno::{EEXIST, EINVAL};
use ring3_abi::xen::{DOMID_SELF, DOMID_XEN};
use ring3_machine::{Machine, Mfn};
use std::sync::Arc;

use super::super::{DomainMm, FrameTable, PageType};
use super::{DOMID, RO, RW, World, entry};

#[test]
fn test_populate_hands_out_zeroed_frames_up_to_the_limit() {
    let world = World::new();
    let mut mfns = Vec::new();
    let pfns: Vec<u64> = (100..500).collect();
    assert_eq!(world.mm.populate(&pfns, &mut mfns), 256);
    assert_eq!((world.mm.nr_pages(), world.mm.max_pages()), (256, 256));
    assert_eq!(world.table.nr_free_frames(), world.nr_free - 256);
    for (pfn, &mfn) in pfns.iter().zip(&mfns) {
        assert_eq!(world.table.m2p_entry(mfn), Some(*pfn));
        assert!(mfn.0 > world.table.m2p().1);
    }
    world.mm.set_max_pages(2000);
    let rest: Vec<u64> = (0..2000).collect();
    assert_eq!(world.mm.populate(&rest, &mut mfns) as u64, world.nr_free - 256, "the machine is exhausted");
    assert_eq!(world.table.nr_free_frames(), 0);
    assert_eq!(world.mm.page_list(usize::MAX).len() as u64, world.nr_free);
    assert_eq!(world.mm.page_list(3).len(), 3);
    world.mm.teardown();
    world.assert_all_free();
}

#[test]
fn test_a_frame_and_its_number_are_looked_up_on_pages_of_different_sets() {
    let table = FrameTable::new(Arc::new(Machine::new(1 << 16).unwrap())).unwrap();
    let mm = DomainMm::new(&table, DOMID, 1 << 16).unwrap();
    let pfns: Vec<u64> = (0..40_000).collect();
    let mut mfns = Vec::new();
    assert_eq!(mm.populate(&pfns, &mut mfns), pfns.len());
    for (pfn, mfn) in pfns.iter().zip(&mfns) {
        assert!((mfn.0 / 512).abs_diff(pfn / 512) % 512 > 1, "{pfn:x} {mfn:?}");
    }
}

#[test]
fn test_freed_frames_are_flushed_scrubbed_and_used_again() {
    let world = World::new();
    let mfn = world.page();
    world.poke(mfn, 9, 77);
    world.table.machine().code().mark(mfn);
    assert_eq!(world.mm.decrease_reservation(&[mfn, mfn]), 1);
    assert_eq!(world.counters.flushes(), (1, 0));
    assert_eq!(*world.counters.code_written.lock().unwrap(), [mfn]);
    assert_eq!(world.table.m2p_entry(mfn), Some(u64::MAX));
    assert_eq!(world.mm.nr_pages(), 0);
    let again = world.page();
    assert_eq!((again, world.peek(again, 9)), (mfn, 0));
}

#[test]
fn test_frames_leave_the_reservation_only_when_nobody_maps_them() {
    let world = World::new();
    let [l4, _, _, l1] = world.tree();
    let data = world.page();
    world.mm.pin_table(4, l4).unwrap();
    world.update(l1, 0, entry(data, RW)).unwrap();
    assert_eq!(world.mm.decrease_reservation(&[data]), 1);
    assert_eq!(world.mm.nr_pages(), 5);
    assert_eq!(world.counts(data), (1, 1));
    world.update(l1, 0, 0).unwrap();
    assert_eq!((world.mm.nr_pages(), world.table.info(data).unwrap().owner), (4, None));
    assert_eq!(world.mm.decrease_reservation(&[Mfn(900), l1]), 0);
    assert_eq!(world.mm.decrease_reservation(&[Mfn(u64::MAX)]), 0);
}

#[test]
fn test_shared_frames_are_mappable_but_no_part_of_the_reservation() {
    let world = World::new();
    let [l4, _, _, l1] = world.tree();
    world.mm.pin_table(4, l4).unwrap();
    let shared = world.table.alloc_shared(DOMID).unwrap();
    assert_eq!(world.mm.nr_pages(), 4);
    world.update(l1, 0, entry(shared, RW)).unwrap();
    assert!(world.mm.pin_table(1, shared).is_err());
    assert_eq!(world.mm.decrease_reservation(&[shared]), 0);
    world.table.free_shared(shared);
    assert_eq!(world.counts(shared), (1, 1), "the guest still maps it");
    world.update(l1, 0, 0).unwrap();
    assert_eq!(world.table.nr_free_frames(), world.nr_free - 4);
    world.table.alloc_shared(DOMID).unwrap();
    world.mm.teardown();
    world.assert_all_free();
    assert!(world.table.alloc_shared(DOMID).is_err());
}

#[test]
fn test_teardown_drops_pins_and_gives_everything_back() {
    let world = World::new();
    let [l4, _, l2, l1] = world.tree();
    let [data, lone] = world.pages();
    world.poke(l1, 0, entry(data, RW));
    world.poke(l1, 1, entry(l1, RO));
    world.poke(l1, 2, entry(l4, RO));
    world.poke(l4, 400, entry(l4, RO));
    for (level, mfn) in [(4, l4), (2, l2), (1, l1), (1, lone)] {
        world.mm.pin_table(level, mfn).unwrap();
    }
    assert_eq!(world.mm.teardown(), 0);
    world.assert_all_free();
    assert_eq!(world.mm.teardown(), 0);
    let mut mfns = Vec::new();
    assert_eq!(world.mm.populate(&[0], &mut mfns), 0);
    assert!(world.mm.pin_table(1, l1).is_err());
}

#[test]
fn test_frames_that_others_map_outlive_their_domain() {
    let world = World::new();
    let [l4, _, _, l1] = world.tree();
    world.mm.pin_table(4, l4).unwrap();
    let other = DomainMm::new(&world.table, 2, 10).unwrap();
    let mut theirs = Vec::new();
    other.populate(&[0, 1], &mut theirs);
    world.mm.mmu_update(DOMID, 2, l1.address(), entry(theirs[0], RW)).unwrap();
    assert_eq!(other.teardown(), 1);
    let other = DomainMm::new(&world.table, 2, 10).unwrap();
    assert!(other.pin_table(1, theirs[0]).is_err(), "a later domain of that number has no claim");
    assert_eq!(other.nr_pages(), 0);
    world.update(l1, 0, 0).unwrap();
    assert_eq!(world.table.nr_free_frames(), world.nr_free - 4);
    let mut mfns = Vec::new();
    other.populate(&[0; 10], &mut mfns);
    drop(other);
    world.mm.teardown();
    world.assert_all_free();
}

#[test]
fn test_fifty_domains_in_turn_leave_the_machine_as_it_was() {
    let world = World::new();
    for domid in 10..60 {
        let mm = DomainMm::new(&world.table, domid, 900).unwrap();
        let mut mfns = Vec::new();
        assert_eq!(mm.populate(&[3; 900], &mut mfns), 900);
        assert!(mfns.iter().all(|&mfn| world.peek(mfn, 1) == 0));
        world.poke(mfns[0], 1, entry(mfns[1], RW));
        world.poke(mfns[1], 1, entry(mfns[2], RW));
        mm.pin_table(2, mfns[0]).unwrap();
        drop(mm);
        assert_eq!(world.table.nr_free_frames(), world.nr_free);
    }
    world.assert_all_free();
}

#[test]
fn test_domids_and_machines_that_cannot_be() {
    let world = World::new();
    assert_eq!(DomainMm::new(&world.table, DOMID, 1).unwrap_err().errno(), -EEXIST);
    assert_eq!(DomainMm::new(&world.table, DOMID_SELF, 1).unwrap_err().errno(), -EINVAL);
    assert_eq!(world.table.info(Mfn(0)).unwrap().owner, Some(DOMID_XEN));
    assert_eq!(world.table.info(world.table.m2p().0).unwrap().owner, Some(DOMID_XEN));
    assert!(world.table.info(Mfn(1024)).is_none());
    assert!(world.table.m2p_entry(Mfn(1024)).is_none());
    assert!(FrameTable::new(Arc::new(Machine::new(2).unwrap())).is_err());
}

#[test]
fn test_clear_and_copy_need_ordinary_memory_as_target() {
    let world = World::new();
    let [from, to, l1] = world.pages();
    world.poke(from, 3, 33);
    world.mm.copy_page(from, to).unwrap();
    assert_eq!(world.peek(to, 3), 33);
    world.mm.pin_table(1, l1).unwrap();
    assert!(world.mm.copy_page(from, l1).is_err());
    assert!(world.mm.clear_page(l1).is_err());
    world.mm.copy_page(l1, to).unwrap();
    assert_eq!(world.peek(to, 3), 0);
    world.mm.clear_page(from).unwrap();
    assert_eq!(world.peek(from, 3), 0);
    for mfn in [from, to] {
        assert_eq!(world.counts(mfn), (0, 1));
        assert_eq!(world.table.info(mfn).unwrap().page_type, PageType::Writable);
    }
}

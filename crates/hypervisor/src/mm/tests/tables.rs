//! Types, validation, pinning, roots, flushes.

use ring3_abi::errno::{EBUSY, EINVAL, EPERM};
use ring3_engine::pte;
use ring3_machine::Mfn;

use super::super::entry::GUEST_KERNEL;
use super::super::{DomainMm, Error, PageType};
use super::{DOMID, P, RO, RW, World, entry};

fn number<T: std::fmt::Debug>(result: Result<T, Error>) -> i64 {
    -result.unwrap_err().errno()
}

#[test]
fn test_pin_validates_the_whole_tree_and_unpin_releases_it() {
    let world = World::new();
    let [l4, l3, l2, l1] = world.tree();
    let [data, shown] = world.pages();
    world.poke(l1, 3, entry(data, RW));
    world.poke(l1, 4, entry(shown, RO));
    world.poke(l1, 5, entry(data, RW));
    world.mm.pin_table(4, l4).unwrap();
    let info = world.table.info(l4).unwrap();
    assert!(info.is_pinned && info.is_validated);
    assert_eq!(info.page_type, PageType::L4);
    for table in [l4, l3, l2, l1] {
        assert_eq!(world.counts(table), (1, 2), "{table:?}");
    }
    assert_eq!(world.counts(data), (2, 3));
    assert_eq!(world.counts(shown), (0, 2));
    assert_eq!(number(world.mm.pin_table(4, l4)), EINVAL);
    assert_eq!(number(world.mm.unpin_table(l3)), EINVAL);

    world.mm.unpin_table(l4).unwrap();
    for frame in [l4, l3, l2, l1, data, shown] {
        assert_eq!(world.counts(frame), (0, 1), "{frame:?}");
    }
    assert_eq!(number(world.mm.unpin_table(l4)), EINVAL);
}

#[test]
fn test_entries_are_rewritten_as_xen_does() {
    let world = World::new();
    let [l4, l3, l2, l1] = world.tree();
    let data = world.page();
    world.poke(l4, 0, entry(l3, P | pte::RW));
    world.poke(l1, 0, entry(data, P | pte::RW));
    world.poke(l1, 1, entry(data, P | pte::USER));
    world.poke(l1, 2, 0xdead_beef_0000);
    world.poke(l4, 260, 0x1234_5001);
    world.mm.pin_table(4, l4).unwrap();
    assert_eq!(world.peek(l4, 0), entry(l3, RW | pte::ACCESSED));
    assert_eq!(world.peek(l1, 0), entry(data, RW) | GUEST_KERNEL);
    assert_eq!(world.peek(l1, 1), entry(data, RO) | pte::GLOBAL);
    assert_eq!(world.peek(l1, 2), 0xdead_beef_0000);
    // The hypervisor's slots are emptied.
    assert_eq!(world.peek(l4, 260), 0);
    // What was read back may be written again, as a kernel does.
    world.update(l1, 0, world.peek(l1, 0)).unwrap();
    assert_eq!(world.peek(l1, 0), entry(data, RW) | GUEST_KERNEL);
    world.mm.unpin_table(l4).unwrap();
    world.mm.pin_table(4, l4).unwrap();
    assert_eq!(world.peek(l1, 0), entry(data, RW) | GUEST_KERNEL);
    let _ = l2;
}

#[test]
fn test_no_page_table_is_ever_mapped_writable() {
    let world = World::new();
    let [l4, l3, l2, l1] = world.tree();
    for target in [l1, l2, l3, l4] {
        world.poke(l1, 9, entry(target, RW));
        assert!(world.mm.pin_table(4, l4).is_err());
        for frame in [l4, l3, l2, l1] {
            assert_eq!(world.counts(frame), (0, 1), "{frame:?}");
        }
        world.poke(l1, 9, entry(target, RO));
        world.mm.pin_table(4, l4).unwrap();
        assert_eq!(number(world.update(l1, 9, entry(target, RW))), EBUSY);
        assert_eq!(world.peek(l1, 9) & pte::RW, 0);
        world.mm.unpin_table(l4).unwrap();
    }
    world.poke(l1, 9, 0);
    world.mm.pin_table(4, l4).unwrap();
    // And a frame that is mapped writable is no table.
    let data = world.page();
    world.update(l1, 0, entry(data, RW)).unwrap();
    assert_eq!(number(world.mm.pin_table(1, data)), EINVAL);
    assert_eq!(number(world.update(l2, 1, entry(data, RW))), EINVAL);
    world.update(l1, 0, entry(data, RO)).unwrap();
    world.mm.pin_table(1, data).unwrap();
    assert_eq!(number(world.mm.pin_table(2, data)), EINVAL);
}

#[test]
fn test_failed_validation_names_the_cause_and_leaves_no_reference() {
    let world = World::new();
    let other = DomainMm::new(&world.table, 2, 10).unwrap();
    let mut theirs = Vec::new();
    other.populate(&[0], &mut theirs);
    let [l1, data] = world.pages();
    world.poke(l1, 0, entry(data, RW));
    for (bad, errno) in [
        (entry(theirs[0], RO), EBUSY),
        (entry(theirs[0], RW), EBUSY),
        (entry(world.table.m2p().0, RO), EBUSY),
        (entry(Mfn(0), RO), EBUSY),
        (entry(Mfn(900), RO), EBUSY),
        (entry(Mfn(1 << 39), RO), EPERM),
        (entry(data, RW | pte::PCD), EINVAL),
        (entry(data, RW | pte::PWT), EINVAL),
        (entry(data, RW | pte::PSE), EINVAL),
    ] {
        world.poke(l1, 511, bad);
        assert_eq!(number(world.mm.pin_table(1, l1)), errno, "{bad:#x}");
        assert_eq!(world.counts(l1), (0, 1));
        assert_eq!(world.counts(data), (0, 1));
    }
    let l2 = world.page();
    world.poke(l1, 511, 0);
    for bad in [entry(l1, RW | pte::PSE), entry(l1, RW | pte::GLOBAL), entry(theirs[0], RW), entry(Mfn(1 << 39), RW)] {
        world.poke(l2, 0, bad);
        assert_eq!(number(world.mm.pin_table(2, l2)), EINVAL, "{bad:#x}");
    }
    assert_eq!(number(world.mm.pin_table(1, theirs[0])), EINVAL);
    assert_eq!(number(world.mm.pin_table(1, Mfn(u64::MAX >> 12))), EINVAL);
    assert_eq!(number(world.mm.pin_table(5, l1)), EINVAL);
}

#[test]
fn test_roots_hold_references() {
    let world = World::new();
    let [first, ..] = world.tree();
    let [second, ..] = world.tree();
    world.mm.new_baseptr(Mfn(0), first).unwrap();
    assert_eq!(world.counts(first), (1, 2));
    assert_eq!(number(world.mm.new_baseptr(first, Mfn(0))), EINVAL);
    world.mm.new_baseptr(first, second).unwrap();
    assert_eq!((world.counts(first), world.counts(second)), ((0, 1), (1, 2)));
    world.mm.new_baseptr(second, second).unwrap();
    assert_eq!(world.counts(second), (1, 2));
    world.mm.new_user_baseptr(Mfn(0), first).unwrap();
    world.mm.new_user_baseptr(first, Mfn(0)).unwrap();
    world.mm.new_user_baseptr(Mfn(0), Mfn(0)).unwrap();
    assert_eq!(world.counts(first), (0, 1));
    world.mm.put_root(second);
    assert_eq!(world.counts(second), (0, 1));
}

#[test]
fn test_read_only_self_map_is_allowed_and_holds_no_reference() {
    let world = World::new();
    let [l4, ..] = world.tree();
    world.poke(l4, 500, entry(l4, RO));
    world.mm.pin_table(4, l4).unwrap();
    assert_eq!(world.counts(l4), (1, 2));
    assert_eq!(number(world.update(l4, 501, entry(l4, RW))), EINVAL);
    world.update(l4, 501, entry(l4, RO)).unwrap();
    world.update(l4, 500, 0).unwrap();
    assert_eq!(world.counts(l4), (1, 2));
    world.mm.unpin_table(l4).unwrap();
    assert_eq!(world.counts(l4), (0, 1));
}

#[test]
fn test_a_table_is_linear_in_its_like_while_neither_is_the_other_way_round() {
    let world = World::new();
    for level in 2..=4 {
        let [user, used, third]: [Mfn; 3] = world.pages();
        for mfn in [user, used, third] {
            world.mm.pin_table(level, mfn).unwrap();
        }
        assert_eq!(number(world.update(user, 3, entry(used, RW))), EINVAL);
        world.update(user, 3, entry(used, RO)).unwrap();
        world.update(user, 4, entry(used, RO)).unwrap();
        assert_eq!(world.counts(used), (3, 4));
        assert_eq!(number(world.update(used, 3, entry(third, RO))), EINVAL);
        assert_eq!(number(world.update(third, 3, entry(user, RO))), EINVAL);
        assert_eq!(world.table.audit(super::super::Held::default()), Vec::<String>::new());
        world.update(user, 4, entry(third, RO)).unwrap();
        assert_eq!((world.counts(used), world.counts(third)), ((2, 3), (2, 3)));
        world.update(user, 3, 0).unwrap();
        world.update(used, 3, entry(third, RO)).unwrap();
        // What is left goes with the tables, whichever is first.
        world.mm.unpin_table(third).unwrap();
        world.mm.unpin_table(used).unwrap();
        assert_eq!((world.counts(used), world.counts(third)), ((0, 1), (1, 2)));
    }
    assert_eq!(world.mm.teardown(), 0);
    world.assert_all_free();
    assert_eq!(world.table.audit(super::super::Held::default()), Vec::<String>::new());
}

#[test]
fn test_changes_of_upper_tables_count_for_the_upper_half_where_there_are_linear_ones() {
    let world = World::new();
    let [l4, l3, ..] = world.tree();
    world.mm.pin_table(4, l4).unwrap();
    let before = world.mm.upper_changes();
    world.update(l4, 0, 0).unwrap();
    assert_eq!(world.mm.upper_changes(), before, "the lower half");
    world.update(l4, 400, entry(l4, RO)).unwrap();
    world.update(l4, 0, entry(l3, RW)).unwrap();
    world.update(l4, 0, 0).unwrap();
    assert!(world.mm.upper_changes() > before, "it was seen in the upper half");
}

#[test]
fn test_type_changes_take_write_access_from_the_frame_first() {
    let world = World::new();
    let [l4, _, _, l1] = world.tree();
    world.mm.pin_table(4, l4).unwrap();
    assert_eq!(world.counters.flushes(), (0, 0), "fresh frames need none");
    let data: [Mfn; 2] = world.pages();
    for access in [RW, RO] {
        for (index, &mfn) in data.iter().enumerate() {
            world.update(l1, index, entry(mfn, access)).unwrap();
        }
    }
    for &mfn in &data {
        world.mm.pin_table(1, mfn).unwrap();
    }
    assert_eq!(world.counters.protected(), data);
    // The same type again needs nothing; back to writable waits for walks (here by a flush).
    world.mm.unpin_table(data[0]).unwrap();
    world.mm.pin_table(1, data[0]).unwrap();
    assert_eq!((world.counters.protected().len(), world.counters.flushes()), (2, (0, 0)));
    world.mm.unpin_table(data[0]).unwrap();
    world.update(l1, 0, entry(data[0], RW)).unwrap();
    assert_eq!(world.counters.flushes(), (1, 0));
    // A flush that the caller makes anyway counts.
    world.update(l1, 0, entry(data[0], RO)).unwrap();
    let number = world.table.begin_flush();
    world.table.end_flush(DOMID, number);
    world.mm.pin_table(1, data[0]).unwrap();
    assert_eq!((world.counters.protected().len(), world.counters.flushes()), (2, (1, 0)));
}

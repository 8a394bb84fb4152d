//! Validation and release of trees in pieces.

use ring3_engine::pte;
use ring3_machine::Mfn;

use super::super::{Error, Held, LongWork, PageType};
use super::{DOMID, RO, RW, World, entry};

/// Nothing is wrong, with what the work holds explained.
fn assert_explained(world: &World, work: &LongWork) {
    let mut held = Held::default();
    work.hold(&mut held);
    assert_eq!(world.table.audit(held), Vec::<String>::new());
}

/// An L4 with two L3, of which the second has one L2 with three L1 that map a page.
fn forest(world: &World) -> (Mfn, Vec<Mfn>) {
    let [l4, l3, other, l2]: [Mfn; 4] = world.pages();
    let level1: [Mfn; 3] = world.pages();
    let data = world.page();
    world.poke(l4, 0, entry(other, RW));
    world.poke(l4, 500, entry(l3, RW));
    world.poke(l3, 7, entry(l2, RW));
    for (index, &l1) in level1.iter().enumerate() {
        world.poke(l2, index * 100, entry(l1, RW));
        world.poke(l1, 1, entry(data, RW));
    }
    (l4, [vec![other, l3, l2], level1.to_vec()].concat())
}

#[test]
fn test_a_tree_is_validated_and_released_in_pieces() {
    let world = World::new();
    let (l4, below) = forest(&world);
    let mut work = LongWork::default();
    let mut nr_stops = 0;
    while !world.mm.prepare_table(4, l4, &mut work, &mut || true) {
        nr_stops += 1;
        assert_explained(&world, &work);
        assert!(nr_stops <= below.len(), "each piece counts");
    }
    assert_eq!(nr_stops, below.len());
    world.mm.pin_table(4, l4).unwrap();
    work.finish();
    while !world.table.drain(&mut work, &mut || true) {
        assert_explained(&world, &work);
    }
    assert!(work.is_empty());
    assert_eq!(world.counts(l4), (1, 2));
    assert!(below.iter().all(|&mfn| world.counts(mfn) == (1, 2)));

    world.mm.unpin_table_in(l4, &mut work).unwrap();
    let mut nr_stops = 0;
    while !world.table.drain(&mut work, &mut || true) {
        nr_stops += 1;
        assert_explained(&world, &work);
    }
    assert!(nr_stops >= below.len(), "{nr_stops} stops");
    assert!(work.is_empty());
    assert!(below.iter().all(|&mfn| world.counts(mfn) == (0, 1)));
}

#[test]
fn test_what_is_wrong_is_found_as_without_pieces_and_nothing_stays() {
    // A frame that is not the domain's; one of a table above, writable; the root, writable.
    for case in 0..3 {
        let world = World::new();
        let (l4, below) = forest(&world);
        let target = [Mfn(1), below[2], l4][case];
        world.poke(*below.last().unwrap(), 9, entry(target, RW));
        assert_eq!(world.mm.pin_table(4, l4), Err(Error::MappingRefused(target)), "{case}");
        let mut work = LongWork::default();
        let mut nr_stops = 0;
        while !world.mm.prepare_table(4, l4, &mut work, &mut || true) {
            nr_stops += 1;
            assert_explained(&world, &work);
        }
        // An L3 and two L1 are good anyway; what refers to a table above is found out later.
        assert_eq!(nr_stops, [3, 4, 6][case]);
        assert_eq!(world.mm.pin_table_in(4, l4, &mut work), Err(Error::MappingRefused(target)), "{case}");
        work.finish();
        while !world.table.drain(&mut work, &mut || true) {
            assert_explained(&world, &work);
        }
        assert!(below.iter().all(|&mfn| world.counts(mfn) == (0, 1)));
        assert_eq!(world.counts(l4), (0, 1));
    }
}

#[test]
fn test_another_goal_gives_up_the_first() {
    let world = World::new();
    let (l4, below) = forest(&world);
    let empty = world.page();
    let mut work = LongWork::default();
    assert!(!world.mm.prepare_table(4, l4, &mut work, &mut || true));
    assert_eq!(world.counts(below[0]), (1, 2));
    assert!(world.mm.prepare_table(4, empty, &mut work, &mut || true));
    world.table.drain_all(&mut work);
    assert_eq!(world.counts(below[0]), (0, 1));
    assert!(work.is_empty());
    // A table that somebody else frees meanwhile is only let go once more.
    assert!(!world.mm.prepare_table(4, l4, &mut work, &mut || true));
    assert_eq!(world.mm.decrease_reservation(&[below[0]]), 1);
    assert_eq!(world.table.info(below[0]).unwrap().page_type, PageType::L3);
    assert_explained(&world, &work);
    world.table.drain_all(&mut work);
    assert!(world.table.get_page(below[0], DOMID).is_err());
}

#[test]
fn test_linear_tables_do_not_hold_up_the_pieces() {
    let world = World::new();
    let (l4, _) = forest(&world);
    let like = world.page();
    world.mm.pin_table(4, like).unwrap();
    world.poke(l4, 300, entry(l4, RO));
    world.poke(l4, 301, entry(like, RO));
    let mut work = LongWork::default();
    while !world.mm.prepare_table(4, l4, &mut work, &mut || true) {}
    world.mm.pin_table(4, l4).unwrap();
    world.table.drain_all(&mut work);
    assert_eq!(world.counts(like), (2, 3));
    world.mm.unpin_table(like).unwrap();
    world.mm.unpin_table_in(l4, &mut work).unwrap();
    while !world.table.drain(&mut work, &mut || true) {
        assert_explained(&world, &work);
    }
    assert_eq!((world.counts(l4), world.counts(like)), ((0, 1), (0, 1)));
}

#[test]
fn test_an_entry_of_an_upper_table_is_prepared_and_let_go_so() {
    let world = World::new();
    let (l4, below) = forest(&world);
    let root = world.page();
    world.mm.pin_table(4, root).unwrap();
    let at = root.address() + 8 * 8;
    let l3 = world.peek(l4, 500) & pte::FRAME | RW;
    let mut work = LongWork::default();
    let mut nr_stops = 0;
    while !world.mm.prepare_update(at, l3, &mut work, &mut || true) {
        nr_stops += 1;
    }
    assert_eq!(nr_stops, below.len() - 2);
    for val in [l3, 0] {
        world.mm.mmu_update_in(DOMID, DOMID, at, val, &mut work).unwrap();
        work.finish();
        while !world.table.drain(&mut work, &mut || true) {
            assert_explained(&world, &work);
        }
        let expected = if val == 0 { (0, 1) } else { (1, 2) };
        assert!(below[1..].iter().all(|&mfn| world.counts(mfn) == expected));
    }
}

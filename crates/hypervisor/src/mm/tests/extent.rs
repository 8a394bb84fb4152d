//! Extents of more than one frame, and exchanges.

use ring3_abi::errno::{EINVAL, ENOMEM};
use ring3_machine::Mfn;

use super::World;

#[test]
fn test_extents_are_aligned_runs_with_their_numbers() {
    let world = World::new();
    world.page();
    let first = world.mm.populate_extent(3, Some(0x100)).unwrap();
    assert!(first.0.is_multiple_of(8));
    for index in 0..8 {
        assert_eq!(world.table.m2p_entry(Mfn(first.0 + index)), Some(0x100 + index));
    }
    assert_eq!(world.mm.nr_pages(), 9);
    let other = world.mm.populate_extent(3, None).unwrap();
    assert_eq!(world.table.m2p_entry(other), Some(u64::MAX));
    // What was passed over to reach an aligned frame is not lost.
    let mut mfns = Vec::new();
    world.mm.set_max_pages(2000);
    assert_eq!(world.mm.populate(&vec![0; 2000], &mut mfns) as u64, world.nr_free - 17);
    assert_eq!(world.mm.populate_extent(1, None).unwrap_err().errno(), -ENOMEM);
    let run: Vec<Mfn> = (0..8).map(|index| Mfn(first.0 + index)).collect();
    assert_eq!(world.mm.decrease_reservation(&run), 8);
    assert_eq!(world.mm.populate_extent(4, None).unwrap_err().errno(), -ENOMEM);
    assert_eq!(world.mm.populate_extent(3, None).unwrap(), first, "found again among the free frames");
    assert_eq!(world.mm.populate_extent(19, None).unwrap_err().errno(), -EINVAL);
    world.mm.teardown();
    world.assert_all_free();
}

#[test]
fn test_exchange_changes_all_or_nothing() {
    let world = World::new();
    world.mm.set_max_pages(8);
    let pages: [Mfn; 8] = world.pages();
    world.poke(pages[0], 0, 77);
    world.mm.get_writable(pages[7]).unwrap();
    assert_eq!(world.mm.exchange(&pages, 3, &[0x40]).unwrap_err().errno(), -EINVAL, "one is in use");
    assert_eq!(world.peek(pages[0], 0), 77);
    assert_eq!(world.counts(pages[0]), (0, 1));
    world.mm.put_writable(pages[7]);
    // The reservation is full: what goes makes room.
    let extents = world.mm.exchange(&pages, 2, &[0x40, 0x80]).unwrap();
    assert_eq!(world.mm.nr_pages(), 8);
    for (first, pfn) in extents.iter().zip([0x40, 0x80]) {
        assert!(first.0.is_multiple_of(4));
        assert_eq!((world.table.m2p_entry(*first), world.peek(*first, 0)), (Some(pfn), 0));
    }
    assert!(world.mm.exchange(&[extents[0], extents[0]], 0, &[0, 0]).is_err(), "the same frame twice");
    assert_eq!(world.counts(extents[0]), (0, 1));
    let foreign = world.table.m2p().0;
    assert_eq!(world.mm.exchange(&[foreign], 0, &[0]).unwrap_err().errno(), -EINVAL);
    world.mm.teardown();
    world.assert_all_free();
}

#[test]
fn test_exchange_puts_frames_back_when_there_are_no_others() {
    let world = World::new();
    world.mm.set_max_pages(u64::MAX);
    let mut mfns = Vec::new();
    world.mm.populate(&vec![0; 2000], &mut mfns);
    let two = [mfns[0], mfns[1]];
    world.poke(two[0], 5, 9);
    assert_eq!(world.mm.exchange(&two, 0, &[1, 2]).unwrap_err().errno(), -ENOMEM);
    assert_eq!((world.counts(two[0]), world.peek(two[0], 5)), ((0, 1), 9));
    assert_eq!(world.mm.nr_pages(), world.nr_free);
}

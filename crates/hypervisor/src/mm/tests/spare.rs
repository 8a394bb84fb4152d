//! Which frames go back to the host.

use ring3_machine::Mfn;

use super::{DOMID, RO, World, entry};

fn is_resident(world: &World, mfn: Mfn) -> bool {
    world.table.machine().next_resident(mfn).is_some_and(|run| run.start == mfn.0)
}

/// Gives host memory to a frame.
fn touch(world: &World, mfn: Mfn) {
    world.table.machine().zero(mfn).unwrap();
    assert!(is_resident(world, mfn));
}

#[test]
fn test_ordinary_frames_of_zeros_go_back_and_others_stay() {
    let world = World::new();
    let [l4, l3, l2, l1] = world.tree();
    let [empty, full, last_byte, held, segdesc] = world.pages();
    let shared = world.table.alloc_shared(DOMID).unwrap();
    world.poke(l1, 0, entry(empty, RO));
    world.mm.pin_table(4, l4).unwrap();
    let empty_table = world.page();
    world.poke(l2, 1, 0);
    touch(&world, empty_table);
    world.mm.pin_table(1, empty_table).unwrap();
    for mfn in [empty, full, last_byte, held, segdesc, shared] {
        touch(&world, mfn);
    }
    world.table.machine().write(full, 8, &[7; 4088]).unwrap();
    world.table.machine().write(last_byte, 4095, &[1]).unwrap();
    world.table.get_page_and_type(segdesc, DOMID, super::super::PageType::SegDesc).unwrap();
    let all = 0..world.table.machine().nr_frames();
    assert_eq!(world.table.give_back_uniform(DOMID + 1, all.clone(), |_| false), 0, "they are not its");
    assert_eq!(world.table.give_back_uniform(DOMID, all.clone(), |mfn| mfn == held), 1);
    assert!(!is_resident(&world, empty));
    for mfn in [l4, l3, l2, l1, empty_table, full, last_byte, held, segdesc, shared] {
        assert!(is_resident(&world, mfn), "{mfn:?}");
    }
    assert_eq!(world.table.give_back_uniform(DOMID, held.0..held.0 + 1, |_| false), 1, "it is held no more");
}

#[test]
fn test_runs_of_frames_go_back_together_and_read_as_zeros() {
    let world = World::new();
    let frames = world.pages::<16>();
    let machine = world.table.machine();
    for (index, mfn) in frames.into_iter().enumerate() {
        touch(&world, mfn);
        machine.write(mfn, 8 * index, &[u8::from(index % 5 == 4)]).unwrap();
    }
    assert_eq!(world.table.give_back_uniform(DOMID, frames[0].0..frames[15].0 + 1, |_| false), 13);
    for (index, mfn) in frames.into_iter().enumerate() {
        assert_eq!(is_resident(&world, mfn), index % 5 == 4);
        assert_eq!(machine.entry(mfn, index).unwrap(), u64::from(index % 5 == 4));
    }
}

#[test]
fn test_frames_of_another_byte_go_back_too_and_hold_it() {
    let world = World::new();
    let frames = world.pages::<6>();
    let machine = world.table.machine();
    for (mfn, byte) in frames.into_iter().zip([0xcc, 0xcc, 0, 0xff, 0xff, 0xcc]) {
        machine.fill(mfn, 0, 4096, byte).unwrap();
    }
    machine.expose(frames[5]).unwrap();
    assert_eq!(world.table.give_back_uniform(DOMID, frames[0].0..frames[5].0 + 1, |_| false), 5);
    let resident = frames.map(|mfn| is_resident(&world, mfn));
    assert_eq!(resident, [false, false, false, false, false, true]);
    let words = frames.map(|mfn| machine.entry(mfn, 5).unwrap() & 0xff);
    assert_eq!(words, [0xcc, 0xcc, 0, 0xff, 0xff, 0xcc]);
}

#[test]
fn test_ordinary_frames_of_a_domain_are_packed_and_others_stay() {
    let world = World::new();
    let [l4, l3, l2, l1] = world.tree();
    let [sparse, held, segdesc, exposed, mapped] = world.pages();
    let shared = world.table.alloc_shared(DOMID).unwrap();
    let machine = world.table.machine();
    world.poke(l1, 0, entry(mapped, RO));
    world.mm.pin_table(4, l4).unwrap();
    world.table.get_page_and_type(segdesc, DOMID, super::super::PageType::SegDesc).unwrap();
    let all = [sparse, held, segdesc, exposed, mapped, shared];
    for mfn in all {
        machine.write(mfn, 8, b"a few bytes").unwrap();
    }
    machine.expose(exposed).unwrap();
    let range = 0..machine.nr_frames();
    assert_eq!(world.table.give_back_packed(DOMID + 1, range.clone(), |_| false), 0, "they are not its");
    assert!(world.table.give_back_packed(DOMID, range, |mfn| mfn == held) >= 2);
    for mfn in all {
        assert_eq!(is_resident(&world, mfn), ![sparse, mapped].contains(&mfn), "{mfn:?}");
    }
    assert!([l4, l3, l2, l1].iter().all(|&mfn| is_resident(&world, mfn)));
    for mfn in all {
        let mut bytes = [0; 11];
        machine.read(mfn, 8, &mut bytes).unwrap();
        assert_eq!(&bytes, b"a few bytes");
    }
}

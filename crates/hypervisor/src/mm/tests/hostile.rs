//! Random and concurrent requests: nothing panics, and every reference stays accounted for.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use ring3_engine::pte;
use ring3_machine::Mfn;

use super::super::entry::{XEN_SLOTS, is_present};
use super::audit::audit;
use super::{DOMID, RW, World, entry};

/// A small generator (xorshift64*), so that failures repeat.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }
}

/// Few frames, so that requests meet: table and data roles change all the time.
const NR_PAGES: u64 = 14;

fn random_entry(random: &mut Random, first: u64) -> u64 {
    let flags = match random.below(16) {
        0 => return random.next(),
        1..=4 => return 0,
        5..=10 => pte::PRESENT,
        _ => pte::PRESENT | pte::RW,
    };
    let flags = flags | if random.below(2) == 0 { pte::USER } else { 0 };
    Mfn(first + random.below(NR_PAGES)).address() | flags
}

/// Performs one random request; returns its kind and whether it was granted.
fn request(world: &World, random: &mut Random, first: u64) -> (u64, bool) {
    let page = |random: &mut Random| Mfn(first + random.below(NR_PAGES));
    let index = |random: &mut Random| random.below(6) as usize;
    let mfn = page(random);
    let kind = random.below(12);
    let result = match kind {
        0..=4 => {
            let (index, value) = (index(random), random_entry(random, first));
            world.update(mfn, index, value)
        }
        5 | 6 => world.mm.pin_table(1 + random.below(4) as u32, mfn),
        7 | 8 => world.mm.unpin_table(mfn),
        9 => {
            let offset = index(random) * 8;
            let old = world.peek(mfn, offset / 8).to_le_bytes();
            world.mm.ptwr_update(mfn, offset, &old, &random_entry(random, first).to_le_bytes())
        }
        10 => {
            let va = random.below(6) << 12 | random.below(3) << 21 | random.below(2) << 30;
            world.mm.update_va_mapping(mfn, va, random_entry(random, first), DOMID)
        }
        _ => world.mm.clear_page(mfn),
    };
    (kind, result.is_ok())
}

fn populated() -> (World, u64) {
    let world = World::new();
    let mut mfns = Vec::new();
    world.mm.populate(&[0; NR_PAGES as usize], &mut mfns);
    let first = mfns[0].0;
    (world, first)
}

#[test]
fn test_random_requests_keep_every_count_right() {
    let (world, first) = populated();
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut seen: HashMap<(u64, bool), u64> = HashMap::new();
    let mut nr_by_level = [0u64; 5];
    for round in 0..60_000 {
        *seen.entry(request(&world, &mut random, first)).or_default() += 1;
        for mfn in first..first + NR_PAGES {
            let info = world.table.info(Mfn(mfn)).unwrap();
            nr_by_level[info.page_type.level().filter(|_| info.type_count != 0).unwrap_or(0) as usize] += 1;
        }
        if round % 97 == 0 {
            audit(&world, &HashMap::new());
        }
    }
    audit(&world, &HashMap::new());
    // The test means something only if requests of every kind are granted and refused, on tables of every level.
    assert!((0..12).all(|kind| seen.get(&(kind, true)).is_some_and(|&nr| nr > 20)), "{seen:?}");
    assert!((0..12).all(|kind| seen.get(&(kind, false)).is_some_and(|&nr| nr > 20)), "{seen:?}");
    assert!(nr_by_level.iter().all(|&nr| nr > 1000), "{nr_by_level:?}");
    assert_eq!(world.mm.teardown(), 0);
    world.assert_all_free();
}

#[test]
fn test_roots_under_random_requests() {
    let (world, first) = populated();
    let mut random = Random(42);
    let mut root = Mfn(0);
    for _ in 0..20_000 {
        request(&world, &mut random, first);
        let next = Mfn(first + random.below(NR_PAGES));
        if random.below(8) == 0 && world.mm.new_user_baseptr(root, next).is_ok() {
            root = next;
            audit(&world, &HashMap::from([(root, 1)]));
        }
    }
    assert_ne!(root, Mfn(0), "some root was accepted");
    world.mm.put_root(root);
    assert_eq!(world.mm.teardown(), 0);
    world.assert_all_free();
}

#[test]
fn test_concurrent_requests_keep_every_count_right() {
    for seed in 1..5u64 {
        let (world, first) = populated();
        let nr_done = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let (world, nr_done) = (&world, &nr_done);
                scope.spawn(move || {
                    let mut random = Random(seed * 0x9e37_79b9 + thread);
                    for _ in 0..20_000 {
                        request(world, &mut random, first);
                        nr_done.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(nr_done.load(Ordering::Relaxed), 80_000);
        audit(&world, &HashMap::new());
        assert_eq!(world.mm.teardown(), 0);
        world.assert_all_free();
    }
}

#[test]
fn test_slots_of_the_hypervisor_are_emptied_before_a_linear_entry_could_show_them() {
    let world = World::new();
    let [root, secret] = world.pages();
    for index in XEN_SLOTS {
        world.poke(root, index, entry(secret, RW));
    }
    world.mm.pin_table(4, root).unwrap();
    assert!(XEN_SLOTS.into_iter().all(|index| world.peek(root, index) == 0));
    assert!(!world.mm.shows_m2p(root));
    world.mm.show_m2p(root);
    assert!(world.mm.shows_m2p(root));
    assert!(XEN_SLOTS.into_iter().all(|index| !is_present(world.peek(root, index))));
}

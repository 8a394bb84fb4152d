//! Cost of the operations that a kernel does by the thousand. Run with `--release -- --ignored --nocapture`.

use std::time::Instant;

use ring3_machine::Mfn;

use super::{DOMID, RW, World, entry};

fn report(what: &str, nr: u64, start: Instant) {
    println!("{what}: {:.1} ns", start.elapsed().as_nanos() as f64 / nr as f64);
}

#[test]
#[ignore = "a measurement"]
fn measure_updates_and_pins() {
    let world = World::new();
    let [l4, _, l2, l1] = world.tree();
    let data: [Mfn; 128] = world.pages();
    world.mm.pin_table(4, l4).unwrap();
    const ROUNDS: u64 = 10_000;
    for (index, &mfn) in data.iter().enumerate() {
        world.update(l1, index, entry(mfn, RW)).unwrap();
    }
    let start = Instant::now();
    for round in 0..ROUNDS {
        for index in 0..128 {
            world.update(l1, index, entry(data[(index + round as usize) % 128], RW)).unwrap();
        }
    }
    report("mmu_update, another frame", ROUNDS * 128, start);
    let start = Instant::now();
    for round in 0..ROUNDS {
        for (index, &mfn) in data.iter().enumerate() {
            world.update(l1, index, entry(mfn, RW | (round & 1) << 63)).unwrap();
        }
    }
    report("mmu_update, flags", ROUNDS * 128, start);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        for (index, &mfn) in data.iter().enumerate() {
            world.mm.update_va_mapping(l4, (index as u64) << 12, entry(mfn, RW), DOMID).unwrap();
        }
    }
    report("update_va_mapping, flags", ROUNDS * 128, start);
    let fork = world.page();
    for index in 0..512 {
        world.poke(fork, index, entry(data[index % 128], RW));
    }
    let start = Instant::now();
    for _ in 0..ROUNDS {
        world.mm.pin_table(1, fork).unwrap();
        world.mm.unpin_table(fork).unwrap();
    }
    report("pin and unpin of a full L1, per entry", ROUNDS * 512, start);
    let empty = world.page();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        world.mm.pin_table(1, empty).unwrap();
        world.mm.unpin_table(empty).unwrap();
    }
    report("pin and unpin of an empty L1, per table", ROUNDS, start);
    let start = Instant::now();
    for _ in 0..ROUNDS {
        world.update(l2, 5, entry(empty, RW)).unwrap();
        world.update(l2, 5, 0).unwrap();
    }
    report("link and unlink of an empty L1", ROUNDS, start);
}

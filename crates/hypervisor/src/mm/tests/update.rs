//! mmu_update, update_va_mapping, writable page tables.

use std::sync::atomic::Ordering;

use ring3_abi::errno::{EAGAIN, EBUSY, EINVAL, ENOSYS, EPERM};
use ring3_engine::{AddressSpace, pte, walk};
use ring3_machine::Mfn;

use super::super::{DomainMm, Error};
use super::{DOMID, RO, RW, World, entry};

fn number<T: std::fmt::Debug>(result: Result<T, Error>) -> i64 {
    -result.unwrap_err().errno()
}

#[test]
fn test_update_moves_references_and_keeps_the_old_entry_on_failure() {
    let world = World::new();
    let [l4, l3, l2, l1] = world.tree();
    let [a, b] = world.pages();
    world.mm.pin_table(4, l4).unwrap();
    world.update(l1, 0, entry(a, RW)).unwrap();
    assert_eq!(world.counts(a), (1, 2));
    world.update(l1, 0, entry(b, RO)).unwrap();
    assert_eq!((world.counts(a), world.counts(b)), ((0, 1), (0, 2)));
    let before = world.peek(l1, 0);
    assert_eq!(number(world.update(l1, 0, entry(l2, RW))), EBUSY);
    assert_eq!(number(world.update(l1, 0, entry(Mfn(1 << 30), RW))), EPERM);
    assert_eq!(number(world.update(l1, 0, entry(a, RW | pte::PSE))), EINVAL);
    assert_eq!(world.peek(l1, 0), before);
    // Upper levels: a new table is validated when it is linked, and released when it is unlinked.
    let other_l1 = world.page();
    world.poke(other_l1, 0, entry(a, RW));
    world.update(l2, 1, entry(other_l1, RW)).unwrap();
    assert_eq!((world.counts(other_l1), world.counts(a)), ((1, 2), (1, 2)));
    world.update(l2, 1, 0).unwrap();
    assert_eq!((world.counts(other_l1), world.counts(a)), ((0, 1), (0, 1)));
    assert_eq!(number(world.update(l3, 1, entry(l1, RW))), EINVAL);
    assert_eq!(number(world.update(l4, 256, entry(l3, RW))), EINVAL);
    assert_eq!(number(world.update(l4, 271, 0)), EINVAL);
    world.update(l4, 272, entry(l3, RW)).unwrap();
    assert_eq!(world.counts(l3), (2, 3));
}

#[test]
fn test_update_of_ordinary_memory_is_a_plain_store() {
    let world = World::new();
    let [data, gdt] = world.pages();
    world.update(data, 5, 0xfeed_f00d_dead_beef).unwrap();
    assert_eq!(world.peek(data, 5), 0xfeed_f00d_dead_beef);
    assert_eq!(world.counts(data), (0, 1));
    world.mm.get_segdesc(gdt).unwrap();
    assert_eq!(number(world.update(gdt, 0, 0)), EINVAL);
    world.table.machine().code().mark(data);
    world.update(data, 5, 1).unwrap();
    assert_eq!(*world.counters.code_written.lock().unwrap(), [data]);
    assert_eq!(number(world.update(Mfn(900), 0, 1)), EINVAL);
    assert_eq!(number(world.update(world.table.m2p().0, 0, 1)), EINVAL);
    assert_eq!(number(world.update(Mfn(u64::MAX >> 12), 511, 1)), EINVAL);
}

#[test]
fn test_commands_of_mmu_update() {
    let world = World::new();
    let [l4, _, _, l1] = world.tree();
    let [data, _] = world.pages();
    world.mm.pin_table(4, l4).unwrap();
    let at = l1.address();
    let update = |ptr, val| world.mm.mmu_update(DOMID, DOMID, ptr, val);
    update(at, entry(data, RW)).unwrap();
    world.table.machine().word64(l1, 0).unwrap().fetch_or(pte::ACCESSED | pte::DIRTY, Ordering::SeqCst);
    update(at | 2, entry(data, RO)).unwrap();
    let seen = world.peek(l1, 0);
    assert_eq!(seen & (pte::ACCESSED | pte::DIRTY | pte::RW), pte::ACCESSED | pte::DIRTY);
    update(at | 2, entry(data, RO) | pte::NX).unwrap();
    assert_eq!(world.peek(l1, 0) & (pte::ACCESSED | pte::DIRTY | pte::NX), pte::ACCESSED | pte::DIRTY | pte::NX);
    update(at, entry(data, RO)).unwrap();
    assert_eq!(world.peek(l1, 0) & (pte::ACCESSED | pte::DIRTY | pte::NX), 0);
    update(data.address() | 1, 0x4242).unwrap();
    assert_eq!(world.table.m2p_entry(data), Some(0x4242));
    assert_eq!(number(update(Mfn(900).address() | 1, 1)), EINVAL);
    assert_eq!(number(world.mm.mmu_update(0, DOMID, data.address() | 1, 1)), EPERM);
    for command in 4..8 {
        assert_eq!(number(update(at | command, 0)), ENOSYS);
    }
}

#[test]
fn test_frames_of_another_domain_need_its_name() {
    let world = World::new();
    let other = DomainMm::new(&world.table, 2, 10).unwrap();
    let mut theirs = Vec::new();
    other.populate(&[0, 1], &mut theirs);
    let [l4, _, l2, l1] = world.tree();
    world.mm.pin_table(4, l4).unwrap();
    assert_eq!(number(world.update(l1, 0, entry(theirs[0], RW))), EBUSY);
    world.mm.mmu_update(DOMID, 2, l1.address(), entry(theirs[0], RW)).unwrap();
    assert_eq!(world.counts(theirs[0]), (1, 2));
    assert_eq!(number(other.pin_table(1, theirs[0])), EINVAL);
    assert_eq!(number(world.mm.mmu_update(DOMID, 2, l2.address(), 0)), EINVAL);
    assert_eq!(number(world.mm.mmu_update(DOMID, 2, theirs[1].address(), 0)), EINVAL);
    world.update(l1, 0, 0).unwrap();
    // Whoever had it mapped may hold a stale translation: everybody is flushed.
    other.pin_table(1, theirs[0]).unwrap();
    assert_eq!(world.counters.flushes(), (0, 1));
}

#[test]
fn test_held_mappings_keep_a_frame_what_it_is() {
    let world = World::new();
    let [data, l1] = world.pages();
    world.mm.pin_table(1, l1).unwrap();
    assert!(!world.table.hold_mapped(l1, true));
    assert!(!world.table.hold_mapped(Mfn(900), false) && !world.table.hold_mapped(Mfn(5000), true));
    assert!(!world.table.hold_mapped(data, true), "never mapped writable");
    world.mm.clear_page(data).unwrap();
    assert!(world.table.hold_mapped(data, true) && world.table.hold_mapped(l1, false));
    assert!(world.mm.pin_table(1, data).is_err());
    world.table.put_mapped(data, true);
    world.table.put_mapped(l1, false);
    world.mm.pin_table(1, data).unwrap();
}

#[test]
fn test_update_va_mapping_finds_the_l1_entry() {
    let world = World::new();
    let [l4, _, _, l1] = world.tree();
    let data = world.page();
    world.mm.pin_table(4, l4).unwrap();
    world.mm.update_va_mapping(l4, 0x5123, entry(data, RW), DOMID).unwrap();
    assert_eq!(pte::mfn(world.peek(l1, 5)), data);
    let space = AddressSpace { root: l4, m2p: Mfn(1), nr_m2p: 2 };
    let found = walk(world.table.machine(), &space, 0x5123, ring3_engine::Access::Write).unwrap();
    assert_eq!(found.mfn, data);
    let unmapped = [1 << 21, 1 << 30, 1 << 39, 1 << 47, 0xffff_8000_0000_0000, 0xffff_8880_0000_0000, u64::MAX];
    for va in unmapped {
        assert_eq!(number(world.mm.update_va_mapping(l4, va, 0, DOMID)), EINVAL, "{va:#x}");
    }
    assert_eq!(number(world.mm.update_va_mapping(Mfn(0), 0x5000, 0, DOMID)), EINVAL);
}

#[test]
fn test_stores_to_a_read_only_l1_table_are_emulated() {
    let world = World::new();
    let [l4, _, l2, l1] = world.tree();
    let [data, other] = world.pages();
    world.poke(l1, 0, entry(l1, RO));
    world.poke(l1, 1, entry(data, RO));
    world.poke(l1, 2, entry(l2, RO));
    world.mm.pin_table(4, l4).unwrap();
    assert_eq!(world.mm.ptwr_target(l4, 0x0040), Some(l1));
    assert_eq!(world.mm.ptwr_target(l4, 0x1040), None, "ordinary memory");
    assert_eq!(world.mm.ptwr_target(l4, 0x2040), None, "an L2 table");
    assert_eq!(world.mm.ptwr_target(l4, 0x3040), None, "not mapped");

    let new = entry(data, RW).to_le_bytes();
    world.mm.ptwr_update(l1, 64, &[0; 8], &new).unwrap();
    assert_eq!(pte::mfn(world.peek(l1, 8)), data);
    assert_eq!(world.counts(data), (1, 3));
    // One byte of an entry: clears RW (and the bits beside it).
    let old = world.peek(l1, 8).to_le_bytes();
    world.mm.ptwr_update(l1, 64, &old[..1], &[0x5]).unwrap();
    assert_eq!(world.counts(data), (0, 3));
    assert_eq!(number(world.mm.ptwr_update(l1, 64, &old[..1], &[0x7])), EAGAIN);
    assert_eq!(number(world.mm.ptwr_update(l1, 72, &[0; 8], &entry(l2, RW).to_le_bytes())), EBUSY);
    assert_eq!(world.peek(l1, 9), 0);
    for (offset, len) in [(65, 8), (4092, 8), (4096, 8), (usize::MAX, 8), (64, 0), (64, 16)] {
        assert_eq!(number(world.mm.ptwr_update(l1, offset, &vec![0; len], &vec![1; len])), EINVAL);
    }
    assert_eq!(number(world.mm.ptwr_update(l2, 8, &[0; 8], &[0; 8])), EINVAL);
    assert_eq!(number(world.mm.ptwr_update(other, 8, &[0; 8], &[0; 8])), EINVAL);
}

#[test]
fn test_the_registers_of_the_board_read_as_ones_and_are_the_domains_own() {
    let world = World::new();
    let [l4, l3, l2, l1] = world.tree();
    let _ = (l3, l2);
    world.mm.pin_table(4, l4).unwrap();
    let registers = entry(Mfn(0xfed80), RW | pte::PCD | pte::NX);
    // Without cache attributes it is a frame of memory, which this machine lacks; others have no such meaning.
    assert_eq!(number(world.update(l1, 0, entry(Mfn(0xfed80), RW))), EPERM);
    assert_eq!(number(world.update(l1, 0, entry(Mfn(0xfed81), RW | pte::PCD))), EINVAL);
    assert_eq!(number(world.update(l2, 1, registers)), EINVAL);
    world.update(l1, 0, registers).unwrap();
    let mapped = world.peek(l1, 0);
    let mfn = pte::mfn(mapped);
    assert_eq!(mapped & (pte::PCD | pte::RW | pte::NX), pte::RW | pte::NX);
    let mut bytes = [0; 4096];
    world.table.machine().read(mfn, 0, &mut bytes).unwrap();
    assert_eq!(bytes, [0xff; 4096]);
    // The same page again, by a store to a read-only table too.
    world.mm.ptwr_update(l1, 8, &[0; 8], &registers.to_le_bytes()).unwrap();
    assert_eq!(pte::mfn(world.peek(l1, 1)), mfn);
    let other = DomainMm::new(&world.table, DOMID + 1, 16).unwrap();
    assert_ne!(other.with_board(registers).unwrap() & pte::FRAME, mfn.address());
    other.teardown();
    world.update(l1, 0, 0).unwrap();
    world.mm.teardown();
    world.assert_all_free();
}

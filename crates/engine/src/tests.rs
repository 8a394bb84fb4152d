use ring3_machine::{Machine, Mfn};

use crate::{Access, AddressSpace, HYPERVISOR_VIRT_START, PF_FETCH, PF_PRESENT, PF_WRITE, pte, walk};

fn put(machine: &Machine, table: u64, index: usize, entry: u64) {
    machine.write(Mfn(table), index * 8, &entry.to_le_bytes()).unwrap();
}

/// Tables in frames 1 to 4 map linear 0x1000 to frame 5 with the given L1 flags.
fn space(machine: &Machine, l1_flags: u64) -> AddressSpace {
    for level in 1..4 {
        put(machine, level, 0, ((level + 1) << 12) | pte::PRESENT | pte::RW);
    }
    put(machine, 4, 1, (5 << 12) | l1_flags);
    AddressSpace { root: Mfn(1), m2p: Mfn(6), nr_m2p: 1 }
}

#[test]
fn test_walk_sets_accessed_and_dirty_as_hardware_does() {
    let machine = Machine::new(8).unwrap();
    let space = space(&machine, pte::PRESENT | pte::RW);
    let read = walk(&machine, &space, 0x1234, Access::Read).unwrap();
    assert_eq!((read.mfn, read.writable, read.may_write, read.executable), (Mfn(5), false, true, true));
    assert_eq!(machine.entry(Mfn(4), 1).unwrap() & (pte::ACCESSED | pte::DIRTY), pte::ACCESSED);
    assert!(walk(&machine, &space, 0x1234, Access::Write).unwrap().writable);
    assert_eq!(machine.entry(Mfn(4), 1).unwrap() & pte::DIRTY, pte::DIRTY);
    assert_eq!(machine.entry(Mfn(1), 0).unwrap() & pte::ACCESSED, pte::ACCESSED);
}

#[test]
fn test_walk_faults_with_hardware_error_codes() {
    let machine = Machine::new(8).unwrap();
    let space = space(&machine, pte::PRESENT | pte::NX);
    let code = |va, access| walk(&machine, &space, va, access).unwrap_err().error_code;
    assert_eq!(code(0x2000, Access::Read), 0);
    assert_eq!(code(0x2000, Access::Write), PF_WRITE);
    assert_eq!(code(0x1000, Access::Write), PF_WRITE | PF_PRESENT);
    assert_eq!(code(0x1000, Access::Execute), PF_FETCH | PF_PRESENT);
    assert_eq!(code(0xffff_f000_0000_0000, Access::Read), 0);
}

#[test]
fn test_m2p_shows_read_only_in_the_hypervisor_hole() {
    let machine = Machine::new(8).unwrap();
    let space = space(&machine, pte::PRESENT);
    assert_eq!(walk(&machine, &space, HYPERVISOR_VIRT_START + 8, Access::Read).unwrap().mfn, Mfn(6));
    assert!(walk(&machine, &space, HYPERVISOR_VIRT_START, Access::Write).is_err());
    assert!(walk(&machine, &space, HYPERVISOR_VIRT_START + 0x1000, Access::Read).is_err());
}

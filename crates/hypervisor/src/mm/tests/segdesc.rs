//! Descriptor tables.

use ring3_machine::Mfn;

use super::super::segdesc::checked_descriptor;
use super::World;

const FLAT_CODE_DPL0: u64 = 0x00af_9b00_0000_ffff;
const FLAT_CODE_DPL3: u64 = 0x00af_fb00_0000_ffff;
const TSS: u64 = 0x0000_8900_0000_0067;
const LDT: u64 = 0x0000_8200_0000_0067;
const INTERRUPT_GATE: u64 = 0x0000_8e00_0008_0000;

/// A present call gate to `selector`.
const fn call_gate(selector: u16) -> u64 {
    0x0000_8c00_0000_0000 | (selector as u64) << 16
}

#[test]
fn test_descriptors_are_checked_and_lowered_to_ring_3() {
    assert_eq!(checked_descriptor(0), Some(0));
    assert_eq!(checked_descriptor(FLAT_CODE_DPL0), Some(FLAT_CODE_DPL3));
    assert_eq!(checked_descriptor(FLAT_CODE_DPL3), Some(FLAT_CODE_DPL3));
    for bad in [TSS, LDT, INTERRUPT_GATE] {
        assert_eq!(checked_descriptor(bad), None, "{bad:#x}");
        // Not present: it faults when used, so anything goes.
        assert_eq!(checked_descriptor(bad & !(1 << 47)), Some(bad & !(1 << 47)));
    }
    assert_eq!(checked_descriptor(call_gate(0x10)), Some(call_gate(0x13)), "nobody at ring 3 may use it");
    assert_eq!(checked_descriptor(call_gate(0xe008)), None, "an entry of the hypervisor");
    assert_eq!(checked_descriptor(call_gate(0xe00c)), Some(call_gate(0xe00f)), "in the LDT");
    assert_eq!(checked_descriptor(call_gate(0x10) | 1 << 32), None, "a parameter count");
}

#[test]
fn test_gdt_frames_are_checked_and_not_writable() {
    let world = World::new();
    let [gdt, second, bad] = world.pages();
    world.poke(gdt, 2, FLAT_CODE_DPL0);
    world.poke(bad, 511, TSS);
    assert!(world.mm.set_gdt(&[], &[gdt, bad], 1024).is_err());
    assert_eq!(world.counts(gdt), (0, 1));
    assert_eq!(world.mm.set_gdt(&[], &[gdt, second, bad], 513).unwrap(), 2);
    assert_eq!(world.peek(gdt, 2), FLAT_CODE_DPL3);
    assert!(world.mm.get_writable(gdt).is_err());
    assert!(world.mm.set_gdt(&[gdt, second], &[Mfn(900)], 1).is_err());
    assert_eq!(world.counts(gdt), (1, 2), "the old one stays in force");
    assert!(world.mm.set_gdt(&[], &[gdt; 16], 7169).is_err());
    assert!(world.mm.set_gdt(&[], &[gdt], 513).is_err());
    assert_eq!(world.mm.set_gdt(&[gdt, second], &[second], 512).unwrap(), 1);
    assert_eq!((world.counts(gdt), world.counts(second)), ((0, 1), (1, 2)));
    assert_eq!(world.mm.set_gdt(&[second], &[], 0).unwrap(), 0);
    world.mm.get_writable(gdt).unwrap();
}

#[test]
fn test_update_descriptor_stores_where_it_may() {
    let world = World::new();
    let [gdt, data, l1] = world.pages();
    world.mm.get_segdesc(gdt).unwrap();
    world.mm.pin_table(1, l1).unwrap();
    for mfn in [gdt, data] {
        world.mm.update_descriptor(mfn.address() + 16, FLAT_CODE_DPL0).unwrap();
        assert_eq!(world.peek(mfn, 2), FLAT_CODE_DPL3);
        assert!(world.mm.update_descriptor(mfn.address() + 16, TSS).is_err());
        assert!(world.mm.update_descriptor(mfn.address() + 12, 0).is_err());
        assert_eq!(world.peek(mfn, 2), FLAT_CODE_DPL3);
    }
    assert!(world.mm.update_descriptor(l1.address(), 0).is_err());
    assert!(world.mm.update_descriptor(Mfn(900).address(), 0).is_err());
    assert!(world.mm.update_descriptor(!7, 0).is_err());
    assert_eq!(world.counts(data), (0, 1));
}

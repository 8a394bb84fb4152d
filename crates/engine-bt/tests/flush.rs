//! What a flush drops, and what it leaves.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "small numbers")]

mod support;

use ring3_engine::{Exit, Flush, GprName, pte};
use ring3_machine::Mfn;
use support::{CODE, DATA, FIRST, Guest};

/// Reads a byte at DATA, and leaves.
const READ: [u8; 5] = [0x0f, 0xb6, 0x03, 0x0f, 0x05];

/// Changes an entry of the level-1 table that maps CODE and DATA, without a flush.
fn remap(guest: &Guest, page: u64, frame: u64) {
    let entry = frame << 12 | pte::PRESENT | pte::RW | pte::USER;
    let slot = ((CODE >> 12 & 511) + page) as usize * 8;
    guest.machine.write(Mfn(4), slot, &entry.to_le_bytes()).unwrap();
}

fn read_at_data(guest: &mut Guest) -> u64 {
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA);
    guest.vcpu.regs_mut().rip = CODE;
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
    guest.gpr(GprName::Rax)
}

#[test]
fn test_a_slot_flush_drops_data_of_that_slot_only() {
    let mut guest = Guest::new();
    guest.write(CODE, &READ);
    guest.write(DATA, &[1]);
    guest.write(DATA + 0x1000, &[2]);
    assert_eq!(read_at_data(&mut guest), 1);
    let data_page = (DATA - CODE) >> 12;
    remap(&guest, data_page, FIRST + data_page + 1);
    let slot = (DATA >> 12 & 511) as u16;
    guest.vcpu.flush(Flush::Slot { index: slot ^ 1, code: true });
    assert_eq!(read_at_data(&mut guest), 1, "another slot was flushed");
    guest.vcpu.flush(Flush::Slot { index: slot, code: false });
    assert_eq!(read_at_data(&mut guest), 2);
}

#[test]
fn test_a_slot_flush_drops_code_if_asked() {
    const TWO: [u8; 7] = [0xb8, 2, 0, 0, 0, 0x0f, 0x05];
    for (flushed, code, expected) in [(0, false, 1), (0, true, 2), (1, true, 2), (2, true, 1)] {
        let mut guest = Guest::new();
        let one = [0xb8, 1, 0, 0, 0, 0x0f, 0x05];
        guest.write(CODE, &one);
        guest.write(CODE + 0x1000, &TWO);
        assert_eq!(read_at_data(&mut guest), 1);
        remap(&guest, 0, FIRST + 1);
        // A flush for the next page counts too: an instruction may cross into it.
        let index = ((CODE >> 12) + flushed) as u16 & 511;
        guest.vcpu.flush(Flush::Slot { index, code });
        assert_eq!(read_at_data(&mut guest), expected, "slot {flushed}, code {code}");
    }
}

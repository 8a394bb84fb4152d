//! Pages that compete for a place in the TLB change places; a flush finds each wherever it is.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use iced_x86::code_asm::*;
use ring3_engine::{Exit, Flush, GprName, pte, vector};
use ring3_machine::Mfn;
use support::{CODE, DATA, FIRST, Guest, assemble};

/// So far above, the same entries of the TLB are selected.
const ABOVE: u64 = 16 << 20;
/// A free frame for the table that maps what is there, and that table's level-2 entry's frame.
const TABLE: u64 = 5;
const L2: u64 = 3;
const RIGHTS: u64 = pte::PRESENT | pte::RW | pte::USER;

fn put(guest: &Guest, table: u64, index: u64, entry: u64) {
    guest.machine.write(Mfn(table), (index % 512) as usize * 8, &entry.to_le_bytes()).unwrap();
}

/// Has `DATA + ABOVE` show the data page of this number.
fn show(guest: &Guest, page: u64) {
    put(guest, TABLE, (DATA + ABOVE) >> 12, (FIRST + 4 + page) << 12 | RIGHTS);
}

/// Counts in DATA ECX times, reading what is above it each third time. RDX is the sum of what it read there.
fn alternating() -> Vec<u8> {
    assemble(CODE, |a| {
        let (mut again, mut next) = (a.create_label(), a.create_label());
        a.mov(rbx, DATA)?;
        a.mov(rsi, DATA + ABOVE)?;
        a.xor(edx, edx)?;
        a.mov(edi, 3)?;
        a.set_label(&mut again)?;
        a.inc(qword_ptr(rbx))?;
        a.dec(edi)?;
        a.jne(next)?;
        a.mov(edi, 3)?;
        a.add(rdx, qword_ptr(rsi))?;
        a.set_label(&mut next)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.syscall()
    })
}

#[test]
fn test_a_flush_finds_pages_that_changed_places() {
    for flush in [Flush::All, Flush::LowerHalf, Flush::Page(DATA + ABOVE), Flush::Slot { index: 4, code: false }] {
        for turns in 1..80u64 {
            let mut guest = Guest::new();
            put(&guest, L2, (CODE + ABOVE) >> 21, TABLE << 12 | RIGHTS);
            guest.write(CODE, &alternating());
            guest.write(DATA + 0x1000, &1u64.to_le_bytes());
            guest.write(DATA + 0x2000, &100u64.to_le_bytes());
            let mut run = |page: u64, value: u64| {
                show(&guest, page);
                guest.vcpu.flush(flush);
                guest.vcpu.regs_mut().set(GprName::Rcx, turns);
                guest.vcpu.regs_mut().rip = CODE;
                assert_eq!(guest.vcpu.run(), Exit::Hypercall);
                assert_eq!(guest.gpr(GprName::Rdx), turns / 3 * value, "{flush:?}, {turns} turns");
            };
            run(1, 1);
            run(2, 100);
            run(1, 1);
            assert_eq!(guest.read(DATA, 8), (3 * turns).to_le_bytes());
        }
    }
}

#[test]
fn test_write_access_is_taken_from_pages_that_changed_places() {
    for turns in 1..40u64 {
        for page in [DATA, DATA + ABOVE] {
            let mut guest = Guest::new();
            put(&guest, L2, (CODE + ABOVE) >> 21, TABLE << 12 | RIGHTS);
            show(&guest, 1);
            // What is filled from here on is listed.
            guest.vcpu.flush(Flush::All);
            // Both are written to in turns; then once more.
            guest.write(CODE, &alternating());
            let store = assemble(CODE + 0x100, |a| {
                a.mov(byte_ptr(rbp), 1)?;
                a.syscall()
            });
            guest.write(CODE + 0x100, &store);
            let mut run = |rip: u64| {
                let regs = guest.vcpu.regs_mut();
                (regs.rip, regs.gpr[GprName::Rcx as usize], regs.gpr[GprName::Rbp as usize]) = (rip, turns, page);
                guest.vcpu.run()
            };
            assert_eq!([run(CODE + 0x100), run(CODE), run(CODE + 0x100)], [Exit::Hypercall; 3]);
            // The page is read-only now; nobody says so but by its frame.
            let (table, frame) = if page == DATA { (4, FIRST + 4) } else { (TABLE, FIRST + 5) };
            put(&guest, table, page >> 12, frame << 12 | RIGHTS & !pte::RW);
            guest.vcpu.control().request_protect(Mfn(frame));
            guest.vcpu.regs_mut().rip = CODE + 0x100;
            let fault = Exit::Exception { vector: vector::PF, error_code: Some(3), cr2: page };
            assert_eq!(guest.vcpu.run(), fault, "{page:x}, {turns} turns");
        }
    }
}

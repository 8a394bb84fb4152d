//! Stores across two pages of which one may not be written: nothing is stored, and neither page becomes dirty.
#![allow(clippy::unwrap_used)]

mod support;

use iced_x86::code_asm::*;
use ring3_engine::{Exit, GprName, pte};
use ring3_machine::Mfn;
use support::{CODE, DATA, FIRST, Guest};

type Store = fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>;

/// Frame of the last table, as the support lays it out.
const L1: Mfn = Mfn(4);

/// Stores at RDI and RSP, which are 4 bytes below the end of the first page.
const STORES: [(&str, Store); 16] = [
    ("mov", |a| a.mov(qword_ptr(rdi), rax)),
    ("mov imm", |a| a.mov(qword_ptr(rdi), 7)),
    ("add", |a| a.add(qword_ptr(rdi), rax)),
    ("lock add", |a| a.lock().add(qword_ptr(rdi), rax)),
    ("xchg", |a| a.xchg(qword_ptr(rdi), rax)),
    ("lock cmpxchg", |a| a.lock().cmpxchg(qword_ptr(rdi), rcx)),
    ("not", |a| a.not(qword_ptr(rdi))),
    ("bts", |a| a.bts(qword_ptr(rdi), 3)),
    ("push", |a| a.push(rax)),
    ("push memory", |a| a.push(qword_ptr(rsi))),
    ("pop memory", |a| a.pop(qword_ptr(rdi))),
    ("call", |a| a.call(CODE + 0x800)),
    ("movups", |a| a.movups(xmmword_ptr(rdi), xmm1)),
    ("vmovups", |a| a.vmovups(ymmword_ptr(rdi), ymm1)),
    ("stosq", |a| a.stosq()),
    ("movsq", |a| a.movsq()),
];

/// Page-table entry of a page (counted from `CODE`).
fn entry(guest: &Guest, page: u64) -> u64 {
    let mut bytes = [0u8; 8];
    guest.machine.read(L1, (((CODE >> 12) + page) & 511) as usize * 8, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

fn check(name: &str, store: Store, first: u64, second: u64, is_stepped: bool) {
    let mut guest = Guest::new();
    for (page, rights) in [(4, first), (5, second)] {
        guest.map(page, if rights == 0 { 0 } else { (FIRST + page) << 12 | rights });
    }
    let border = DATA + 4096;
    let mut a = CodeAssembler::new(64).unwrap();
    store(&mut a).unwrap();
    a.syscall().unwrap();
    let code = a.assemble(CODE).unwrap();
    let is_push = matches!(name, "push" | "push memory" | "call");
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rdi, border - 4);
    regs.set(GprName::Rsi, DATA + 2 * 4096);
    regs.set(GprName::Rsp, if is_push { border + 4 } else { DATA + 3 * 4096 });
    guest.write(CODE, &code);
    guest.vcpu.regs_mut().rip = CODE;
    let exit = if is_stepped { guest.vcpu.step(None) } else { guest.vcpu.run() };
    let writable = pte::PRESENT | pte::RW;
    let (address, rights) = if first & writable == writable { (border, second) } else { (border - 4, first) };
    let error_code = Some(2 | u32::from(rights & pte::PRESENT != 0));
    assert_eq!(exit, Exit::Exception { vector: 14, error_code, cr2: address }, "{name}, stepped: {is_stepped}");
    assert_eq!(guest.vcpu.regs().rip, CODE, "{name}");
    for page in [4, 5] {
        assert_eq!(entry(&guest, page) & pte::DIRTY, 0, "{name}: page {page} became dirty, stepped: {is_stepped}");
        assert!(guest.read(CODE + page * 4096, 4096).iter().all(|&byte| byte == 0), "{name}: stored to page {page}");
    }
}

#[test]
fn test_a_store_across_pages_that_faults_leaves_no_page_dirty() {
    let (read, all) = (pte::PRESENT | pte::USER, pte::PRESENT | pte::USER | pte::RW);
    for (name, store) in STORES {
        for is_stepped in [false, true] {
            for (first, second) in [(all, read), (all, 0), (read, all), (0, all), (read, read), (read, 0), (0, read)] {
                check(name, store, first, second, is_stepped);
            }
        }
    }
}

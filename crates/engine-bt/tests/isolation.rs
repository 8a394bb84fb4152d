//! What one guest leaves in the CPU is not another's.
#![allow(clippy::unwrap_used)]

mod support;

use iced_x86::code_asm::*;
use ring3_engine::{Exit, GprName};
use support::{CODE, Guest};

fn assemble(f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    f(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

#[test]
fn test_x87_registers_are_not_seen_by_the_next_guest() {
    let (mut one, mut other) = (Guest::new(), Guest::new());
    let secret = assemble(|a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.movq(mm0, rax)?;
        a.emms()?;
        a.syscall()
    });
    let read = assemble(|a| {
        a.movq(rbx, mm0)?;
        a.emms()?;
        a.syscall()
    });
    assert_eq!(one.run(&secret), Exit::Hypercall);
    one.vcpu.park();
    assert_eq!(other.run(&read), Exit::Hypercall);
    other.vcpu.park();
    assert_eq!(other.gpr(GprName::Rbx), 0);
    assert_eq!(one.run(&read), Exit::Hypercall);
    one.vcpu.park();
    assert_eq!(one.gpr(GprName::Rbx), 0x1122_3344_5566_7788);
}

#[test]
fn test_x87_state_follows_the_vcpu_to_another_thread() {
    let mut guest = Guest::new();
    let load = assemble(|a| {
        a.fld1()?;
        a.fldpi()?;
        a.syscall()
    });
    assert_eq!(guest.run(&load), Exit::Hypercall);
    guest.vcpu.park();
    let mut guest = std::thread::spawn(move || {
        let pop = assemble(|a| {
            a.fstp(st0)?;
            a.fistp(qword_ptr(support::DATA))?;
            a.syscall()
        });
        assert_eq!(guest.run(&pop), Exit::Hypercall);
        guest.vcpu.park();
        guest
    })
    .join()
    .unwrap();
    assert_eq!(guest.read(support::DATA, 8), 1u64.to_le_bytes());
    assert_eq!(guest.run(&assemble(|a| a.syscall())), Exit::Hypercall);
}

//! Flags in the frame of a page fault, where the block overwrites them later.
#![allow(clippy::unwrap_used)]

mod support;

use iced_x86::code_asm::*;
use ring3_engine::{Exit, GprName};
use support::{CODE, DATA, Guest};

const ARITHMETIC: u64 = 0x8d5;

/// RFLAGS at a store to an absent page behind `setter`, with flags that nothing else reads, with `first` in RAX and `second` in RCX.
fn flags_at_fault(
    first: u64,
    second: u64,
    setter: impl Fn(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>,
) -> u64 {
    let mut guest = Guest::new();
    guest.map(4, 0);
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rdi, DATA).unwrap();
    setter(&mut a).unwrap();
    a.mov(rdx, rdi).unwrap();
    a.mov(qword_ptr(rdi), rdx).unwrap();
    a.mov(qword_ptr(rdi + 8), rdx).unwrap();
    a.cmp(rdi, rdi).unwrap();
    a.syscall().unwrap();
    let code = a.assemble(CODE).unwrap();
    guest.vcpu.regs_mut().set(GprName::Rax, first);
    guest.vcpu.regs_mut().set(GprName::Rcx, second);
    assert!(matches!(guest.run(&code), Exit::Exception { vector: 14, cr2: DATA, .. }));
    guest.vcpu.regs().rflags & ARITHMETIC
}

#[test]
fn test_a_fault_shows_flags_that_registers_still_say() {
    const CARRY: u64 = 1;
    const PARITY: u64 = 4;
    const ADJUST: u64 = 0x10;
    const ZERO: u64 = 0x40;
    const SIGN: u64 = 0x80;
    const OVERFLOW: u64 = 0x800;
    let max = i64::MAX as u64;
    assert_eq!(flags_at_fault(1, 2, |a| a.cmp(rax, rcx)), CARRY | PARITY | ADJUST | SIGN);
    assert_eq!(flags_at_fault(u64::MAX, 1, |a| a.add(rax, rcx)), CARRY | PARITY | ADJUST | ZERO);
    assert_eq!(flags_at_fault(max, 1, |a| a.add(rax, rcx)), PARITY | ADJUST | SIGN | OVERFLOW);
    assert_eq!(flags_at_fault(0, 1, |a| a.sub(rax, rcx)), CARRY | PARITY | ADJUST | SIGN);
    assert_eq!(flags_at_fault(0x80, 0, |a| a.sub(al, 1)), ADJUST | OVERFLOW);
    assert_eq!(flags_at_fault(0x1_0000, 0, |a| a.add(ax, -1)), PARITY | SIGN);
    assert_eq!(flags_at_fault(0xf0, 0xf, |a| a.and(eax, ecx)), PARITY | ZERO);
    assert_eq!(flags_at_fault(1, 0, |a| a.neg(rax)), CARRY | PARITY | ADJUST | SIGN);
    assert_eq!(flags_at_fault(3, 1, |a| a.test(rax, rcx)), 0);
}

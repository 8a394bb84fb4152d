//! Flags in the frame of a fault, where nothing but the frame shows them.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::sync::Arc;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use ring3_engine::{Exit, GprName, Requests};
use support::{CODE, DATA, Guest};

const ARITHMETIC: u64 = 0x8d5;
const PAGE_FAULT: u8 = 14;
const DIVIDE: u8 = 0;
const PROTECTION: u8 = 13;
const CARRY: u64 = 1;
const PARITY: u64 = 4;
const ADJUST: u64 = 0x10;
const ZERO: u64 = 0x40;
const SIGN: u64 = 0x80;
const OVERFLOW: u64 = 0x800;
/// Of 1 - 2.
const BELOW: u64 = CARRY | PARITY | ADJUST | SIGN;

/// RFLAGS at a store to an absent page behind `setter`, with flags that nothing else reads, with `first` in RAX and `second` in RCX.
fn flags_at_fault(first: u64, second: u64, setter: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
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

/// RFLAGS at an exception of `code` with this vector, with `first` in RAX and `second` in RCX; page 2 of the data has 5 at its
/// start. The flags are dead at the fault: all code here overwrites them.
fn flags_at(vector: u8, [first, second]: [u64; 2], code: impl Fn(&mut CodeAssembler) -> Result<(), IcedError>) -> u64 {
    let mut guest = Guest::new();
    guest.map(4, 0);
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rdi, DATA).unwrap();
    a.mov(rsi, DATA + 4096).unwrap();
    code(&mut a).unwrap();
    a.cmp(rdi, rdi).unwrap();
    a.syscall().unwrap();
    let code = a.assemble(CODE).unwrap();
    guest.write(CODE, &code);
    // Blocks are found by Rust at first, and by jumps then.
    let mut runs = (0..3).map(|_| {
        guest.write(DATA + 4096, &5u64.to_le_bytes());
        let regs = guest.vcpu.regs_mut();
        regs.set(GprName::Rax, first);
        regs.set(GprName::Rcx, second);
        regs.set(GprName::Rbx, 0);
        (regs.rip, regs.rflags) = (CODE, 0x202);
        let exit = guest.vcpu.run();
        assert!(matches!(exit, Exit::Exception { vector: v, .. } if v == vector), "{exit:?}");
        guest.vcpu.regs().rflags & ARITHMETIC
    });
    let flags = runs.next().unwrap();
    assert!(runs.all(|again| again == flags), "linked blocks show others than {flags:#x}");
    flags
}

#[test]
fn test_a_fault_shows_flags_whose_operands_are_gone() {
    let fault = |operands, setter: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        flags_at(PAGE_FAULT, operands, |a| {
            setter(a)?;
            a.mov(rax, qword_ptr(rsi))?;
            a.mov(rcx, rsi)?;
            a.mov(qword_ptr(rdi), rdx)
        })
    };
    assert_eq!(fault([1, 2], &|a| a.cmp(rax, rcx)), BELOW);
    assert_eq!(fault([1, 0], &|a| a.cmp(rax, 0x12_3456)), CARRY | SIGN | ADJUST);
    assert_eq!(fault([0x8000, 0], &|a| a.test(ah, ah)), SIGN);
    assert_eq!(fault([4, 0], &|a| a.cmp(rax, qword_ptr(rsi))), BELOW);
    assert_eq!(fault([4, 0], &|a| a.cmp(dword_ptr(rsi), 6)), BELOW);
    assert_eq!(fault([u64::MAX - 4, 0], &|a| a.add(rax, qword_ptr(rsi))), CARRY | PARITY | ADJUST | ZERO);
    assert_eq!(fault([4, 0], &|a| a.sub(rax, qword_ptr(rsi))), BELOW);
    assert_eq!(fault([1 << 63 | 3, 0], &|a| a.add(rax, rax)), CARRY | PARITY | OVERFLOW);
    assert_eq!(fault([3, 0], &|a| a.shr(rax, 1)), CARRY);
    assert_eq!(fault([0, 6], &|a| a.sub(qword_ptr(rsi), rcx)), BELOW);
    assert_eq!(fault([0, 0], &|a| a.xor(eax, eax)), PARITY | ZERO);
}

#[test]
fn test_a_fault_shows_flags_whose_operands_it_would_have_overwritten() {
    let load = |a: &mut CodeAssembler| {
        a.cmp(rax, rcx)?;
        a.mov(rdx, qword_ptr(rsi))?;
        a.mov(rax, qword_ptr(rdi))
    };
    assert_eq!(flags_at(PAGE_FAULT, [1, 2], load), BELOW);
}

#[test]
fn test_a_fault_shows_what_an_instruction_left_of_older_flags() {
    let fault = |setter: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        flags_at(PAGE_FAULT, [1, 2], |a| {
            a.cmp(rax, rcx)?;
            a.mov(rdx, qword_ptr(rsi))?;
            setter(a)?;
            a.mov(qword_ptr(rdi), rdx)
        })
    };
    assert_eq!(fault(&|a| a.dec(rax)), CARRY | PARITY | ZERO);
    assert_eq!(fault(&|a| a.inc(dword_ptr(rsi))), CARRY | PARITY);
    assert_eq!(fault(&|a| a.bt(rax, 1)) & (CARRY | ZERO), 0);
    assert_eq!(
        fault(&|a| {
            a.mov(ecx, 0)?;
            a.shl(rax, cl)
        }),
        BELOW
    );
}

#[test]
fn test_a_fault_shows_flags_of_an_earlier_block() {
    let over = |operands, is_far_ahead: bool| {
        flags_at(PAGE_FAULT, operands, |a| {
            let (mut after, mut end) = (a.create_label(), a.create_label());
            a.cmp(rax, rcx)?;
            a.jb(after)?;
            a.inc(rax)?;
            a.jmp(end)?;
            if is_far_ahead {
                a.db(&[0xcc; 16])?;
                a.db(&[0xcc; 16])?;
            }
            a.set_label(&mut after)?;
            a.mov(rax, rsi)?;
            a.mov(rcx, qword_ptr(rax))?;
            a.mov(qword_ptr(rdi), rdx)?;
            a.set_label(&mut end)?;
            a.nop()
        })
    };
    assert_eq!(over([1, 2], false), BELOW);
    assert_eq!(over([1, 2], true), BELOW);
    // Over and over, down into the page that is not there.
    let last = flags_at(PAGE_FAULT, [DATA + 0xff9, 0], |a| {
        let mut again = a.create_label();
        a.lea(rdx, qword_ptr(rsi + 16))?;
        a.set_label(&mut again)?;
        a.mov(rbx, qword_ptr(rdx))?;
        a.sub(rdx, 8)?;
        a.cmp(rdx, rax)?;
        a.jne(again)
    });
    assert_eq!(last, BELOW);
}

#[test]
fn test_a_fault_of_the_hosts_cpu_shows_flags() {
    let divide = |a: &mut CodeAssembler| {
        a.cmp(rax, rcx)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.xchg(rax, rbx)?;
        a.div(qword_ptr(rsi + 8))
    };
    assert_eq!(flags_at(DIVIDE, [1, 2], divide), BELOW);
    let misaligned = |a: &mut CodeAssembler| {
        a.sub(rax, 0x12_3456)?;
        a.mov(rcx, qword_ptr(rsi))?;
        a.movaps(xmm1, xmmword_ptr(rsi + 8))
    };
    assert_eq!(flags_at(PROTECTION, [1, 2], misaligned), CARRY | SIGN | ADJUST);
}

/// Arithmetic flags of `a - b`.
fn flags_of_difference(a: u64, b: u64) -> u64 {
    let difference = a.wrapping_sub(b);
    let when = |is_set: bool, flag| if is_set { flag } else { 0 };
    when(a < b, CARRY)
        | when((difference as u8).count_ones().is_multiple_of(2), PARITY)
        | when((a ^ b ^ difference) & 0x10 != 0, ADJUST)
        | when(difference == 0, ZERO)
        | when(difference >> 63 != 0, SIGN)
        | when(((a ^ b) & (a ^ difference)) >> 63 != 0, OVERFLOW)
}

/// Runs a loop that is asked to stop again and again; `check` looks at the guest each time that it has stopped in it.
fn interrupt(code: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>, check: impl Fn(&Guest, u64)) {
    let mut guest = Guest::new();
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rsi, DATA).unwrap();
    a.xor(eax, eax).unwrap();
    a.mov(rcx, 0x5555_5555_5555u64).unwrap();
    a.stc().unwrap();
    let start = CODE + a.assemble(CODE).unwrap().len() as u64;
    code(&mut a).unwrap();
    let code = a.assemble(CODE).unwrap();
    guest.write(CODE, &code);
    let (control, is_running) = (guest.vcpu.control(), Arc::new(()));
    let watched = Arc::downgrade(&is_running);
    std::thread::spawn(move || {
        while watched.strong_count() != 0 {
            control.request(Requests::EVENT);
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    });
    let mut nr_stops = 0;
    for _ in 0..2000 {
        let exit = guest.vcpu.run();
        assert!(matches!(exit, Exit::Interrupted(_)), "{exit:?}");
        if guest.vcpu.regs().rip >= start && guest.gpr(GprName::Rax) != 0 {
            check(&guest, start);
            nr_stops += 1;
        }
    }
    assert!(nr_stops > 100, "{nr_stops}");
}

#[test]
fn test_an_event_shows_flags() {
    let is_difference = |guest: &Guest, start| {
        assert_eq!(guest.vcpu.regs().rip, start);
        let expected = flags_of_difference(guest.gpr(GprName::Rax), guest.gpr(GprName::Rcx));
        assert_eq!(guest.vcpu.regs().rflags & ARITHMETIC, expected);
    };
    // The block shows them, if it faults; it sets them at once.
    for accesses in [true, false] {
        let difference = |a: &mut CodeAssembler| {
            let mut again = a.create_label();
            a.set_label(&mut again)?;
            if accesses {
                a.mov(rbx, qword_ptr(rsi))?;
            }
            a.add(rax, 3)?;
            a.cmp(rax, rcx)?;
            a.jne(again)
        };
        interrupt(&difference, is_difference);
    }
    // CF stays as it was before the loop.
    let counted = |a: &mut CodeAssembler| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.mov(qword_ptr(rsi), rcx)?;
        a.inc(rax)?;
        a.jne(again)
    };
    interrupt(&counted, |guest, _| {
        let count = guest.gpr(GprName::Rax);
        let adjust = if count & 15 == 0 { ADJUST } else { 0 };
        let expected = CARRY | flags_of_difference(count, 0) & !ADJUST | adjust;
        assert_eq!(guest.vcpu.regs().rflags & ARITHMETIC, expected);
    });
}

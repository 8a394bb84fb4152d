//! Code that the guest writes and runs, again and again.
#![allow(clippy::unwrap_used)]

mod support;

use iced_x86::code_asm::*;
use ring3_engine::{Engine as _, Exit, GprName};
use support::{CODE, DATA, FUNCTION, Guest, assemble, written_and_called};

#[test]
fn test_a_function_on_another_page_is_written_and_called_many_times() {
    let mut guest = Guest::new();
    guest.vcpu.regs_mut().set(GprName::Rcx, 1000);
    assert_eq!(guest.run(&written_and_called()), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rdx), 1000 * 1001 / 2);
}

#[test]
fn test_a_page_of_functions_is_rewritten_in_turn() {
    let mut guest = Guest::new();
    // 64 functions, of which each pass writes every other one, and calls all.
    let code = assemble(CODE, |a| {
        let (mut pass, mut one, mut keep) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(r12d, 20)?;
        a.xor(edx, edx)?;
        a.set_label(&mut pass)?;
        a.mov(rbx, DATA)?;
        a.mov(ecx, 64)?;
        a.set_label(&mut one)?;
        a.cmp(r12d, 20)?;
        a.sete(al)?;
        a.mov(edi, ecx)?;
        a.xor(edi, r12d)?;
        a.or(al, dil)?;
        a.test(al, 1)?;
        a.jz(keep)?;
        a.mov(rax, FUNCTION)?;
        a.mov(esi, r12d)?;
        a.shl(rsi, 8)?;
        a.or(rax, rsi)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.set_label(&mut keep)?;
        a.call(rbx)?;
        a.add(edx, eax)?;
        a.add(rbx, 64)?;
        a.dec(ecx)?;
        a.jnz(one)?;
        a.dec(r12d)?;
        a.jnz(pass)?;
        a.syscall()
    });
    let mut functions = [0u32; 64];
    let mut sum = 0;
    for pass in (1..=20u32).rev() {
        for (n, function) in functions.iter_mut().enumerate() {
            let count = 64 - u32::try_from(n).unwrap();
            if pass == 20 || (count ^ pass) & 1 != 0 {
                *function = pass;
            }
            sum += *function;
        }
    }
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rdx), u64::from(sum));
}

#[test]
fn test_data_beside_code_changes_while_it_runs() {
    let mut guest = Guest::new();
    // A counter on the page of the loop that counts it.
    let code = assemble(CODE, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.mov(rbx, CODE + 0x800)?;
        a.set_label(&mut again)?;
        a.add(dword_ptr(rbx), ecx)?;
        a.inc(qword_ptr(rbx + 8))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.syscall()
    });
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.read(CODE + 0x800, 4), 500_500u32.to_le_bytes());
    assert_eq!(guest.read(CODE + 0x808, 8), 1000u64.to_le_bytes());
}

/// Code that somebody writes who does not tell the engine, as domain 0 does by its mapping of a granted frame.
#[test]
fn test_code_of_a_frame_with_an_outside_writer_is_read_anew() {
    let mut guest = Guest::new();
    let frame = ring3_machine::Mfn(support::FIRST + (DATA - CODE) / 4096);
    let function = |value: u32| (FUNCTION | u64::from(value) << 8).to_le_bytes();
    let code = assemble(CODE, |a| {
        let mut again = a.create_label();
        a.mov(rbx, DATA)?;
        a.mov(ecx, 100)?;
        a.set_label(&mut again)?;
        a.call(rbx)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.syscall()
    });
    guest.write(DATA, &function(1));
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rax), 1);
    assert!(guest.machine.code().has_code(frame), "a translation is kept");

    // The mapping is made while there are blocks.
    guest.machine.code().add_writer(frame);
    guest.engine.invalidate_code(frame);
    for value in 2..10 {
        guest.machine.write(frame, 0, &function(value)).unwrap();
        assert_eq!(guest.run(&code), Exit::Hypercall);
        assert_eq!(guest.gpr(GprName::Rax), u64::from(value));
        assert!(!guest.machine.code().has_code(frame), "nothing is kept");
    }

    // Two mappings, of which one goes.
    guest.machine.code().add_writer(frame);
    guest.machine.code().remove_writer(frame);
    guest.machine.write(frame, 0, &function(11)).unwrap();
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rax), 11);
    guest.machine.code().remove_writer(frame);
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rax), 11);
    assert!(guest.machine.code().has_code(frame), "a translation is kept again");
}

/// Code that was written while the domain was paused.
#[test]
fn test_code_is_forgotten_at_the_word_of_who_paused_the_domain() {
    let mut guest = Guest::new();
    let frame = ring3_machine::Mfn(support::FIRST + (DATA - CODE) / 4096);
    let code = assemble(CODE, |a| {
        a.mov(rbx, DATA)?;
        a.call(rbx)?;
        a.syscall()
    });
    for value in 1..4u32 {
        guest.machine.write(frame, 0, &(FUNCTION | u64::from(value) << 8).to_le_bytes()).unwrap();
        guest.domain.forget_code();
        assert_eq!(guest.run(&code), Exit::Hypercall);
        assert_eq!(guest.gpr(GprName::Rax), u64::from(value));
    }
}

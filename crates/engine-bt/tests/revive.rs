//! Blocks of a page that was written come back where their bytes are the same, and nowhere else.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use iced_x86::code_asm::*;
use ring3_engine::{Exit, GprName};
use support::{CODE, Guest, assemble, counter};

/// A place on the page of the code, far from its start.
const FAR: u64 = CODE + 0x800;

/// Runs what is at `CODE`; returns RAX.
fn run(guest: &mut Guest) -> u64 {
    guest.vcpu.regs_mut().rip = CODE;
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
    guest.gpr(GprName::Rax)
}

/// Runs, and returns RAX with how many blocks were translated and revived.
fn counted(guest: &mut Guest) -> (u64, u64, u64) {
    let before = (counter(&*guest.domain, "blocks translated"), counter(&*guest.domain, "blocks revived"));
    let result = run(guest);
    (
        result,
        counter(&*guest.domain, "blocks translated") - before.0,
        counter(&*guest.domain, "blocks revived") - before.1,
    )
}

/// Sets EAX to `value` at `FAR`, and leaves. It reads all flags first: so who jumps there does not depend on it.
fn leaf(value: u32) -> Vec<u8> {
    assemble(FAR, |a| {
        a.pushfq()?;
        a.pop(rcx)?;
        a.mov(eax, value)?;
        a.syscall()
    })
}

fn jump_to_leaf(value: u32) -> Guest {
    let guest = Guest::new();
    guest.write(
        CODE,
        &assemble(CODE, |a| {
            a.xor(eax, eax)?;
            a.jmp(FAR)
        }),
    );
    guest.write(FAR, &leaf(value));
    guest
}

#[test]
fn test_data_beside_code_costs_no_translation() {
    let mut guest = jump_to_leaf(1);
    assert_eq!(run(&mut guest), 1);
    for round in 0..100u8 {
        guest.write(CODE + 0x400, &[round]);
        assert_eq!(counted(&mut guest), (1, 0, 2));
    }
}

#[test]
fn test_a_jump_to_code_that_changed_leads_to_the_new() {
    let mut guest = jump_to_leaf(1);
    assert_eq!(run(&mut guest), 1);
    assert_eq!(run(&mut guest), 1, "the jump is direct by now");
    guest.write(FAR, &leaf(2));
    assert_eq!(counted(&mut guest), (2, 1, 1));
    guest.write(FAR, &leaf(1));
    assert_eq!(counted(&mut guest), (1, 0, 2), "as it was at first");
    for value in 3..50 {
        guest.write(FAR, &leaf(value));
        assert_eq!(counted(&mut guest), (u64::from(value), 1, 1));
    }
}

#[test]
fn test_flags_that_only_new_code_reads_are_there() {
    let mut guest = Guest::new();
    // The sum's flags are dead as long as the code at FAR overwrites them; the load in between clobbers the host's.
    guest.write(
        CODE,
        &assemble(CODE, |a| {
            a.mov(rbx, CODE + 0x400)?;
            a.mov(ecx, 0xffff_ffffu32)?;
            a.add(ecx, 1)?;
            a.mov(rdx, qword_ptr(rbx))?;
            a.jmp(FAR)
        }),
    );
    let overwrites = assemble(FAR, |a| {
        a.xor(eax, eax)?;
        a.syscall()
    });
    let reads = assemble(FAR, |a| {
        a.mov(eax, 5)?;
        a.adc(eax, 0)?;
        a.syscall()
    });
    for _ in 0..3 {
        guest.write(FAR, &overwrites);
        assert_eq!(run(&mut guest), 0);
        guest.write(FAR, &reads);
        assert_eq!(run(&mut guest), 6);
    }
}

#[test]
fn test_an_instruction_across_pages_takes_both_pages_bytes() {
    let mut guest = Guest::new();
    let at = CODE + 0xffd;
    guest.write(CODE, &assemble(CODE, |a| a.jmp(at)));
    for round in 1..20u32 {
        let code = assemble(at, |a| {
            a.mov(eax, round << 8)?;
            a.syscall()
        });
        guest.write(at, &code[..3]);
        guest.write(CODE + 0x1000, &code[3..]);
        assert_eq!(run(&mut guest), u64::from(round) << 8);
    }
}

#[test]
fn test_a_page_that_is_never_twice_the_same_keeps_no_blocks() {
    let mut guest = jump_to_leaf(0);
    for value in 1..5000 {
        guest.write(FAR, &leaf(value));
        assert_eq!(run(&mut guest), u64::from(value));
    }
    let before = counter(&*guest.domain, "blocks revived");
    for value in 1..3 {
        guest.write(FAR, &leaf(value));
        assert_eq!(run(&mut guest), u64::from(value));
    }
    assert_eq!(counter(&*guest.domain, "blocks revived") - before, 2, "only the jump");
}

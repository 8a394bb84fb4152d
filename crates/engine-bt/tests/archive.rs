//! A kernel's blocks are kept in a file and woken in another run.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::fs::File;
use std::time::Instant;

use iced_x86::code_asm::*;
use ring3_engine::{Engine, Exit, GprName};
use ring3_engine_bt::{BtEngine, DirectPolicy, Options};
use support::{CODE, DATA, Guest, STACK_END, assemble, counter};

const CALLED: u64 = CODE + 0x1000;

/// RAX = the sum over ECX.. of what the function of the other page makes of it; it goes through memory and flags.
fn program() -> Vec<u8> {
    assemble(CODE, |a| {
        let (mut again, mut odd, mut next) = (a.create_label(), a.create_label(), a.create_label());
        a.mov(rbx, DATA)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.mov(qword_ptr(rbx + 8), rcx)?;
        a.test(ecx, 1)?;
        a.jnz(odd)?;
        a.call(CALLED)?;
        a.jmp(next)?;
        a.set_label(&mut odd)?;
        a.add(rax, qword_ptr(rbx + 8))?;
        a.set_label(&mut next)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.syscall()
    })
}

fn function(factor: i32) -> Vec<u8> {
    assemble(CALLED, |a| {
        a.imul_3(rdx, rcx, factor)?;
        a.add(rax, rdx)?;
        a.ret()
    })
}

/// What `program` leaves in RAX.
fn expected(count: u64, factor: u64) -> u64 {
    (1..=count).map(|n| if n % 2 == 1 { n } else { n * factor }).sum()
}

fn guest(file: &File, factor: i32) -> Guest {
    let options = Options {
        direct: DirectPolicy::Never,
        archives: vec![file.try_clone().unwrap()],
        archive_min_blocks: 3,
        ..Options::default()
    };
    let guest = Guest::with_engine(BtEngine::with_options(options).unwrap());
    guest.write(CODE, &program());
    guest.write(CALLED, &function(factor));
    guest
}

fn run(guest: &mut Guest, count: u64) -> u64 {
    let regs = guest.vcpu.regs_mut();
    regs.rip = CODE;
    regs.set(GprName::Rcx, count);
    regs.set(GprName::Rsp, STACK_END - 64);
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
    guest.gpr(GprName::Rax)
}

fn temporary() -> File {
    let path = std::env::temp_dir().join(format!("ring3-archive-{}-{:?}", std::process::id(), Instant::now()));
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// Ends a guest, and waits until what it leaves is written.
fn end(guest: Guest) {
    let Guest { engine, domain, vcpu, .. } = guest;
    drop((vcpu, domain));
    engine.finish();
}

#[test]
fn test_another_run_translates_nothing_anew() {
    let file = temporary();
    let mut first = guest(&file, 7);
    assert_eq!(run(&mut first, 1000), expected(1000, 7));
    let made = counter(&*first.domain, "blocks translated");
    assert!(made >= 4 && counter(&*first.domain, "blocks woken") == 0);
    end(first);
    let mut second = guest(&file, 7);
    assert_eq!(run(&mut second, 1001), expected(1001, 7));
    assert_eq!(counter(&*second.domain, "blocks translated"), 0);
    assert_eq!(counter(&*second.domain, "blocks woken"), made);
}

#[test]
fn test_other_code_at_the_same_place_is_translated() {
    let file = temporary();
    let mut first = guest(&file, 7);
    assert_eq!(run(&mut first, 1000), expected(1000, 7));
    end(first);
    let mut second = guest(&file, 9);
    assert_eq!(run(&mut second, 1000), expected(1000, 9));
    assert_eq!(counter(&*second.domain, "blocks translated"), 1);
    assert!(counter(&*second.domain, "blocks woken") > 2);
}

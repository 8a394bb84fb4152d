//! Loops are followed once around and become blocks of their own.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iced_x86::code_asm::*;
use ring3_engine::{Exit, GprName};
use ring3_engine_bt::{BtEngine, DirectPolicy, Options};
use support::{CODE, DATA, Guest, assemble, counter};

fn guest(follows_all: bool) -> Guest {
    let options = Options { direct: DirectPolicy::Never, follows_all, ..Options::default() };
    Guest::with_engine(BtEngine::with_options(options).unwrap())
}

fn followed(guest: &Guest) -> u64 {
    counter(&*guest.domain, "loops followed")
}

/// Counts in EAX the words of an array of RCX that equal EDX, by a loop of four blocks: from the last to the first.
fn counting() -> Vec<u8> {
    assemble(CODE, |a| {
        let (mut again, mut other, mut next) = (a.create_label(), a.create_label(), a.create_label());
        a.xor(eax, eax)?;
        a.mov(rbx, DATA - 8)?;
        a.set_label(&mut again)?;
        a.mov(rsi, qword_ptr(rbx + rcx * 8))?;
        a.cmp(rsi, rdx)?;
        a.jne(other)?;
        a.inc(eax)?;
        a.jmp(next)?;
        a.set_label(&mut other)?;
        a.xor(edi, edi)?;
        a.set_label(&mut next)?;
        a.dec(rcx)?;
        a.jne(again)?;
        a.syscall()
    })
}

/// Runs it on words of which every `nth` equals.
fn count(guest: &mut Guest, nth: u64) -> u64 {
    for word in 0..512 {
        guest.write(DATA + word * 8, &u64::from(word % nth == 0).to_le_bytes());
    }
    guest.vcpu.regs_mut().set(GprName::Rcx, 512);
    guest.vcpu.regs_mut().set(GprName::Rdx, 1);
    guest.vcpu.regs_mut().rip = CODE;
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
    guest.gpr(GprName::Rax)
}

#[test]
fn test_a_loop_that_is_followed_does_what_it_did_whatever_way_it_takes() {
    let mut guest = guest(true);
    guest.write(CODE, &counting());
    assert_eq!(count(&mut guest, 1), 512);
    assert_eq!(followed(&guest), 1);
    for nth in 1..20 {
        assert_eq!(count(&mut guest, nth), 512_u64.div_ceil(nth));
    }
    assert_eq!(followed(&guest), 1, "once is enough");
}

#[test]
fn test_code_that_is_written_is_followed_anew() {
    let mut guest = guest(true);
    guest.write(CODE, &counting());
    assert_eq!(count(&mut guest, 2), 256);
    let mut twice = counting();
    // `inc eax`, which becomes `dec eax`.
    let at = twice.windows(2).position(|bytes| bytes == [0xff, 0xc0]).unwrap();
    twice[at + 1] = 0xc8;
    guest.write(CODE, &twice);
    assert_eq!(count(&mut guest, 2), 256_u64.wrapping_neg() & 0xffff_ffff);
    guest.write(CODE, &counting());
    assert_eq!(count(&mut guest, 2), 256);
}

#[test]
fn test_a_vcpu_that_is_sampled_in_a_loop_follows_it() {
    let mut guest = guest(false);
    guest.write(
        CODE,
        &assemble(CODE, |a| {
            let (mut again, mut out) = (a.create_label(), a.create_label());
            a.set_label(&mut again)?;
            a.test(rdx, rdx)?;
            a.jne(out)?;
            a.dec(rsi)?;
            a.jne(again)?;
            a.set_label(&mut out)?;
            a.syscall()
        }),
    );
    guest.vcpu.regs_mut().set(GprName::Rsi, 1 << 28);
    guest.vcpu.regs_mut().set(GprName::Rdx, 0);
    let (control, is_done) = (guest.vcpu.control(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                control.sample();
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        assert_eq!(guest.vcpu.run(), Exit::Hypercall);
        is_done.store(true, Ordering::SeqCst);
    });
    assert_eq!(guest.gpr(GprName::Rsi), 0);
    assert_eq!(followed(&guest), 1);
}

//! Code in a frame that two domains map: what one writes the other runs.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use iced_x86::code_asm::*;
use ring3_engine::{CodeSize, Config, Engine as _, Exit, GprName, GuestMode, Vcpu};
use ring3_machine::Mfn;
use support::{CODE, DATA, FIRST, FUNCTION, Guest, STACK_END, assemble};

/// The frame that holds the function, which is at `DATA`.
const SHARED: Mfn = Mfn(FIRST + (DATA - CODE) / 4096);
/// Where the code of the domain that writes is.
const WRITER: u64 = CODE + 0x9000;

/// A vCPU of another domain that has the same page tables. It stores RAX to `DATA`.
fn neighbour(guest: &Guest) -> Box<dyn Vcpu> {
    let domain = guest.engine.create_domain(&guest.machine).unwrap();
    let mut vcpu = domain.create_vcpu(0, &Config { xcr0: 7 }).unwrap();
    vcpu.set_address_space(GuestMode::Kernel, guest.vcpu.address_space(GuestMode::Kernel));
    vcpu.set_mode(GuestMode::Kernel, CodeSize::Bits64);
    guest.write(
        WRITER,
        &assemble(WRITER, |a| {
            a.mov(rbx, DATA)?;
            a.mov(qword_ptr(rbx), rax)?;
            a.syscall()
        }),
    );
    vcpu
}

fn store(vcpu: &mut dyn Vcpu, value: u32) {
    let regs = vcpu.regs_mut();
    regs.rip = WRITER;
    regs.rflags = 0x202;
    regs.set(GprName::Rsp, STACK_END - 1024);
    regs.set(GprName::Rax, FUNCTION | u64::from(value) << 8);
    assert_eq!(vcpu.run(), Exit::Hypercall);
}

fn call(guest: &mut Guest) -> u32 {
    let code = assemble(CODE, |a| {
        a.mov(rbx, DATA)?;
        a.call(rbx)?;
        a.syscall()
    });
    guest.vcpu.regs_mut().rip = CODE;
    guest.machine.write(Mfn(FIRST), 0, &code).unwrap();
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
    u32::try_from(guest.gpr(GprName::Rax)).unwrap()
}

#[test]
fn test_a_neighbour_that_could_write_before_the_code_was_translated_is_noticed() {
    let mut guest = Guest::new();
    let mut neighbour = neighbour(&guest);
    guest.machine.code().share(SHARED);
    for value in 1..20 {
        // The first store of each pair leaves write access cached, the second uses it.
        store(&mut *neighbour, value);
        assert_eq!(call(&mut guest), value);
        store(&mut *neighbour, value + 1000);
        assert_eq!(call(&mut guest), value + 1000);
    }
}

#[test]
fn test_a_neighbour_that_writes_meanwhile_is_noticed() {
    let mut guest = Guest::new();
    let mut neighbour = neighbour(&guest);
    guest.machine.code().share(SHARED);
    store(&mut *neighbour, 1);
    let (last, is_over) = (AtomicU32::new(1), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for value in 2..20_000u32 {
                store(&mut *neighbour, value);
                last.store(value, Ordering::SeqCst);
            }
            is_over.store(true, Ordering::SeqCst);
        });
        while !is_over.load(Ordering::SeqCst) {
            let before = last.load(Ordering::SeqCst);
            let found = call(&mut guest);
            assert!(found >= before, "{found} was called after {before} had been written");
        }
    });
    assert_eq!(call(&mut guest), 19_999);
}

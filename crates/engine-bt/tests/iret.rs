//! `iretq` and reads of selectors, which ring 3 may execute: kernels serialize the CPU with them.
#![allow(clippy::unwrap_used)]

mod support;

use iced_x86::code_asm::CodeAssembler;
use ring3_engine::{Exit, GprName};
use support::{CODE, Guest, STACK_END};

/// A guest whose stack top holds a frame for `iretq`.
fn with_iret_frame(rip: u64, cs: u64, flags: u64, rsp: u64, ss: u64) -> Guest {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    (regs.cs, regs.ss) = (0xe033, 0xe02b);
    let frame: Vec<u8> = [rip, cs, flags, rsp, ss].iter().flat_map(|word| word.to_le_bytes()).collect();
    guest.write(STACK_END - 64, &frame);
    guest
}

const IRETQ: [u8; 2] = [0x48, 0xcf];
const SYSCALL: [u8; 2] = [0x0f, 0x05];

#[test]
fn test_iretq_to_the_same_segments_returns_without_an_exit() {
    // CF, ZF, OF, DF; the selectors' upper bytes are whatever the stack held.
    let mut guest = with_iret_frame(CODE + 2, 0xdead_e033, 0xc43, STACK_END - 128, 0xdead_0000_e02b);
    guest.vcpu.regs_mut().set(GprName::Rax, 0x1234_5678_9abc_def0);
    assert_eq!(guest.run(&[IRETQ, SYSCALL].concat()), Exit::Hypercall);
    assert_eq!(guest.vcpu.regs().rflags, 0xe43, "IF stays");
    assert_eq!(guest.gpr(GprName::Rsp), STACK_END - 128);
    assert_eq!(guest.gpr(GprName::Rax), 0x1234_5678_9abc_def0);
    assert_eq!(guest.gpr(GprName::Rcx), CODE + 4);
}

#[test]
fn test_iretq_that_changes_more_is_left_to_the_hypervisor() {
    let rsp = STACK_END - 64;
    for (rip, cs, flags, ss) in [
        (CODE + 2, 0x33, 2, 0xe02b),
        (CODE + 2, 0xe033, 2, 0x2b),
        (CODE + 2, 0xe033, 0x102, 0xe02b),
        (CODE + 2, 0xe033, 0x4_0002, 0xe02b),
        (1 << 47, 0xe033, 2, 0xe02b),
    ] {
        let mut guest = with_iret_frame(rip, cs, flags, rsp, ss);
        guest.vcpu.regs_mut().set(GprName::Rax, 5);
        guest.vcpu.regs_mut().rflags = 0x246;
        assert_eq!(guest.run(&IRETQ), Exit::Privileged, "{rip:x} {cs:x} {flags:x} {ss:x}");
        let regs = guest.vcpu.regs();
        assert_eq!((regs.rip, regs.rflags, regs.cs, regs.ss), (CODE, 0x246, 0xe033, 0xe02b));
        assert_eq!((guest.gpr(GprName::Rax), guest.gpr(GprName::Rsp)), (5, rsp));
    }
}

#[test]
fn test_selectors_are_read_without_an_exit() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    (regs.cs, regs.ss, regs.ds, regs.es, regs.fs, regs.gs) = (0xe033, 0xe02b, 1, 2, 3, 4);
    regs.gpr = [u64::MAX; 16];
    let mut code = CodeAssembler::new(64).unwrap();
    {
        use iced_x86::code_asm::registers::{gpr16::*, gpr32::*, gpr64::*, segment::*};
        code.mov(eax, ss).unwrap();
        code.mov(r10, cs).unwrap();
        code.mov(r11d, ds).unwrap();
        code.mov(rbx, es).unwrap();
        code.mov(edx, fs).unwrap();
        code.mov(r9d, gs).unwrap();
        code.mov(r8w, ss).unwrap();
        code.hlt().unwrap();
    }
    let code = code.assemble(CODE).unwrap();
    assert_eq!(guest.run(&code), Exit::Privileged);
    let names = [GprName::Rax, GprName::R10, GprName::R11, GprName::Rbx, GprName::Rdx, GprName::R9, GprName::R8];
    assert_eq!(names.map(|name| guest.gpr(name)), [0xe02b, 0xe033, 1, 2, 3, 4, 0xffff_ffff_ffff_e02b]);
}

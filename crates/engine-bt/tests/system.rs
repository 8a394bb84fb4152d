//! What kernels do with segment registers, their bases and MSR_KERNEL_GS_BASE at each switch between processes.
#![allow(clippy::unwrap_used)]

mod support;

use iced_x86::code_asm::registers::{gpr8::*, gpr16::*, gpr32::*, gpr64::*, segment::*};
use ring3_engine::{CodeSize, Exit, GprName, GuestMode, Segment, SegmentName, vector};
use support::{CODE, Guest, assemble, counter};

const KERNEL_GS_BASE: u64 = 0xc000_0102;
const BASE: u64 = 0xffff_8000_1234_5678;

fn nr_blocks(guest: &Guest) -> u64 {
    counter(guest.domain.as_ref(), "blocks translated")
}

#[test]
fn test_null_selectors_are_loaded_in_translated_code() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    (regs.ds, regs.es, regs.fs, regs.gs) = (0x2b, 0x2b, 0x33, 0x3b);
    (regs.fs_base, regs.gs_base) = (BASE, BASE);
    regs.set(GprName::R11, 0xdead_0002);
    let code = assemble(CODE, |a| {
        a.mov(eax, 0xffff_0003u32)?;
        a.xor(ecx, ecx)?;
        a.stc()?;
        a.mov(fs, eax)?;
        a.mov(gs, r11d)?;
        a.mov(ds, ecx)?;
        a.mov(es, ecx)?;
        a.setc(bl)?;
        a.syscall()
    });
    assert_eq!(guest.run(&code), Exit::Hypercall);
    let regs = guest.vcpu.regs();
    assert_eq!((regs.ds, regs.es, regs.fs, regs.gs), (0, 0, 3, 2));
    assert_eq!((regs.fs_base, regs.gs_base), (0, 0));
    for name in [SegmentName::Ds, SegmentName::Es, SegmentName::Fs, SegmentName::Gs] {
        assert_eq!(regs.segments[name as usize], Segment::NULL, "{name:?}");
    }
    assert_eq!(regs.segments[SegmentName::Ss as usize], Segment::FLAT_DATA);
    assert_eq!(regs.get(GprName::Rbx) & 0xff, 1, "the flags stay");
}

#[test]
fn test_other_selectors_are_left_to_the_hypervisor() {
    let mut guest = Guest::new();
    for selector in [4u64, 8, 0xfffc, 0x33] {
        let regs = guest.vcpu.regs_mut();
        (regs.fs, regs.fs_base, regs.rflags) = (3, BASE, 0x202);
        regs.set(GprName::Rax, selector);
        let code = assemble(CODE, |a| {
            a.stc()?;
            a.mov(fs, eax)?;
            a.syscall()
        });
        assert_eq!(guest.run(&code), Exit::Privileged, "{selector:x}");
        let regs = guest.vcpu.regs();
        assert_eq!((regs.rip, regs.fs, regs.fs_base), (CODE + 1, 3, BASE));
        assert_eq!(regs.rflags, 0x203);
    }
}

#[test]
fn test_selectors_are_read_to_16_bits() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    (regs.fs, regs.gs, regs.es) = (0x1234, 0x5678, 0x9abc);
    regs.gpr = [u64::MAX; 16];
    let code = assemble(CODE, |a| {
        a.mov(ax, fs)?;
        a.mov(r9w, gs)?;
        a.mov(r10w, es)?;
        a.syscall()
    });
    assert_eq!(guest.run(&code), Exit::Hypercall);
    let names = [GprName::Rax, GprName::R9, GprName::R10];
    let wanted = [0xffff_ffff_ffff_1234, 0xffff_ffff_ffff_5678, 0xffff_ffff_ffff_9abc];
    assert_eq!(names.map(|name| guest.gpr(name)), wanted);
    assert_eq!(nr_blocks(&guest), 1, "what is interpreted ends its block");
}

#[test]
fn test_bases_are_written_if_they_are_canonical() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rax, BASE);
    regs.set(GprName::R10, 0x7fff_ffff_f000);
    let code = assemble(CODE, |a| {
        a.stc()?;
        a.wrfsbase(rax)?;
        a.wrgsbase(r10)?;
        a.setc(bl)?;
        a.rdfsbase(r11)?;
        a.mov(rdx, r11)?;
        a.wrfsbase(eax)?;
        a.syscall()
    });
    assert_eq!(guest.run(&code), Exit::Hypercall);
    let regs = guest.vcpu.regs();
    assert_eq!(nr_blocks(&guest), 1);
    assert_eq!((regs.fs_base, regs.gs_base), (BASE & 0xffff_ffff, 0x7fff_ffff_f000));
    assert_eq!((regs.get(GprName::Rdx), regs.get(GprName::Rbx) & 0xff), (BASE, 1));

    guest.vcpu.regs_mut().set(GprName::Rax, 1 << 47);
    let code = assemble(CODE, |a| {
        a.stc()?;
        a.wrgsbase(rax)
    });
    let fault = Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 };
    assert_eq!(guest.run(&code), fault);
    let regs = guest.vcpu.regs();
    assert_eq!((regs.rip, regs.gs_base, regs.rflags & 1), (CODE + 1, 0x7fff_ffff_f000, 1));
}

#[test]
fn test_a_kernel_reads_the_other_gs_base() {
    let code = assemble(CODE, |a| {
        a.cmp(eax, edx)?;
        a.rdmsr()?;
        a.setz(bl)?;
        a.syscall()
    });
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    (regs.kernel_gs_base, regs.gpr) = (BASE, [u64::MAX; 16]);
    regs.set(GprName::Rcx, 0xdead_0000_0000_0000 | KERNEL_GS_BASE);
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!((guest.gpr(GprName::Rdx), guest.gpr(GprName::Rax)), (BASE >> 32, BASE & 0xffff_ffff));
    assert_eq!(guest.gpr(GprName::Rbx) & 0xff, 1);

    for (msr, mode) in [
        (KERNEL_GS_BASE - 1, GuestMode::Kernel),
        (KERNEL_GS_BASE + 1, GuestMode::Kernel),
        (0, GuestMode::Kernel),
        (KERNEL_GS_BASE, GuestMode::User),
    ] {
        let mut guest = Guest::new();
        let space = ring3_engine::AddressSpace { root: ring3_machine::Mfn(1), ..Default::default() };
        guest.vcpu.set_address_space(mode, space);
        guest.vcpu.set_mode(mode, CodeSize::Bits64);
        let regs = guest.vcpu.regs_mut();
        (regs.kernel_gs_base, regs.gpr) = (BASE, [7; 16]);
        regs.set(GprName::Rcx, msr);
        assert_eq!(guest.run(&code), Exit::Privileged, "{msr:x} {mode:?}");
        let regs = guest.vcpu.regs();
        assert_eq!((regs.rip, regs.get(GprName::Rax), regs.get(GprName::Rdx)), (CODE + 2, 7, 7));
        assert_eq!(regs.rflags & 0x40, 0x40, "ZF");
    }
}

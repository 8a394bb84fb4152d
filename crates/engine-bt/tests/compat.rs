//! 32-bit code in a 64-bit guest (compatibility mode): what differs from 64-bit code.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use iced_x86::code_asm::*;
use ring3_engine::{CodeSize, Exit, GprName, GuestMode, vector};
use support::{CODE, DATA, Guest, STACK_END};

const CODE32: u32 = CODE as u32;
const DATA32: u32 = DATA as u32;
const STACK32: u32 = STACK_END as u32 - 64;

fn assemble(f: impl FnOnce(&mut CodeAssembler) -> Result<(), iced_x86::IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(32).unwrap();
    f(&mut a).unwrap();
    a.assemble(CODE).unwrap()
}

/// A guest in user mode with a 32-bit code segment, and garbage in the upper halves.
fn guest32() -> Guest {
    let mut guest = Guest::new();
    let space = guest.vcpu.address_space(GuestMode::Kernel);
    guest.vcpu.set_address_space(GuestMode::User, space);
    guest.vcpu.set_mode(GuestMode::User, CodeSize::Bits32);
    let regs = guest.vcpu.regs_mut();
    for name in [GprName::Rax, GprName::Rcx, GprName::Rdx, GprName::Rbx, GprName::Rsp, GprName::Rbp, GprName::Rsi] {
        regs.set(name, regs.get(name) | 0xdead_beef_0000_0000);
    }
    guest
}

const DONE: Exit = Exit::SoftwareInterrupt { vector: 0x80 };

#[test]
fn test_stack_calls_and_short_forms() {
    const FUNCTION: u32 = CODE32 + 0x800;
    let mut guest = guest32();
    let code = assemble(|a| {
        a.xor(eax, eax)?;
        a.dec(eax)?;
        a.inc(eax)?;
        a.dec(eax)?; // 0xffffffff
        a.inc(ax)?; // 0xffff0000
        a.mov(ebx, 5)?;
        a.push(ebx)?;
        a.push(eax)?;
        a.push(ebp)?;
        a.pop(ecx)?;
        a.pop(edx)?;
        a.pop(esi)?;
        a.push(0x1234_5678)?;
        a.pop(dword_ptr(DATA32))?;
        a.push(dword_ptr(DATA32))?;
        a.pop(edi)?;
        a.mov(ecx, esp)?;
        a.call(u64::from(FUNCTION))?;
        a.mov(dword_ptr(DATA32 + 4), FUNCTION)?;
        a.call(dword_ptr(DATA32 + 4))?;
        a.int(0x80)
    });
    let mut function = CodeAssembler::new(32).unwrap();
    function.enter(16, 1).unwrap();
    function.mov(dword_ptr(ebp - 8), ebx).unwrap();
    function.add(ebx, dword_ptr(ebp - 8)).unwrap();
    function.leave().unwrap();
    function.ret().unwrap();
    guest.write(u64::from(FUNCTION), &function.assemble(u64::from(FUNCTION)).unwrap());
    assert_eq!(guest.run(&code), DONE);
    assert_eq!(guest.vcpu.regs().rip, CODE + code.len() as u64);
    assert_eq!(guest.gpr(GprName::Rax), 0xffff_0000);
    assert_eq!(guest.gpr(GprName::Rdx), 0xffff_0000);
    assert_eq!(guest.gpr(GprName::Rsi), 5);
    assert_eq!(guest.gpr(GprName::Rdi), 0x1234_5678);
    assert_eq!(guest.gpr(GprName::Rbx), 20);
    assert_eq!(guest.gpr(GprName::Rcx), u64::from(STACK32));
    assert_eq!(guest.gpr(GprName::Rsp), u64::from(STACK32));
}

#[test]
fn test_addresses_wrap_at_32_bits() {
    let mut guest = guest32();
    guest.write(DATA, &0x1122_3344u32.to_le_bytes());
    guest.vcpu.regs_mut().gs_base = 0xf000_0000;
    let code = assemble(|a| {
        a.mov(eax, 0xffff_fff0u32)?;
        a.mov(ebx, dword_ptr(eax + (DATA32 + 0x10)))?;
        a.mov(ecx, dword_ptr(eax + eax * 2 + (DATA32 + 0x30)))?;
        a.mov(edx, dword_ptr(DATA32 + 0x1000_0000).gs())?;
        a.mov(al, byte_ptr(DATA32 + 0x1000_0001).gs())?;
        a.lea(esi, dword_ptr(eax + eax))?;
        a.mov(ah, byte_ptr(DATA32 + 2))?;
        a.lea(edi, dword_ptr(DATA32))?;
        a.int(0x80)
    });
    assert_eq!(guest.run(&code), DONE);
    for name in [GprName::Rbx, GprName::Rcx, GprName::Rdx] {
        assert_eq!(guest.gpr(name), 0x1122_3344);
    }
    assert_eq!(guest.gpr(GprName::Rax), 0xffff_2233);
    assert_eq!(guest.gpr(GprName::Rsi), 0xffff_fe66);
    assert_eq!(guest.gpr(GprName::Rdi), DATA);
}

#[test]
fn test_jumps_to_other_pages_and_backwards() {
    let mut guest = guest32();
    // The second page calls back into the first.
    let first = assemble(|a| {
        a.mov(ecx, 3)?;
        a.jmp(u64::from(CODE32) + 0x1010)
    });
    let mut second = CodeAssembler::new(32).unwrap();
    second.inc(eax).unwrap();
    second.call(u64::from(CODE32) + 0x20).unwrap();
    second.loop_(CODE + 0x1010).unwrap();
    second.int(0x80).unwrap();
    guest.write(CODE + 0x1010, &second.assemble(CODE + 0x1010).unwrap());
    guest.write(CODE + 0x20, &[0x43, 0xc3]); // inc ebx; ret
    guest.vcpu.regs_mut().set(GprName::Rax, 0);
    guest.vcpu.regs_mut().set(GprName::Rbx, 0);
    guest.write(CODE, &first);
    guest.vcpu.regs_mut().rip = CODE;
    assert_eq!(guest.vcpu.run(), DONE);
    assert_eq!((guest.gpr(GprName::Rax), guest.gpr(GprName::Rbx)), (3, 3));
}

#[test]
fn test_one_code_size_does_not_run_the_others_blocks() {
    let mut guest = guest32();
    let code = [0x48, 0xff, 0xc0, 0xcd, 0x80]; // 64: inc rax; 32: dec eax, inc eax
    guest.write(CODE, &code);
    let mut results = Vec::new();
    for size in [CodeSize::Bits32, CodeSize::Bits64, CodeSize::Bits32, CodeSize::Bits64] {
        guest.vcpu.set_mode(GuestMode::User, size);
        let regs = guest.vcpu.regs_mut();
        regs.rip = CODE;
        regs.set(GprName::Rax, 0xffff_ffff);
        assert_eq!(guest.vcpu.run(), DONE);
        results.push(guest.gpr(GprName::Rax));
    }
    assert_eq!(results, [0xffff_ffff, 0x1_0000_0000, 0xffff_ffff, 0x1_0000_0000]);
}

#[test]
fn test_pusha_flags_and_segment_pushes() {
    let mut guest = guest32();
    guest.vcpu.regs_mut().gs = 0x63;
    let code = assemble(|a| {
        a.mov(eax, 1)?;
        a.mov(ecx, 2)?;
        a.mov(edx, 3)?;
        a.mov(ebx, 4)?;
        a.mov(ebp, 5)?;
        a.mov(esi, 6)?;
        a.mov(edi, 7)?;
        a.pushad()?;
        a.mov(eax, dword_ptr(esp + 12))?;
        a.mov(dword_ptr(DATA32), eax)?;
        a.xor(eax, eax)?;
        a.mov(edi, eax)?;
        a.popad()?;
        a.stc()?;
        a.std()?;
        a.pushfd()?;
        a.pop(ebx)?;
        a.push(ebx)?;
        a.cld()?;
        a.clc()?;
        a.popfd()?;
        a.pushfd()?;
        a.pop(edx)?;
        a.cld()?;
        a.push(gs)?;
        a.pop(ebp)?;
        a.mov(ecx, gs)?;
        a.int(0x80)
    });
    assert_eq!(guest.run(&code), DONE);
    assert_eq!(guest.read(DATA, 4), STACK32.to_le_bytes(), "pusha stores the old ESP");
    assert_eq!((guest.gpr(GprName::Rax), guest.gpr(GprName::Rdi)), (1, 7));
    assert_eq!(guest.gpr(GprName::Rbx) & 0xc01, 0x401);
    assert_eq!(guest.gpr(GprName::Rdx), guest.gpr(GprName::Rbx));
    assert_eq!((guest.gpr(GprName::Rbp), guest.gpr(GprName::Rcx)), (0x63, 0x63));
    assert_eq!(guest.gpr(GprName::Rsp), u64::from(STACK32));
}

#[test]
fn test_old_instructions() {
    let mut guest = guest32();
    let code = assemble(|a| {
        a.mov(eax, 0x15)?;
        a.add(al, 0x27)?;
        a.daa()?; // 0x42
        a.mov(ebx, eax)?;
        a.sub(al, 0x15)?;
        a.das()?; // 0x27
        a.mov(ecx, eax)?;
        a.mov(al, 0x3f)?;
        a.aam(10)?; // AH 6, AL 3
        a.mov(edx, eax)?;
        a.aad(10)?; // 0x3f
        a.mov(esi, eax)?;
        a.stc()?;
        a.salc()?;
        a.mov(edi, eax)?;
        a.mov(dword_ptr(DATA32), 3)?;
        a.mov(dword_ptr(DATA32 + 4), 9)?;
        a.mov(eax, 9)?;
        a.bound(eax, qword_ptr(DATA32))?;
        a.mov(al, 0x7f)?;
        a.add(al, 1)?;
        a.into()
    });
    assert_eq!(guest.run(&code), Exit::SoftwareInterrupt { vector: vector::OF });
    assert_eq!(guest.vcpu.regs().rip, CODE + code.len() as u64);
    let values = [GprName::Rbx, GprName::Rcx, GprName::Rdx, GprName::Rsi, GprName::Rdi].map(|name| guest.gpr(name));
    assert_eq!(values, [0x42, 0x27, 0x603, 0x3f, 0xff]);
    let out_of_bounds = assemble(|a| {
        a.mov(eax, 10)?;
        a.bound(eax, qword_ptr(DATA32))
    });
    assert_eq!(guest.run(&out_of_bounds), Exit::Exception { vector: vector::BR, error_code: None, cr2: 0 });
    assert_eq!(guest.vcpu.regs().rip, CODE + 5);
    let division = assemble(|a| a.db(&[0xd4, 0])); // aam 0
    assert_eq!(guest.run(&division), Exit::Exception { vector: vector::DE, error_code: None, cr2: 0 });
}

#[test]
fn test_16_bit_addresses_and_operands() {
    let mut guest = guest32();
    // There is memory at CODE only, so 16-bit addresses reach it by a segment base.
    let base = DATA;
    guest.vcpu.regs_mut().fs_base = base;
    guest.write(DATA + 0x10, &[1, 2, 3, 4, 5, 6, 7, 8]);
    let code = assemble(|a| {
        a.mov(ebx, 0xffff_fff8u32)?;
        a.mov(esi, 0x18)?;
        a.db(&[0x64, 0x67, 0x8b, 0x00])?; // mov eax, fs:[bx + si]
        a.db(&[0x64, 0x67, 0x8b, 0x50, 0x04])?; // mov edx, fs:[bx + si + 4]
        a.db(&[0x64, 0x67, 0x8b, 0x2e, 0x11, 0x00])?; // mov ebp, fs:[0x11]
        a.db(&[0x64, 0x67, 0xa0, 0x17, 0x00])?; // mov al, fs:[0x17]
        a.db(&[0x67, 0x8d, 0x78, 0xff])?; // lea edi, [bx + si - 1]
        a.push(ax)?;
        a.push(ax)?;
        a.pop(ecx)?;
        a.int(0x80)
    });
    assert_eq!(guest.run(&code), DONE);
    assert_eq!(guest.gpr(GprName::Rax), 0x0403_0208);
    assert_eq!(guest.gpr(GprName::Rdx), 0x0807_0605);
    assert_eq!(guest.gpr(GprName::Rbp), 0x0504_0302);
    assert_eq!(guest.gpr(GprName::Rdi), 0xf);
    assert_eq!(guest.gpr(GprName::Rcx), 0x0208_0208);
}

#[test]
fn test_counted_jumps() {
    let mut guest = guest32();
    let code = assemble(|a| {
        a.xor(eax, eax)?;
        a.mov(ecx, 0x5_0002)?;
        a.db(&[0x40, 0x67, 0xe2, 0xfc])?; // again: inc eax; loopw again: counts in CX
        a.mov(edx, ecx)?;
        a.xor(ecx, ecx)?;
        a.db(&[0xe3, 0x05])?; // jecxz +5
        a.mov(eax, 99)?;
        a.db(&[0x67, 0xe3, 0x05])?; // jcxz +5
        a.mov(eax, 98)?;
        a.int(0x80)
    });
    assert_eq!(guest.run(&code), DONE);
    assert_eq!((guest.gpr(GprName::Rax), guest.gpr(GprName::Rdx)), (2, 0x5_0000));
}

#[test]
fn test_strings() {
    let mut guest = guest32();
    guest.vcpu.regs_mut().fs_base = 0xffff_f000;
    let code = assemble(|a| {
        a.mov(edi, DATA32)?;
        a.mov(eax, 0x5a5a_5a5a)?;
        a.mov(ecx, 1500)?;
        a.rep().stosd()?;
        a.mov(esi, DATA32 + 0x1000)?;
        a.mov(edi, DATA32 + 0x2001)?;
        a.mov(ecx, 16)?;
        a.db(&[0xf3, 0x64, 0xa4])?; // rep movs byte es:[edi], fs:[esi]
        a.mov(ebx, edi)?;
        a.mov(edi, DATA32)?;
        a.mov(ecx, 10_000)?;
        a.repe().scasb()?;
        a.mov(edx, ecx)?;
        a.int(0x80)
    });
    assert_eq!(guest.run(&code), DONE);
    assert_eq!(guest.gpr(GprName::Rbx), DATA + 0x2011);
    assert_eq!(guest.read(DATA + 0x2000, 18), [&[0u8][..], &[0x5a; 16], &[0]].concat());
    assert_eq!(guest.gpr(GprName::Rdx), 10_000 - 6001);
}

#[test]
fn test_faults_are_precise() {
    let mut guest = guest32();
    guest.map(5, 0);
    let code = assemble(|a| {
        a.mov(ebx, 7)?;
        a.push(ebx)?;
        a.inc(dword_ptr(DATA32 + 0x1004))?;
        a.int(0x80)
    });
    let fault = Exit::Exception { vector: vector::PF, error_code: Some(2), cr2: DATA + 0x1004 };
    assert_eq!(guest.run(&code), fault);
    assert_eq!(guest.vcpu.regs().rip, CODE + 6);
    assert_eq!(guest.gpr(GprName::Rsp), u64::from(STACK32) - 4);
    // A stack at the bottom of the address space wraps to its top.
    guest.vcpu.regs_mut().set(GprName::Rsp, 0);
    let wrapped = Exit::Exception { vector: vector::PF, error_code: Some(2), cr2: 0xffff_fffc };
    assert_eq!(guest.run(&code), wrapped);
    assert_eq!(guest.gpr(GprName::Rsp), 0);
    // A jump past the end wraps to the start.
    guest.vcpu.regs_mut().set(GprName::Rax, 0);
    let jump = assemble(|a| a.jmp(eax));
    assert_eq!(guest.run(&jump), Exit::Exception { vector: vector::PF, error_code: Some(0x10), cr2: 0 });
}

#[test]
fn test_system_calls_and_privileged() {
    let mut guest = guest32();
    let code = assemble(|a| a.syscall());
    assert_eq!(guest.run(&code), Exit::Syscall);
    assert_eq!(guest.gpr(GprName::Rcx), CODE + 2);
    assert_eq!(guest.run(&[0x0f, 0x34]), Exit::Privileged, "sysenter");
    assert_eq!(guest.vcpu.regs().rip, CODE);
    assert_eq!(guest.run(&[0x8e, 0xe8]), Exit::Privileged, "mov gs, eax");
    assert_eq!(guest.run(&[0xea, 0, 0, 0, 0, 0x33, 0]), Exit::Privileged, "jmp far");
    assert_eq!(guest.run(&[0x1f]), Exit::Privileged, "pop ds");
    assert_eq!(guest.run(&[0xc4, 0x03]), Exit::Privileged, "les");
    assert_eq!(guest.run(&[0xcf]), Exit::Privileged, "iret");
}

#[test]
fn test_vector_and_vex_instructions() {
    let mut guest = guest32();
    guest.write(DATA, &2.5f32.to_le_bytes());
    let code = assemble(|a| {
        a.movss(xmm1, dword_ptr(DATA32))?;
        a.addss(xmm1, xmm1)?;
        a.cvttss2si(eax, xmm1)?;
        a.fld(dword_ptr(DATA32))?;
        a.db(&[0xd8, 0xc0])?; // fadd st0, st0
        a.fistp(dword_ptr(DATA32 + 8))?;
        a.mov(ebx, 0xf0f0)?;
        a.mov(ecx, 0xff00)?;
        // andn edx, ebx, ecx with VEX.W set, which 32-bit mode ignores.
        a.db(&[0xc4, 0xe2, 0xe0, 0xf2, 0xd1])?;
        a.int(0x80)
    });
    assert_eq!(guest.run(&code), DONE);
    assert_eq!(guest.gpr(GprName::Rax), 5);
    assert_eq!(guest.read(DATA + 8, 4), 5u32.to_le_bytes());
    assert_eq!(guest.gpr(GprName::Rdx), !0xf0f0 & 0xff00);
}

#[test]
fn test_single_steps_and_code_that_changes() {
    let mut guest = guest32();
    let code = assemble(|a| {
        let mut patched = a.create_label();
        a.mov(byte_ptr(CODE32 + 8), 9)?; // the immediate of the next instruction
        a.set_label(&mut patched)?;
        a.mov(ecx, 1)?;
        a.push(ecx)?;
        a.int(0x80)
    });
    assert_eq!(guest.run(&code), DONE);
    assert_eq!(guest.gpr(GprName::Rcx), 9);
    guest.vcpu.regs_mut().rip = CODE + 12;
    assert_eq!(guest.vcpu.step(None), Exit::Stepped);
    assert_eq!(guest.vcpu.regs().rip, CODE + 13);
    assert_eq!(guest.gpr(GprName::Rsp), u64::from(STACK32) - 8);
    assert_eq!(guest.read(u64::from(STACK32) - 8, 4), 9u32.to_le_bytes());
}

/// The bit index moves a 16-bit address too, which wraps at 64 KiB.
#[test]
fn test_a_bit_string_at_a_16_bit_address_wraps() {
    let mut guest = guest32();
    guest.vcpu.regs_mut().set(GprName::Rax, 0x1000_5cd0);
    // bts [0xb1c7], eax with a 16-bit address
    let exit = guest.run(&[0x67, 0x0f, 0xab, 0x06, 0xc7, 0xb1]);
    assert_eq!(exit, Exit::Exception { vector: vector::PF, error_code: Some(2), cr2: 0xbd5f });
}

#[test]
fn test_elements_of_a_masked_move_wrap_by_the_address_size() {
    for to in [ptr(ecx), ptr(di)] {
        let mut guest = guest32();
        guest.vcpu.regs_mut().set(GprName::Rcx, 0xffff_ffff);
        guest.vcpu.regs_mut().set(GprName::Rdi, 0xffff);
        let code = assemble(|a| {
            a.vpcmpeqd(xmm1, xmm1, xmm1)?;
            a.vpslldq(xmm6, xmm1, 12)?; // the last element alone
            a.vmaskmovps(to, xmm6, xmm5)?;
            a.int(0x80)
        });
        assert_eq!(guest.run(&code), Exit::Exception { vector: vector::PF, error_code: Some(2), cr2: 0xb });
    }
}

#[test]
fn test_wide_extracts_and_inserts_are_what_the_host_takes_them_for() {
    let leaf = std::arch::x86_64::__cpuid(0);
    let is_amd = [*b"Auth", *b"Hygo"].contains(&leaf.ebx.to_le_bytes());
    // vpextrd eax, xmm0, 0 and vpinsrd xmm0, xmm0, eax, 0 with VEX.W
    for opcode in [0x16, 0x22] {
        let exit = guest32().run(&[0xc4, 0xe3, 0xf9, opcode, 0xc0, 0, 0xcd, 0x80]);
        let undefined = Exit::Exception { vector: vector::UD, error_code: None, cr2: 0 };
        assert_eq!(exit, if is_amd { undefined } else { DONE }, "{opcode:#x}");
    }
}

//! The engine on small programs: each property of the run loop once.
#![allow(clippy::unwrap_used)]

mod support;

use iced_x86::code_asm::*;
use ring3_engine::{Engine, Exit, GprName, Requests, dr6, pte, vector};
use support::{CODE, DATA, FIRST, Guest, STACK_END, assemble};

#[test]
fn test_registers_memory_and_hypercall() {
    let mut guest = Guest::new();
    let code = assemble(CODE, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(rbx, DATA)?;
        a.mov(qword_ptr(rbx + 8), rax)?;
        a.mov(r10, qword_ptr(rbx + 8))?;
        a.lea(r11, qword_ptr(r10 + rbx * 2 + 5))?;
        a.push(r11)?;
        a.pop(r9)?;
        a.mov(r8, r10)?;
        a.mov(r12, r11)?;
        a.syscall()
    });
    let exit = guest.run(&code);
    assert_eq!(exit, Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::R8), 0x1122_3344_5566_7788);
    let expected = 0x1122_3344_5566_7788u64.wrapping_add(DATA * 2 + 5);
    assert_eq!(guest.gpr(GprName::R9), expected);
    assert_eq!(guest.gpr(GprName::R12), expected);
    assert_eq!(guest.gpr(GprName::Rcx), CODE + code.len() as u64);
    assert_eq!(guest.vcpu.regs().rip, CODE + code.len() as u64);
    assert_eq!(guest.read(DATA + 8, 8), 0x1122_3344_5566_7788u64.to_le_bytes());
    assert_eq!(guest.gpr(GprName::Rsp), STACK_END - 64);
}

#[test]
fn test_loops_calls_and_flags() {
    let mut guest = Guest::new();
    let code = assemble(CODE, |a| {
        let mut again = a.create_label();
        let mut function = a.create_label();
        let mut end = a.create_label();
        a.xor(eax, eax)?;
        a.mov(ecx, 1000)?;
        a.set_label(&mut again)?;
        a.call(function)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.jmp(end)?;
        a.set_label(&mut function)?;
        a.push(rbx)?;
        a.push(rbp)?;
        a.add(rax, rcx)?;
        a.pop(rbp)?;
        a.pop(rbx)?;
        a.ret()?;
        a.set_label(&mut end)?;
        a.stc()?;
        a.mov(rdx, qword_ptr(DATA))?;
        a.setc(r10b)?;
        a.adc(eax, 0)?;
        a.syscall()
    });
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rax), 500_501);
    assert_eq!(guest.gpr(GprName::R10) & 0xff, 1);
}

#[test]
fn test_many_pauses_are_told_with_flags_and_registers_in_place() {
    let mut guest = Guest::new();
    let code = assemble(CODE, |a| {
        let mut again = a.create_label();
        a.mov(ecx, 1000)?;
        a.xor(eax, eax)?;
        a.set_label(&mut again)?;
        a.stc()?;
        a.pause()?;
        a.adc(eax, 0)?;
        a.dec(ecx)?;
        a.pause()?;
        a.jnz(again)?;
        a.syscall()
    });
    let mut exit = guest.run(&code);
    let mut nr_told = 0;
    while exit == Exit::Spinning {
        nr_told += 1;
        exit = guest.vcpu.run();
    }
    assert_eq!(exit, Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rax), 1000);
    assert!((2..=200).contains(&nr_told), "{nr_told}");
}

#[test]
fn test_page_faults_are_precise() {
    let mut guest = Guest::new();
    guest.map(5, 0);
    guest.map(6, (FIRST + 6) << 12 | pte::PRESENT | pte::USER);
    let code = assemble(CODE, |a| {
        a.mov(rbx, DATA + 0x1008)?;
        a.mov(r11, 5u64)?;
        a.add(qword_ptr(rbx), r11)?;
        a.syscall()
    });
    let fault = |error, at| Exit::Exception { vector: vector::PF, error_code: Some(error), cr2: at };
    assert_eq!(guest.run(&code), fault(2, DATA + 0x1008));
    let at = guest.vcpu.regs().rip;
    assert_eq!(at, CODE + code.len() as u64 - 5);
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA + 0x2000);
    assert_eq!(guest.vcpu.run(), fault(3, DATA + 0x2000));
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA + 0xffc);
    assert_eq!(guest.vcpu.run(), fault(2, DATA + 0x1000), "the second page of an operand that crosses");
    guest.vcpu.regs_mut().set(GprName::Rbx, 1 << 60);
    assert_eq!(guest.vcpu.run(), Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 });
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA + 0x10);
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
    assert_eq!(guest.read(DATA + 0x10, 1), [5]);
}

#[test]
fn test_stores_across_pages() {
    let mut guest = Guest::new();
    let code = assemble(CODE, |a| {
        a.mov(rbx, DATA + 0xffc)?;
        a.mov(rax, 0x8877_6655_4433_2211u64)?;
        a.mov(qword_ptr(rbx), rax)?;
        a.mov(rdx, qword_ptr(rbx))?;
        a.lock().xadd(qword_ptr(rbx), rdx)?;
        a.movdqu(xmm1, xmmword_ptr(rbx - 4))?;
        a.movdqu(xmmword_ptr(rbx - 5), xmm1)?;
        a.mov(rsp, DATA + 0x1004)?;
        a.push(rax)?;
        a.push(rbx)?;
        a.pop(rdi)?;
        a.pop(rsi)?;
        a.syscall()
    });
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rdx), 0x8877_6655_4433_2211);
    assert_eq!(guest.gpr(GprName::Rsi), 0x8877_6655_4433_2211);
    assert_eq!(guest.gpr(GprName::Rdi), DATA + 0xffc);
}

#[test]
fn test_self_modifying_code_takes_effect_at_the_next_instruction() {
    let mut guest = Guest::new();
    let code = assemble(CODE, |a| {
        let mut patched = a.create_label();
        let mut again = a.create_label();
        a.xor(ecx, ecx)?;
        a.set_label(&mut again)?;
        a.lea(rbx, qword_ptr(patched))?;
        a.mov(byte_ptr(rbx + 1), 7)?;
        a.set_label(&mut patched)?;
        a.mov(eax, 1)?;
        a.inc(ecx)?;
        a.cmp(ecx, 5)?;
        a.jne(again)?;
        a.syscall()
    });
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rax), 7);
}

#[test]
fn test_faults_of_the_cpu_become_exceptions() {
    let mut guest = Guest::new();
    let exception = |vector, error_code| Exit::Exception { vector, error_code, cr2: 0 };
    let div = assemble(CODE, |a| {
        a.xor(ecx, ecx)?;
        a.mov(eax, 5)?;
        a.div(ecx)
    });
    assert_eq!(guest.run(&div), exception(vector::DE, None));
    assert_eq!(guest.vcpu.regs().rip, CODE + 7);
    assert_eq!(guest.gpr(GprName::Rax), 5);
    assert_eq!(guest.run(&[0x0f, 0x0b]), exception(vector::UD, None));
    let misaligned = assemble(CODE, |a| {
        a.mov(rbx, DATA + 1)?;
        a.movaps(xmm0, xmmword_ptr(rbx))
    });
    assert_eq!(guest.run(&misaligned), exception(vector::GP, Some(0)));
    assert_eq!(guest.vcpu.regs().rip, CODE + 10);
    assert_eq!(guest.run(&[0xcc]), Exit::SoftwareInterrupt { vector: 3 });
    assert_eq!(guest.run(&[0xf4]), Exit::Privileged);
    assert_eq!(guest.vcpu.regs().rip, CODE);
    // A 512-bit instruction: hidden by policy.
    assert_eq!(guest.run(&[0x62, 0xf1, 0x7c, 0x48, 0x58, 0xc1]), exception(vector::UD, None));
}

#[test]
fn test_strings_and_direction() {
    let mut guest = Guest::new();
    let code = assemble(CODE, |a| {
        a.mov(rdi, DATA)?;
        a.mov(eax, 0x5a)?;
        a.mov(ecx, 6000)?;
        a.rep().stosb()?;
        a.mov(rsi, DATA)?;
        a.mov(rdi, DATA + 0x2000)?;
        a.mov(ecx, 6000)?;
        a.rep().movsb()?;
        a.mov(rdi, DATA + 0x2000)?;
        a.mov(ecx, 10_000)?;
        a.repe().scasb()?;
        a.mov(r8, rcx)?;
        a.std()?;
        a.pushfq()?;
        a.pop(rbx)?;
        a.cld()?;
        a.syscall()
    });
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rdi), DATA + 0x2000 + 6001);
    assert_eq!(guest.gpr(GprName::R8), 10_000 - 6001);
    assert_eq!(guest.gpr(GprName::Rbx) & 0xe00, 0x600);
}

#[test]
fn test_requests_interrupt_a_loop() {
    let mut guest = Guest::new();
    let control = guest.vcpu.control();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        control.request_and_wait(Requests::FLUSH_TLB);
        std::thread::sleep(std::time::Duration::from_millis(5));
        control.request(Requests::EVENT);
    });
    assert_eq!(guest.run(&[0xeb, 0xfe]), Exit::Interrupted(Requests::EVENT));
    assert_eq!(guest.vcpu.regs().rip, CODE);
    thread.join().unwrap();
    assert_eq!(guest.engine.name(), "bt");
}

#[test]
fn test_instructions_across_pages() {
    let mut guest = Guest::new();
    // mov eax, 0x12345678 with three bytes on the next page, then syscall.
    guest.write(CODE + 0xffe, &[0xb8, 0x78]);
    guest.write(CODE + 0x1000, &[0x56, 0x34, 0x12, 0x0f, 0x05]);
    guest.vcpu.regs_mut().rip = CODE + 0xffe;
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rax), 0x1234_5678);
    guest.write(CODE + 0x1000, &[0x57]);
    guest.vcpu.regs_mut().rip = CODE + 0xffe;
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rax), 0x1234_5778);
    guest.map(1, 0);
    guest.vcpu.regs_mut().rip = CODE + 0xffe;
    let fault = Exit::Exception { vector: vector::PF, error_code: Some(0x10), cr2: CODE + 0x1000 };
    assert_eq!(guest.vcpu.run(), fault);
    assert_eq!(guest.vcpu.regs().rip, CODE + 0xffe);
}

#[test]
fn test_single_step_traps_after_each_instruction() {
    let mut guest = Guest::new();
    let code = assemble(CODE, |a| {
        a.pushfq()?;
        a.or(qword_ptr(rsp), 0x100)?;
        a.popfq()?;
        a.nop()?;
        a.mov(eax, 7)?;
        a.syscall()
    });
    let trap = Exit::Debug { hits: dr6::BS };
    assert_eq!(guest.run(&code), trap);
    let after_nop = CODE + code.len() as u64 - 7;
    assert_eq!(guest.vcpu.regs().rip, after_nop, "popf itself does not trap");
    assert_eq!(guest.vcpu.run(), trap);
    assert_eq!(guest.vcpu.regs().rip, after_nop + 5);
    assert_eq!(guest.gpr(GprName::Rax), 7);
    assert_eq!(guest.vcpu.run(), Exit::Hypercall);
}

//! Debug exceptions, #AC and #NM: what makes the vCPU look at each instruction.
#![allow(clippy::unwrap_used)]

mod support;

use ring3_engine::{Breakpoint, BreakpointKind, Exit, Flush, GprName, dr6, rflags, vector};
use support::{CODE, DATA, Guest};

const TRAP: Exit = Exit::SoftwareInterrupt { vector: 3 };

fn hit(bits: u64) -> Exit {
    Exit::Debug { hits: bits }
}

fn point(va: u64, len: u8, kind: BreakpointKind) -> Option<Breakpoint> {
    Some(Breakpoint { va, len, kind })
}

/// Runs on from the present RIP.
fn resume(guest: &mut Guest) -> Exit {
    guest.vcpu.run()
}

/// again: inc eax; nop; dec ecx; jnz again; int3
const LOOP: [u8; 8] = [0xff, 0xc0, 0x90, 0xff, 0xc9, 0x75, 0xf9, 0xcc];

#[test]
fn test_execution_breakpoint_faults_before_the_instruction() {
    let mut guest = Guest::new();
    guest.vcpu.regs_mut().set(GprName::Rcx, 3);
    assert_eq!(guest.run(&LOOP), TRAP, "blocks are there before the breakpoint is");
    guest.vcpu.set_breakpoints(&[None, point(CODE + 2, 1, BreakpointKind::Execute), None, None]);
    let regs = guest.vcpu.regs_mut();
    (regs.rip, regs.rflags) = (CODE, 2);
    regs.set(GprName::Rax, 0);
    regs.set(GprName::Rcx, 3);
    for turn in 1..=3 {
        assert_eq!(resume(&mut guest), hit(dr6::B0 << 1));
        assert_eq!(guest.vcpu.regs().rip, CODE + 2);
        assert_eq!(guest.gpr(GprName::Rax), turn);
        assert_eq!(resume(&mut guest), hit(dr6::B0 << 1), "without RF it is met again");
        guest.vcpu.regs_mut().rflags |= rflags::RF;
    }
    assert_eq!(resume(&mut guest), TRAP);
    assert_eq!(guest.vcpu.regs().rflags & rflags::RF, 0, "RF serves one instruction");
    guest.vcpu.set_breakpoints(&[None; 4]);
    guest.vcpu.regs_mut().set(GprName::Rcx, 3);
    assert_eq!(guest.run(&LOOP), TRAP);
}

#[test]
fn test_data_breakpoints_trap_after_the_instruction() {
    use BreakpointKind::{Access, Write};
    let mut guest = Guest::new();
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA);
    // mov eax, [rbx+8]; mov [rbx+6], rax; mov [rbx+16], rax; int3
    let code = [0x8b, 0x43, 8, 0x48, 0x89, 0x43, 6, 0x48, 0x89, 0x43, 16, 0xcc];
    assert_eq!(guest.run(&code), TRAP, "the page is in the TLB before it is watched");
    guest.vcpu.set_breakpoints(&[point(DATA + 8, 4, Write), None, None, point(DATA + 10, 2, Access)]);
    guest.vcpu.regs_mut().rip = CODE;
    assert_eq!(resume(&mut guest), hit(dr6::B0 << 3));
    assert_eq!(guest.vcpu.regs().rip, CODE + 3);
    assert_eq!(resume(&mut guest), hit(dr6::B0 | dr6::B0 << 3), "one of its bytes is enough");
    assert_eq!(guest.vcpu.regs().rip, CODE + 7);
    assert_eq!(resume(&mut guest), TRAP);
}

#[test]
fn test_data_breakpoints_see_every_kind_of_access() {
    let cases: [(&[u8], u64, &str); 12] = [
        (&[0x50], 8, "push rax"),
        (&[0xe8, 0, 0, 0, 0], 8, "call"),
        (&[0x0f, 0x11, 0x03], 0, "movups [rbx], xmm0"),
        (&[0xf0, 0xff, 0x03], 0, "lock inc dword [rbx]"),
        (&[0x0f, 0xae, 0x03], 0, "fxsave [rbx]"),
        (&[0xaa], 0, "stosb"),
        (&[0x0f, 0xc7, 0x0b], 0, "cmpxchg8b [rbx]"),
        (&[0xdd, 0x33], 0, "fnsave [rbx]"),
        (&[0x0f, 0xab, 0x03], 0, "bts [rbx], eax"),
        (&[0xc8, 0, 0, 0], 8, "enter 0, 0"),
        (&[0x8c, 0xdb], 1, "mov ebx, ds does not"),
        (&[0x8c, 0x1b], 0, "mov [rbx], ds"),
    ];
    for (code, at, what) in cases {
        let mut guest = Guest::new();
        let regs = guest.vcpu.regs_mut();
        for name in [GprName::Rbx, GprName::Rdi] {
            regs.set(name, DATA);
        }
        regs.set(GprName::Rax, 0);
        regs.set(GprName::Rsp, DATA + 0x1008);
        let (va, expected) = match at {
            8 => (DATA + 0x1000, hit(dr6::B0)),
            0 => (DATA, hit(dr6::B0)),
            _ => (DATA, TRAP),
        };
        guest.vcpu.set_breakpoints(&[point(va, 1, BreakpointKind::Write), None, None, None]);
        let mut bytes = code.to_vec();
        bytes.push(0xcc);
        assert_eq!(guest.run(&bytes), expected, "{what}");
        assert_eq!(guest.vcpu.regs().rip, CODE + (code.len() + usize::from(expected == TRAP)) as u64, "{what}");
    }
}

#[test]
fn test_repeated_string_instruction_traps_after_the_element() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rsi, DATA);
    regs.set(GprName::Rdi, DATA + 0x1ff0);
    regs.set(GprName::Rcx, 100);
    guest.vcpu.set_breakpoints(&[None, None, point(DATA + 0x2004, 4, BreakpointKind::Write), None]);
    // rep movsd; int3
    assert_eq!(guest.run(&[0xf3, 0xa5, 0xcc]), hit(dr6::B0 << 2));
    assert_eq!(guest.gpr(GprName::Rcx), 94);
    assert_eq!(guest.vcpu.regs().rip, CODE);
    assert_eq!(resume(&mut guest), TRAP);
    assert_eq!(guest.gpr(GprName::Rcx), 0);
}

#[test]
fn test_faulting_instruction_hits_nothing() {
    let mut guest = Guest::new();
    guest.map(6, 0);
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rsi, DATA);
    regs.set(GprName::Rdi, DATA + 0x2000);
    guest.vcpu.set_breakpoints(&[point(DATA, 1, BreakpointKind::Access), None, None, None]);
    // movsb
    let fault = Exit::Exception { vector: vector::PF, error_code: Some(2), cr2: DATA + 0x2000 };
    assert_eq!(guest.run(&[0xa4]), fault);
    guest.vcpu.regs_mut().set(GprName::Rdi, DATA + 0x1000);
    assert_eq!(resume(&mut guest), hit(dr6::B0));
}

#[test]
fn test_single_step_and_breakpoint_at_once() {
    let mut guest = Guest::new();
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA);
    guest.vcpu.regs_mut().rflags |= rflags::TF;
    guest.vcpu.set_breakpoints(&[point(DATA, 1, BreakpointKind::Write), None, None, None]);
    // mov byte [rbx], 1; nop
    assert_eq!(guest.run(&[0xc6, 0x03, 1, 0x90]), hit(dr6::B0 | dr6::BS));
    assert_eq!(resume(&mut guest), hit(dr6::BS));
}

#[test]
fn test_single_step_through_loops_and_strings() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    regs.rflags |= rflags::TF;
    regs.set(GprName::Rcx, 2);
    regs.set(GprName::Rdi, DATA);
    // again: loop again; rep stosb; call over; over: ret
    let code = [0xe2, 0xfe, 0xb1, 2, 0xf3, 0xaa, 0xe8, 0, 0, 0, 0, 0xc3];
    let expected = [CODE, CODE + 2, CODE + 4, CODE + 4, CODE + 6, CODE + 11, CODE + 11];
    guest.write(CODE, &code);
    guest.vcpu.regs_mut().rip = CODE;
    for (n, rip) in expected.into_iter().enumerate() {
        assert_eq!(resume(&mut guest), hit(dr6::BS), "step {n}");
        assert_eq!(guest.vcpu.regs().rip, rip, "step {n}");
    }
}

#[test]
fn test_icebp_is_a_trap() {
    let mut guest = Guest::new();
    assert_eq!(guest.run(&[0xf1]), hit(0));
    assert_eq!(guest.vcpu.regs().rip, CODE + 1);
}

#[test]
fn test_alignment_is_checked_while_ac_is_set() {
    let mut guest = Guest::new();
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA);
    // mov eax, [rbx+1]; pushfq; or dword [rsp], 0x40000; popfq; mov eax, [rbx+4]; mov eax, [rbx+1]; int3
    let code = [0x8b, 0x43, 1, 0x9c, 0x81, 0x0c, 0x24, 0, 0, 4, 0, 0x9d, 0x8b, 0x43, 4, 0x8b, 0x43, 1, 0xcc];
    let fault = Exit::Exception { vector: vector::AC, error_code: Some(0), cr2: 0 };
    assert_eq!(guest.run(&code), fault);
    assert_eq!(guest.vcpu.regs().rip, CODE + 15);
    guest.vcpu.regs_mut().rflags &= !rflags::AC;
    assert_eq!(resume(&mut guest), TRAP);
}

#[test]
fn test_fpu_instructions_raise_nm_while_the_task_is_switched() {
    let mut guest = Guest::new();
    // inc eax; movaps xmm0, xmm1; int3
    let code = [0xff, 0xc0, 0x0f, 0x28, 0xc1, 0xcc];
    assert_eq!(guest.run(&code), TRAP);
    guest.vcpu.set_task_switched(true);
    let fault = Exit::Exception { vector: vector::NM, error_code: None, cr2: 0 };
    for bytes in [&code[..], &[0xff, 0xc0, 0xd9, 0xe8], &[0xff, 0xc0, 0x0f, 0xae, 0x03], &[0xff, 0xc0, 0x9b]] {
        assert_eq!(guest.run(bytes), fault);
        assert_eq!(guest.vcpu.regs().rip, CODE + 2);
    }
    assert_eq!(guest.run(&[0xff, 0xc0, 0xcc]), TRAP);
    guest.vcpu.set_task_switched(false);
    assert_eq!(guest.run(&code), TRAP);
    guest.vcpu.flush(Flush::All);
}

//! String instructions on pages that the TLB knows already, where they run in translated code, against a model.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use ring3_engine::{Exit, GprName};
use ring3_machine::Mfn;
use support::{CODE, DATA, Guest};

/// Bytes of the four data pages.
const LEN: usize = 4 * 4096;
const HYPERCALL: [u8; 2] = [0x0f, 0x05];

struct Run {
    /// `movs` as against `stos`.
    moves: bool,
    size: usize,
    /// `None`: not repeated.
    count: Option<usize>,
    from: usize,
    to: usize,
    backward: bool,
}

fn instruction(run: &Run) -> Vec<u8> {
    let mut code = Vec::new();
    if run.count.is_some() {
        code.push(0xf3);
    }
    match run.size {
        2 => code.push(0x66),
        8 => code.push(0x48),
        _ => {}
    }
    code.push(if run.moves { 0xa4 } else { 0xaa } | u8::from(run.size > 1));
    code
}

/// What the CPU does, element by element.
fn model(run: &Run, memory: &mut [u8], rax: u64) -> (u64, u64) {
    let (mut from, mut to) = (run.from as u64, run.to as u64);
    let step = if run.backward { (run.size as u64).wrapping_neg() } else { run.size as u64 };
    for _ in 0..run.count.unwrap_or(1) {
        for n in 0..run.size {
            let byte = if run.moves { memory[from as usize + n] } else { rax.to_le_bytes()[n] };
            // Elements are read whole before they are written.
            if n == 0 && run.moves {
                let element = memory[from as usize..from as usize + run.size].to_vec();
                memory[to as usize..to as usize + run.size].copy_from_slice(&element);
                break;
            }
            memory[to as usize + n] = byte;
        }
        to = to.wrapping_add(step);
        if run.moves {
            from = from.wrapping_add(step);
        }
    }
    (from, to)
}

fn check(guest: &mut Guest, run: &Run) {
    let rax = 0x1122_3344_5566_7788;
    let mut memory: Vec<u8> = (0..LEN).map(|n| (n * 7 + n / 256) as u8).collect();
    for page in 0..4 {
        guest.write(DATA + page * 4096, &memory[page as usize * 4096..][..4096]);
    }
    // A store to each page first, so that the TLB has it for writing.
    let mut code = Vec::new();
    for page in 0..4u32 {
        code.extend([0x80, 0x0c, 0x25]); // or byte [page], 0
        code.extend((DATA as u32 + page * 4096).to_le_bytes());
        code.push(0);
    }
    code.push(if run.backward { 0xfd } else { 0xfc });
    code.push(0xf9); // stc
    code.extend(instruction(run));
    code.extend([0x0f, 0x92, 0xc3]); // setc bl
    code.extend(HYPERCALL);
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rax, rax);
    regs.set(GprName::Rcx, run.count.unwrap_or(99) as u64);
    regs.set(GprName::Rsi, DATA + run.from as u64);
    regs.set(GprName::Rdi, DATA + run.to as u64);
    regs.set(GprName::Rbx, 0);
    assert_eq!(guest.run(&code), Exit::Hypercall);
    let (from, to) = model(run, &mut memory, rax);
    let what = format!("{} of {} bytes, count {:?}", if run.moves { "movs" } else { "stos" }, run.size, run.count);
    let what = format!("{what}, {:#x} to {:#x}, backward {}", run.from, run.to, run.backward);
    assert_eq!(guest.gpr(GprName::Rsi), DATA + from, "rsi: {what}");
    assert_eq!(guest.gpr(GprName::Rdi), DATA + to, "rdi: {what}");
    assert_eq!(guest.gpr(GprName::Rbx), 1, "carry: {what}");
    assert_eq!(guest.gpr(GprName::Rax), rax, "rax: {what}");
    for page in 0..4 {
        let bytes = guest.read(DATA + page * 4096, 4096);
        let difference = (0..4096).find(|&n| bytes[n] != memory[page as usize * 4096 + n]);
        assert_eq!(difference, None, "page {page}: {what}");
    }
}

#[test]
fn test_strings_within_and_across_pages() {
    let mut guest = Guest::new();
    for moves in [false, true] {
        for size in [1, 2, 4, 8] {
            let whole = 4096 / size;
            for count in [None, Some(0), Some(1), Some(3), Some(whole - 1), Some(whole), Some(whole + 1)] {
                // Starts and ends of pages, odd addresses, overlaps both ways, the same place.
                for (from, to) in [
                    (0, 4096),
                    (4096, 0),
                    (5, 4103),
                    (4096 - size, 8192 - size),
                    (4096 - 1, 4096),
                    (8, 8 + size),
                    (8, 9),
                    (9, 8),
                    (0, 0),
                ] {
                    check(&mut guest, &Run { moves, size, count, from, to, backward: false });
                }
            }
            let run = Run { moves, size, count: Some(40), from: 4200, to: 8300, backward: true };
            check(&mut guest, &run);
        }
    }
}

#[test]
fn test_pages_that_compete_in_the_tlb() {
    // 16 MiB above, where entries of the TLB are shared, the same pages appear again.
    const ABOVE: u64 = 16 << 20;
    let table = ring3_engine::pte::PRESENT | ring3_engine::pte::RW | ring3_engine::pte::USER;
    for (from, to) in [(DATA, DATA + 4096), (DATA + ABOVE, DATA + 4096), (DATA, DATA + ABOVE + 4096)] {
        for len in [0u64, 1, 4095, 4096, 4097] {
            let mut guest = Guest::new();
            let slot = ((CODE + ABOVE) >> 21 & 511) * 8;
            guest.machine.write(Mfn(3), slot as usize, &(4 << 12 | table).to_le_bytes()).unwrap();
            let bytes: Vec<u8> = (0..8192u64).map(|n| (n * 13 + 1) as u8).collect();
            guest.write(DATA, &bytes[..4096]);
            guest.write(DATA + 4096, &[0; 4096]);
            guest.write(DATA + 8192, &[0; 4096]);
            let mut code = Vec::new();
            for page in [from, to, DATA + ABOVE, DATA + ABOVE + 4096, DATA, DATA + 4096] {
                code.extend([0x80, 0x0c, 0x25]); // or byte [page], 0
                code.extend((page as u32).to_le_bytes());
                code.push(0);
            }
            code.extend([0xf3, 0xa4]);
            code.extend(HYPERCALL);
            let regs = guest.vcpu.regs_mut();
            regs.set(GprName::Rsi, from);
            regs.set(GprName::Rdi, to);
            regs.set(GprName::Rcx, len);
            assert_eq!(guest.run(&code), Exit::Hypercall);
            let done = usize::try_from(len.min(4096)).unwrap();
            let expected: Vec<u8> = (0..4096).map(|n| if n < done { bytes[n] } else { 0 }).collect();
            assert_eq!(guest.read(DATA + 4096, 4096), expected, "{from:#x} to {to:#x}, {len} bytes");
            // The 4097th byte is the first that was copied.
            assert_eq!(guest.read(DATA + 8192, 1)[0], if len > 4096 { bytes[0] } else { 0 });
            assert_eq!((guest.gpr(GprName::Rsi), guest.gpr(GprName::Rdi)), (from + len, to + len));
        }
    }
}

#[test]
fn test_aliased_pages_overlap_as_one() {
    // Two linear pages show one frame: what is copied ahead is read again.
    let mut guest = Guest::new();
    let frame = (support::FIRST + 4) << 12 | ring3_engine::pte::PRESENT | ring3_engine::pte::RW;
    guest.map(5, frame | ring3_engine::pte::USER);
    guest.write(DATA, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let mut code = vec![0x80, 0x0e, 0, 0x80, 0x0f, 0]; // or byte [rsi], 0; or byte [rdi], 0
    code.extend([0xf3, 0xa4]);
    code.extend(HYPERCALL);
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rsi, DATA);
    regs.set(GprName::Rdi, DATA + 4096 + 3);
    regs.set(GprName::Rcx, 6);
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.read(DATA, 10), [1, 2, 3, 1, 2, 3, 1, 2, 3, 10]);
}

#[test]
fn test_a_string_stored_over_code_takes_effect() {
    let mut guest = Guest::new();
    // The next instruction is written by this one: `mov bl, 1` becomes `mov bl, 0x5a`.
    let mut code = vec![0xb9, 1, 0, 0, 0, 0xb0, 0x5a, 0xf3, 0xaa, 0xb3, 1];
    code.extend(HYPERCALL);
    guest.vcpu.regs_mut().set(GprName::Rdi, CODE + 10);
    assert_eq!(guest.run(&code), Exit::Hypercall);
    assert_eq!(guest.gpr(GprName::Rbx) & 0xff, 0x5a);
}

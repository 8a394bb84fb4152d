//! What one guest leaves in the CPU is not another's, and no guest reaches memory that is not its own.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use iced_x86::code_asm::*;
use iced_x86::{Code, Encoder, Instruction, OpCodeOperandKind as O, OpKind, Register};
use ring3_engine::{CodeSize, Exit, GprName, GuestMode, Requests, pte};
use ring3_engine_bt::{Kind, classify};
use ring3_machine::Mfn;
use support::{CODE, DATA, FIRST, Guest, NR_PAGES, assemble};

#[test]
fn test_x87_registers_are_not_seen_by_the_next_guest() {
    let (mut one, mut other) = (Guest::new(), Guest::new());
    let secret = assemble(CODE, |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.movq(mm0, rax)?;
        a.emms()?;
        a.syscall()
    });
    let read = assemble(CODE, |a| {
        a.movq(rbx, mm0)?;
        a.emms()?;
        a.syscall()
    });
    assert_eq!(one.run(&secret), Exit::Hypercall);
    one.vcpu.park();
    assert_eq!(other.run(&read), Exit::Hypercall);
    other.vcpu.park();
    assert_eq!(other.gpr(GprName::Rbx), 0);
    assert_eq!(one.run(&read), Exit::Hypercall);
    one.vcpu.park();
    assert_eq!(one.gpr(GprName::Rbx), 0x1122_3344_5566_7788);
}

#[test]
fn test_x87_state_follows_the_vcpu_to_another_thread() {
    let mut guest = Guest::new();
    let load = assemble(CODE, |a| {
        a.fld1()?;
        a.fldpi()?;
        a.syscall()
    });
    assert_eq!(guest.run(&load), Exit::Hypercall);
    guest.vcpu.park();
    let mut guest = std::thread::spawn(move || {
        let pop = assemble(CODE, |a| {
            a.fstp(st0)?;
            a.fistp(qword_ptr(support::DATA))?;
            a.syscall()
        });
        assert_eq!(guest.run(&pop), Exit::Hypercall);
        guest.vcpu.park();
        guest
    })
    .join()
    .unwrap();
    assert_eq!(guest.read(support::DATA, 8), 1u64.to_le_bytes());
    assert_eq!(guest.run(&assemble(CODE, |a| a.syscall())), Exit::Hypercall);
}

/// Frames that the guest's tables do not lead to.
const FOREIGN: std::ops::Range<u64> = FIRST + NR_PAGES..64;

/// A guest with something in every frame that is not its own.
struct Walled {
    guest: Guest,
    canary: Vec<u8>,
}

impl Walled {
    fn new() -> Self {
        let mut guest = Guest::new();
        for page in [0, 1] {
            guest.map(page, (FIRST + page) << 12 | pte::PRESENT | pte::USER);
        }
        // A hole, and a page that is read-only.
        guest.map(6, 0);
        guest.map(11, (FIRST + 11) << 12 | pte::PRESENT | pte::USER);
        let canary: Vec<u8> = (0..4096u32).map(|n| (n * 7 + 1) as u8).collect();
        for mfn in FOREIGN {
            guest.machine.write(Mfn(mfn), 0, &canary).unwrap();
        }
        guest.write(DATA + 0x7000, &canary);
        Self { guest, canary }
    }

    fn assert_intact(&self, what: &str) {
        let mut page = vec![0; 4096];
        for mfn in FOREIGN.chain([FIRST + 11]) {
            self.guest.machine.read(Mfn(mfn), 0, &mut page).unwrap();
            assert!(page == self.canary, "frame {mfn} was changed by {what}");
        }
    }

    fn assert_guests_own(exit: Exit, what: &str) {
        assert!(!matches!(exit, Exit::Failed(_)), "{exit:?} after {what}");
    }
}

/// Where the host's own memory is, and whatever else is not the guest's.
fn wild_addresses(guest: &Guest) -> Vec<u64> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let bounds = maps.lines().filter_map(|line| line.split(' ').next()?.split_once('-'));
    let mut wild: Vec<u64> = bounds
        .flat_map(|(start, end)| [u64::from_str_radix(start, 16).unwrap(), u64::from_str_radix(end, 16).unwrap() - 64])
        .collect();
    let base = guest.machine.base() as u64;
    wild.extend((0..64).map(|mfn| base + mfn * 4096));
    wild.extend([0, 8, 0x1000, 0x7fff_ffff_fff8, 0x8000_0000_0000, 0x00ff_0000_0000_0000, 1 << 63, u64::MAX - 7]);
    wild.extend([0xffff_8000_0000_0000, 0xffff_ffff_8000_0000, DATA + 0x2000, DATA + 0x1ff9, DATA + 0x3000 - 64]);
    wild.extend([DATA + 0x7000, DATA + 0x7ff0, DATA + 0x8000, CODE, CODE - 8, 1 << 32]);
    wild
}

/// Instructions that reach memory by `[rbx]`, one of each code that the policy shows.
fn reaching() -> Vec<(Code, Vec<u8>)> {
    let mut found = Vec::new();
    for code in Code::values() {
        let info = code.op_code();
        let mut instr = Instruction::default();
        instr.set_code(code);
        if !info.mode64() || !info.is_instruction() || matches!(classify(&instr), Kind::Undefined) {
            continue;
        }
        let mut reaches = false;
        for op in 0..info.op_count() {
            match operand(info.op_kind(op)) {
                Some(Operand::Memory) => {
                    instr.set_op_kind(op, OpKind::Memory);
                    instr.set_memory_base(Register::RBX);
                    reaches = true;
                }
                Some(Operand::Gather(index)) => {
                    instr.set_op_kind(op, OpKind::Memory);
                    instr.set_memory_base(Register::RBX);
                    instr.set_memory_index(index);
                    reaches = true;
                }
                Some(Operand::Register(register)) => {
                    instr.set_op_kind(op, OpKind::Register);
                    instr.set_op_register(op, register);
                }
                Some(Operand::Immediate) => {
                    instr.set_op_kind(op, OpKind::Immediate8);
                    instr.set_immediate8(1);
                }
                None => {}
            }
        }
        let mut encoder = Encoder::new(64);
        if reaches && encoder.encode(&instr, CODE).is_ok() {
            found.push((code, encoder.take_buffer()));
        }
    }
    // Implicit operands.
    let implicit: [(Code, &[u8]); 16] = [
        (Code::Push_r64, &[0x50]),
        (Code::Pop_r64, &[0x58]),
        (Code::Call_rel32_64, &[0xe8, 0, 0, 0, 0]),
        (Code::Retnq, &[0xc3]),
        (Code::Leaveq, &[0xc9]),
        (Code::Enterq_imm16_imm8, &[0xc8, 0xff, 0xff, 3]),
        (Code::Pushfq, &[0x9c]),
        (Code::Popfq, &[0x9d]),
        (Code::Movsq_m64_m64, &[0xf3, 0x48, 0xa5]),
        (Code::Stosb_m8_AL, &[0xf3, 0xaa]),
        (Code::Stosq_m64_RAX, &[0x48, 0xab]),
        (Code::Cmpsb_m8_m8, &[0xf3, 0xa6]),
        (Code::Lodsd_EAX_m32, &[0xad]),
        (Code::Xlat_m8, &[0xd7]),
        (Code::Maskmovdqu_rDI_xmm_xmm, &[0x66, 0x0f, 0xf7, 0xc1]),
        (Code::Maskmovq_rDI_mm_mm, &[0x0f, 0xf7, 0xc1]),
    ];
    found.extend(implicit.map(|(code, bytes)| (code, bytes.to_vec())));
    found
}

enum Operand {
    Memory,
    Gather(Register),
    Register(Register),
    Immediate,
}

fn operand(kind: O) -> Option<Operand> {
    Some(match kind {
        O::mem | O::mem_mib | O::sibmem => Operand::Memory,
        O::r8_or_mem | O::r16_or_mem | O::r32_or_mem | O::r64_or_mem | O::mm_or_mem | O::xmm_or_mem | O::ymm_or_mem => {
            Operand::Memory
        }
        O::r32_or_mem_mpx | O::r64_or_mem_mpx => return None,
        O::mem_vsib32x | O::mem_vsib64x => Operand::Gather(Register::XMM5),
        O::mem_vsib32y | O::mem_vsib64y => Operand::Gather(Register::YMM5),
        O::r8_reg | O::r8_opcode => Operand::Register(Register::CL),
        O::r16_reg | O::r16_opcode => Operand::Register(Register::CX),
        O::r32_reg | O::r32_opcode | O::r32_vvvv => Operand::Register(Register::ECX),
        O::r64_reg | O::r64_opcode | O::r64_vvvv => Operand::Register(Register::RCX),
        O::mm_reg => Operand::Register(Register::MM1),
        O::xmm_reg | O::xmm_vvvv | O::xmm_is4 | O::xmm_is5 => Operand::Register(Register::XMM1),
        O::ymm_reg | O::ymm_vvvv | O::ymm_is4 | O::ymm_is5 => Operand::Register(Register::YMM1),
        O::imm8 | O::imm8_const_1 => Operand::Immediate,
        O::al => Operand::Register(Register::AL),
        O::cl => Operand::Register(Register::CL),
        O::ax => Operand::Register(Register::AX),
        O::eax => Operand::Register(Register::EAX),
        O::rax => Operand::Register(Register::RAX),
        O::st0 => Operand::Register(Register::ST0),
        _ => return None,
    })
}

/// Every kind of access at addresses of the host, of its hypervisor's half, at holes and borders: each ends as the guest's
/// own affair, and nothing that is not the guest's changes.
#[test]
fn test_wild_pointers_reach_nothing_but_faults() {
    let mut walled = Walled::new();
    let wild = wild_addresses(&walled.guest);
    let instructions = reaching();
    assert!(instructions.len() > 900, "{} instructions", instructions.len());
    for (n, (code, bytes)) in instructions.iter().enumerate() {
        let mut text = bytes.clone();
        text.push(0xcc);
        walled.guest.write(CODE, &text);
        // Not all addresses with each instruction, but each with many.
        for address in wild.iter().skip(n % 7).step_by(7) {
            let regs = walled.guest.vcpu.regs_mut();
            for name in [GprName::Rbx, GprName::Rsp, GprName::Rbp, GprName::Rdi, GprName::Rsi] {
                regs.set(name, *address);
            }
            regs.set(GprName::Rcx, 3000);
            regs.rip = CODE;
            regs.rflags = 0x202;
            let exit = walled.guest.vcpu.run();
            Walled::assert_guests_own(exit, &format!("{code:?} at {address:#x}"));
        }
        walled.assert_intact(&format!("{code:?}"));
    }
}

/// Random bytes as code, with addresses of the host in every register.
#[test]
fn test_random_code_reaches_nothing_but_its_own() {
    let mut walled = Walled::new();
    let wild = wild_addresses(&walled.guest);
    let control = walled.guest.vcpu.control();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let kicker = std::thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            control.request(Requests::EVENT);
            std::thread::sleep(std::time::Duration::from_micros(200));
        }
    });
    let mut seed = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let started = std::time::Instant::now();
    let mut rounds = 0u32;
    while rounds < 20_000 && started.elapsed().as_secs() < 8 {
        rounds += 1;
        let code: Vec<u8> = (0..64).map(|_| random() as u8).collect();
        walled.guest.write(CODE + 0xfc0, &code);
        let size = if random() % 4 == 0 { CodeSize::Bits32 } else { CodeSize::Bits64 };
        let mode = if random() % 2 == 0 { GuestMode::Kernel } else { GuestMode::User };
        let space = walled.guest.vcpu.address_space(GuestMode::Kernel);
        walled.guest.vcpu.set_address_space(GuestMode::User, space);
        walled.guest.vcpu.set_mode(mode, size);
        let start = CODE + 0xfc0 + random() % 32;
        for index in 0..16 {
            let near = DATA + random() % 0x8000;
            let value = if random() % 2 == 0 { wild[random() as usize % wild.len()] } else { near };
            walled.guest.vcpu.regs_mut().gpr[index] = value;
        }
        let regs = walled.guest.vcpu.regs_mut();
        (regs.rip, regs.rflags) = (start, 0x202 | random() & 0x0024_0dd5);
        (regs.fs_base, regs.gs_base) = (wild[random() as usize % wild.len()], DATA);
        let what = format!("{code:02x?} from {start:#x}");
        for _ in 0..3 {
            let exit = if random() % 8 == 0 { walled.guest.vcpu.step(None) } else { walled.guest.vcpu.run() };
            Walled::assert_guests_own(exit, &what);
            if matches!(exit, Exit::Exception { .. } | Exit::Privileged) {
                break;
            }
        }
        if rounds.is_multiple_of(64) {
            walled.assert_intact(&what);
        }
    }
    walled.assert_intact("the last");
    stop.store(true, Ordering::Relaxed);
    kicker.join().unwrap();
}

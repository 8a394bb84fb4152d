//! Direct execution of user code: the same answers as the translator's, and nothing reachable but the guest's pages.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::time::{Duration, Instant};

use iced_x86::code_asm::*;
use ring3_engine::{CodeSize, Engine as _, Exit, Features, GprName, Guards, GuestMode, Requests, pte, vector};
use ring3_engine_bt::{BtEngine, DirectPolicy, Options};
use ring3_machine::Mfn;
use support::{CODE, DATA, Guest, STACK_END};

/// A guest whose user code runs directly, with `code` at `CODE`.
fn guest(policy: DirectPolicy, code: &[u8]) -> Guest {
    let mut guest =
        Guest::with_engine(BtEngine::with_options(Options { direct: policy, ..Options::default() }).unwrap());
    let space = guest.vcpu.address_space(GuestMode::Kernel);
    guest.vcpu.set_address_space(GuestMode::User, space);
    guest.vcpu.set_mode(GuestMode::User, CodeSize::Bits64);
    let regs = guest.vcpu.regs_mut();
    (regs.cs, regs.ss) = (0x33, 0x2b);
    guest.write(CODE, code);
    guest
}

fn assemble(build: impl FnOnce(&mut CodeAssembler)) -> Vec<u8> {
    let mut a = CodeAssembler::new(64).unwrap();
    build(&mut a);
    a.assemble(CODE).unwrap()
}

/// Runs code under every policy, and expects the same exit and registers.
fn run_both(code: &[u8], prepare: impl Fn(&mut Guest)) -> (Exit, Vec<Guest>) {
    let mut guests = Vec::new();
    let mut exits = Vec::new();
    for policy in [DirectPolicy::Always, DirectPolicy::Never] {
        let mut guest = guest(policy, code);
        prepare(&mut guest);
        exits.push(guest.vcpu.run());
        guest.vcpu.park();
        guests.push(guest);
    }
    assert_eq!(exits[0], exits[1]);
    assert_eq!(guests[0].vcpu.regs(), guests[1].vcpu.regs());
    assert_eq!(guests[0].vcpu.xsave().to_vec(), guests[1].vcpu.xsave().to_vec());
    for page in 0..support::NR_PAGES {
        let va = CODE + page * 4096;
        assert_eq!(guests[0].read(va, 4096), guests[1].read(va, 4096), "page {page}");
    }
    (exits[0], guests)
}

#[test]
fn test_a_computation_ends_in_its_system_call() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(ecx, 1_000_000u32).unwrap();
        a.xor(eax, eax).unwrap();
        a.set_label(&mut top).unwrap();
        a.add(rax, rcx).unwrap();
        a.mov(qword_ptr(DATA), rax).unwrap();
        a.dec(rcx).unwrap();
        a.jne(top).unwrap();
        a.cvtsi2sd(xmm3, rax).unwrap();
        a.fld1().unwrap();
        a.push(rax).unwrap();
        a.syscall().unwrap();
    });
    let (exit, guests) = run_both(&code, |guest| {
        let regs = guest.vcpu.regs_mut();
        regs.fs_base = DATA + 64;
        regs.gs_base = DATA + 128;
        regs.set(GprName::R15, 0x1234_5678_9abc_def0);
    });
    assert_eq!(exit, Exit::Syscall);
    assert_eq!(guests[0].read(DATA, 8), 500_000_500_000u64.to_le_bytes());
}

#[test]
fn test_the_bases_of_fs_and_gs_are_the_guests() {
    let code = assemble(|a| {
        a.mov(rax, qword_ptr(8).fs()).unwrap();
        a.mov(rbx, qword_ptr(8).gs()).unwrap();
        a.mov(ecx, 77u32).unwrap();
        a.wrfsbase(rcx).unwrap();
        a.ud2().unwrap();
    });
    let (exit, guests) = run_both(&code, |guest| {
        guest.write(DATA, &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3]);
        let regs = guest.vcpu.regs_mut();
        regs.fs_base = DATA;
        regs.gs_base = DATA + 8;
    });
    assert_eq!(exit, Exit::Exception { vector: vector::UD, error_code: None, cr2: 0 });
    assert_eq!((guests[0].gpr(GprName::Rax), guests[0].gpr(GprName::Rbx)), (2, 3));
    assert_eq!(guests[0].vcpu.regs().fs_base, 77);
}

/// The host may have more components on than the guest: what a program saves directly, the translator must restore.
#[test]
fn test_a_compact_save_names_the_guests_components_alone() {
    let code = assemble(|a| {
        a.mov(edi, DATA as u32).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 0xee).unwrap();
        a.xsavec(ptr(rdi)).unwrap();
        a.xor(edx, edx).unwrap();
        a.mov(eax, 0xee).unwrap();
        a.syscall().unwrap();
        a.xrstor(ptr(rdi)).unwrap();
        a.syscall().unwrap();
    });
    let (exit, guests) = run_both(&code, |_| {});
    assert_eq!(exit, Exit::Syscall);
    assert_eq!(guests[0].read(DATA + 520, 8), (1u64 << 63 | 6).to_le_bytes());
}

#[test]
fn test_faults_are_the_translators() {
    let faults: [fn(&mut CodeAssembler); 8] = [
        |a| a.mov(dword_ptr(0x5000_0000), 1).unwrap(),
        |a| a.mov(eax, dword_ptr(0xffff_8800_0000_0000u64)).unwrap(),
        |a| a.call(qword_ptr(DATA)).unwrap(),
        |a| {
            a.xor(ecx, ecx).unwrap();
            a.div(ecx).unwrap();
        },
        |a| a.int3().unwrap(),
        |a| a.int(0x80).unwrap(),
        |a| a.int1().unwrap(),
        |a| a.hlt().unwrap(),
    ];
    for fault in faults {
        let code = assemble(|a| {
            a.mov(rdx, 5u64).unwrap();
            fault(a);
        });
        let (exit, _) = run_both(&code, |_| {});
        assert_ne!(exit, Exit::Syscall);
    }
}

#[test]
fn test_stores_to_code_are_seen_whether_it_ran_directly_or_not() {
    // Patches the immediate of a `mov eax, imm32` on its own page, and runs it again.
    let code = assemble(|a| {
        let mut patched = a.create_label();
        let mut end = a.create_label();
        a.xor(ebx, ebx).unwrap();
        a.set_label(&mut patched).unwrap();
        a.mov(eax, 0x1111_1111u32).unwrap();
        a.add(ebx, eax).unwrap();
        a.inc(r8d).unwrap();
        a.cmp(r8d, 100).unwrap();
        a.je(end).unwrap();
        a.lea(rsi, ptr(patched)).unwrap();
        a.mov(dword_ptr(rsi + 1), r8d).unwrap();
        a.jmp(patched).unwrap();
        a.set_label(&mut end).unwrap();
        a.syscall().unwrap();
    });
    let (_, guests) = run_both(&code, |_| {});
    assert_eq!(guests[0].gpr(GprName::Rbx) as u32, 0x1111_1111 + (1..100).sum::<u32>());
}

#[test]
fn test_a_page_that_became_read_only_or_another_is_so_after_the_flush() {
    let code = assemble(|a| {
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(DATA + 8), rax).unwrap();
        a.syscall().unwrap();
    });
    let mut guest = guest(DirectPolicy::Always, &code);
    guest.write(DATA, &[1]);
    assert_eq!(guest.vcpu.run(), Exit::Syscall);
    assert_eq!(guest.gpr(GprName::Rax), 1);

    let (flags, other) = (pte::PRESENT | pte::RW | pte::USER, Mfn(40));
    guest.machine.write(other, 0, &[9]).unwrap();
    guest.map(4, other.0 << 12 | flags);
    guest.vcpu.regs_mut().rip = CODE;
    assert_eq!(guest.vcpu.run(), Exit::Syscall);
    assert_eq!(guest.gpr(GprName::Rax), 9);

    guest.map(4, other.0 << 12 | pte::PRESENT | pte::USER);
    guest.vcpu.regs_mut().rip = CODE;
    let exit = guest.vcpu.run();
    assert_eq!(exit, Exit::Exception { vector: vector::PF, error_code: Some(3), cr2: DATA + 8 });
}

#[test]
fn test_accessed_and_dirty_bits_are_set() {
    let code = assemble(|a| {
        a.mov(rax, qword_ptr(DATA)).unwrap();
        a.mov(qword_ptr(DATA + 4096), rax).unwrap();
        a.syscall().unwrap();
    });
    let mut guest = guest(DirectPolicy::Always, &code);
    assert_eq!(guest.vcpu.run(), Exit::Syscall);
    let entry = |page: u64| guest.machine.entry(Mfn(4), (CODE >> 12 & 511) as usize + page as usize).unwrap();
    let bits = |page| entry(page) & (pte::ACCESSED | pte::DIRTY);
    assert_eq!((bits(4), bits(5), bits(6)), (pte::ACCESSED, pte::ACCESSED | pte::DIRTY, 0));
}

#[test]
fn test_requests_interrupt_a_loop() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.set_label(&mut top).unwrap();
        a.inc(rax).unwrap();
        a.jmp(top).unwrap();
    });
    let mut guest = guest(DirectPolicy::Always, &code);
    for _ in 0..20 {
        let control = guest.vcpu.control();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(3));
            control.request(Requests::EVENT);
        });
        assert_eq!(guest.vcpu.run(), Exit::Interrupted(Requests::EVENT));
        other.join().unwrap();
    }
    assert!(guest.gpr(GprName::Rax) > 1_000_000);
}

#[test]
fn test_cpuid_and_its_like_stay_with_the_translator() {
    let code = assemble(|a| {
        a.xor(eax, eax).unwrap();
        a.cpuid().unwrap();
    });
    assert_eq!(run_both(&code, |_| {}).0, Exit::Privileged);
}

/// Code that runs into the stub, with every register chosen to do harm: it loses its own registers at most.
#[test]
fn test_the_stub_is_no_way_out() {
    const STUB: u64 = 0x2a2a_4000_0000;
    for target in (STUB..STUB + 512).step_by(3) {
        let code = assemble(|a| {
            a.mov(rax, 9u64).unwrap();
            a.xor(edi, edi).unwrap();
            a.mov(rsi, 0x1000_0000u64).unwrap();
            a.mov(edx, 7).unwrap();
            a.mov(r10, 0x11u64).unwrap();
            a.mov(r8, 4u64).unwrap();
            a.xor(r9d, r9d).unwrap();
            a.mov(r11, target).unwrap();
            a.jmp(r11).unwrap();
        });
        let mut guest = guest(DirectPolicy::Always, &code);
        guest.vcpu.regs_mut().set(GprName::Rsp, STACK_END - 1024);
        let control = guest.vcpu.control();
        let table = |guest: &Guest| guest.machine.entry(Mfn(1), 0).unwrap() & !pte::ACCESSED;
        let before = table(&guest);
        let started = Instant::now();
        let watch = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            control.request(Requests::EVENT);
        });
        let exit = guest.vcpu.run();
        watch.join().unwrap();
        assert!(matches!(exit, Exit::Exception { .. } | Exit::Interrupted(_) | Exit::Syscall), "{target:#x}: {exit:?}");
        assert!(started.elapsed() < Duration::from_secs(5));
        assert_eq!(table(&guest), before, "a page table changed");
    }
}

/// What the host's CPU has and the guest's does not must not be found out by running directly.
#[test]
fn test_what_the_guests_cpu_lacks_is_not_there_in_direct_runs_either() {
    let undefined = Exit::Exception { vector: vector::UD, error_code: None, cr2: 0 };
    let computing = |last: fn(&mut CodeAssembler)| {
        assemble(|a| {
            let mut top = a.create_label();
            a.mov(ecx, 1000u32).unwrap();
            a.set_label(&mut top).unwrap();
            a.dec(rcx).unwrap();
            a.jne(top).unwrap();
            last(a);
            a.syscall().unwrap();
        })
    };
    let avx = computing(|a| a.vaddps(ymm0, ymm1, ymm2).unwrap());
    let base = computing(|a| a.rdfsbase(rax).unwrap());
    let random = computing(|a| a.rdrand(rax).unwrap());
    let tsc = computing(|a| a.rdtsc().unwrap());
    let guarded = |guards: Guards| move |guest: &mut Guest| guest.vcpu.set_guards(guards);
    for code in [&avx, &base, &random, &tsc] {
        assert_eq!(guest(DirectPolicy::Always, code).vcpu.run(), Exit::Syscall, "all of it is there");
    }
    assert_eq!(run_both(&avx, |guest| guest.vcpu.set_xcr0(3)).0, undefined);
    assert_eq!(run_both(&base, guarded(Guards { bases: true, tsc: false })).0, Exit::Privileged);
    assert_eq!(run_both(&tsc, guarded(Guards { bases: false, tsc: true })).0, Exit::Privileged);
    assert_eq!(run_both(&random, |guest| guest.domain.hide(Features::RDRAND)).0, undefined);
    assert_eq!(run_both(&avx, |guest| guest.domain.hide(Features::RDSEED)).0, Exit::Syscall);
}

/// Code that finds the stub's return from signals and gives it a frame that blocks them all: it is ended, and the vCPU goes on.
#[test]
fn test_who_does_not_come_back_is_ended() {
    const STUB: u64 = 0x2a2a_4000_0000;
    const FRAME: u64 = DATA + 0x800;
    let code = assemble(|a| {
        let (mut search, mut endless) = (a.create_label(), a.create_label());
        a.lea(rax, ptr(endless)).unwrap();
        a.mov(qword_ptr(FRAME + 168), rax).unwrap();
        // mov eax, 15; syscall
        a.mov(rdx, 0x0005_0f00_0000_0fb8_u64).unwrap();
        a.mov(rsi, STUB - 1).unwrap();
        a.set_label(&mut search).unwrap();
        a.inc(rsi).unwrap();
        a.mov(rax, qword_ptr(rsi)).unwrap();
        a.shl(rax, 8).unwrap();
        a.shr(rax, 8).unwrap();
        a.cmp(rax, rdx).unwrap();
        a.jne(search).unwrap();
        a.mov(rsp, FRAME).unwrap();
        a.jmp(rsi).unwrap();
        a.set_label(&mut endless).unwrap();
        a.inc(dword_ptr(DATA)).unwrap();
        a.jmp(endless).unwrap();
    });
    let mut guest = guest(DirectPolicy::Always, &code);
    let mut frame = [0u8; 304];
    frame[176..184].copy_from_slice(&0x202u64.to_le_bytes());
    frame[184..192].copy_from_slice(&0x002b_0000_0000_0033u64.to_le_bytes());
    frame[296..].fill(0xff);
    guest.write(FRAME, &frame);
    let (control, machine) = (guest.vcpu.control(), std::sync::Arc::clone(&guest.machine));
    let watch = std::thread::spawn(move || {
        let count = machine.byte(Mfn(support::FIRST + (DATA - CODE) / 4096), 0).unwrap();
        while count.load(std::sync::atomic::Ordering::Relaxed) == 0 {
            std::thread::yield_now();
        }
        control.request(Requests::EVENT);
    });
    let exit = guest.vcpu.run();
    watch.join().unwrap();
    assert_eq!(exit, Exit::Exception { vector: vector::GP, error_code: Some(0), cr2: 0 });
    let count = guest.read(DATA, 4);
    assert_ne!(count, [0; 4], "it ran on");
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(guest.read(DATA, 4), count, "and runs no more");
}

/// Code that domain 0 writes while it runs: from when its mapping is known, it runs as written, and no longer directly.
#[test]
fn test_code_that_an_outside_writer_changes_while_it_runs() {
    let code = assemble(|a| {
        let mut top = a.create_label();
        a.mov(rbx, DATA).unwrap();
        a.set_label(&mut top).unwrap();
        a.call(rbx).unwrap();
        a.cmp(eax, 2).unwrap();
        a.jne(top).unwrap();
        a.syscall().unwrap();
    });
    let mut guest = guest(DirectPolicy::Always, &code);
    let frame = Mfn(support::FIRST + (DATA - CODE) / 4096);
    let function = |value: u32| (support::FUNCTION | u64::from(value) << 8).to_le_bytes();
    for round in 0..5 {
        guest.write(DATA, &function(1));
        guest.vcpu.regs_mut().rip = CODE;
        guest.vcpu.regs_mut().set(GprName::Rsp, STACK_END);
        let Guest { machine, engine, vcpu, .. } = &mut guest;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(5));
                machine.code().add_writer(frame);
                engine.invalidate_code(frame);
                if round % 2 == 1 {
                    // Long enough for the guest to have found what it may keep.
                    std::thread::sleep(Duration::from_millis(5));
                }
                machine.write(frame, 0, &function(2)).unwrap();
            });
            assert_eq!(vcpu.run(), Exit::Syscall);
        });
        guest.machine.code().remove_writer(frame);
    }
}

//! What the differential test found once, each as a small program of its own.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use ring3_engine::{Exit, Features, GprName, vector};
use support::{CODE, DATA, Guest};

fn fault(vector: u8, error_code: Option<u32>) -> Exit {
    Exit::Exception { vector, error_code, cr2: 0 }
}

const TRAP: Exit = Exit::SoftwareInterrupt { vector: 3 };

#[test]
fn test_step_does_an_instruction_that_crosses_pages() {
    let mut guest = Guest::new();
    // mov eax, 0x12345678
    guest.write(CODE + 0xffe, &[0xb8, 0x78]);
    guest.write(CODE + 0x1000, &[0x56, 0x34, 0x12]);
    guest.vcpu.regs_mut().rip = CODE + 0xffe;
    assert_eq!(guest.vcpu.step(None), Exit::Stepped);
    assert_eq!(guest.gpr(GprName::Rax), 0x1234_5678);
}

#[test]
fn test_shadow_stack_instructions_are_undefined() {
    let mut guest = Guest::new();
    // incsspq rax; wrssd [rbx], eax
    assert_eq!(guest.run(&[0xf3, 0x48, 0x0f, 0xae, 0xe8]), fault(vector::UD, None));
    assert_eq!(guest.run(&[0x0f, 0x38, 0xf6, 0x03]), fault(vector::UD, None));
}

#[test]
fn test_fwait_raises_the_pending_exception() {
    let mut guest = Guest::new();
    guest.write(DATA, &0x37bu16.to_le_bytes());
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA);
    // fldcw [rbx] (divide by zero unmasked); fld1; fldz; fdivp; fwait; int3
    let code = [0xd9, 0x2b, 0xd9, 0xe8, 0xd9, 0xee, 0xde, 0xf9, 0x9b, 0xcc];
    assert_eq!(guest.run(&code), fault(vector::MF, None));
    assert_eq!(guest.vcpu.regs().rip, CODE + 8);
}

#[test]
fn test_flags_are_kept_where_a_copied_instruction_faults() {
    let mut guest = Guest::new();
    guest.write(DATA, &0u32.to_le_bytes());
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA);
    // xor eax, eax; ldmxcsr [rbx]; xorps xmm0, xmm0; cmp eax, 1; divps xmm0, xmm0; adc eax, 0; int3
    let code = [0x31, 0xc0, 0x0f, 0xae, 0x13, 0x0f, 0x57, 0xc0, 0x83, 0xf8, 1, 0x0f, 0x5e, 0xc0, 0x83, 0xd0, 0, 0xcc];
    assert_eq!(guest.run(&code), fault(vector::XM, None));
    assert_eq!(guest.vcpu.regs().rip, CODE + 11);
    assert_eq!(guest.vcpu.regs().rflags & 0x8d5, 0x95, "CF, PF, AF and SF of 0 - 1");
}

#[test]
fn test_x87_state_crosses_pages() {
    let mut guest = Guest::new();
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA + 0xfe3);
    // fldpi; fnsave [rbx]; frstor [rbx]; fstp tbyte [rbx]; int3
    let code = [0xd9, 0xeb, 0xdd, 0x33, 0xdd, 0x23, 0xdb, 0x3b, 0xcc];
    assert_eq!(guest.run(&code), TRAP);
    let pi = [0x35, 0xc2, 0x68, 0x21, 0xa2, 0xda, 0x0f, 0xc9, 0x00, 0x40];
    assert_eq!(guest.read(DATA + 0xfe3, 10), pi);
}

#[test]
fn test_short_environment_leaves_what_follows_alone() {
    let mut guest = Guest::new();
    guest.write(DATA, &[0x5a; 64]);
    guest.vcpu.regs_mut().set(GprName::Rbx, DATA);
    // fnstenv [rbx] with a 16-bit operand size; int3
    assert_eq!(guest.run(&[0x66, 0xd9, 0x33, 0xcc]), TRAP);
    assert_eq!(guest.read(DATA + 14, 50), [0x5a; 50]);
}

#[test]
fn test_bit_strings_and_pops_with_32_bit_addresses() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rbx, DATA);
    regs.set(GprName::Rax, 0x8000_0000_0000_0048);
    // bts [ebx], rax; int3: the address is cut after the index was added
    assert_eq!(guest.run(&[0x67, 0x48, 0x0f, 0xab, 0x03, 0xcc]), TRAP);
    assert_eq!(guest.read(DATA + 9, 1), [1]);
    let rsp = guest.gpr(GprName::Rsp);
    // push 7; pop [esp - 0x20]; int3: the base counts after the pop
    assert_eq!(guest.run(&[0x6a, 7, 0x67, 0x8f, 0x44, 0x24, 0xe0, 0xcc]), TRAP);
    assert_eq!(guest.read(rsp - 0x20, 1), [7]);
}

#[test]
fn test_mulx_with_one_destination_keeps_the_high_half() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rbx, DATA);
    regs.set(GprName::Rdx, 1 << 63);
    guest.write(DATA, &6u64.to_le_bytes());
    // mulx r11, r11, [rbx]; int3
    assert_eq!(guest.run(&[0xc4, 0x62, 0xa3, 0xf6, 0x1b, 0xcc]), TRAP);
    assert_eq!(guest.gpr(GprName::R11), 3);
}

#[test]
fn test_maskmovq_takes_mmx_registers_wherever_the_stack_top_is() {
    let mut guest = Guest::new();
    let regs = guest.vcpu.regs_mut();
    regs.set(GprName::Rdi, DATA);
    regs.set(GprName::Rax, 0x8877_6655_4433_2211);
    // fld1; movq mm3, rax; pcmpeqb mm1, mm1; maskmovq mm3, mm1; int3
    let code = [0xd9, 0xe8, 0x48, 0x0f, 0x6e, 0xd8, 0x0f, 0x74, 0xc9, 0x0f, 0xf7, 0xd9, 0xcc];
    assert_eq!(guest.run(&code), TRAP);
    assert_eq!(guest.read(DATA, 8), 0x8877_6655_4433_2211u64.to_le_bytes());
}

#[test]
fn test_locked_stores_to_pages_with_code_lose_nothing() {
    assert_eq!(count_on_two_vcpus(DATA + 0x100, 50_000), 100_000);
}

#[test]
fn test_locked_stores_across_pages_lose_nothing() {
    assert_eq!(count_on_two_vcpus(DATA + 0xffd, 5_000), 10_000);
}

#[test]
fn test_misaligned_locked_stores_to_pages_with_code_lose_nothing() {
    assert_eq!(count_on_two_vcpus(DATA + 0x105, 5_000), 10_000);
}

/// Has two vCPUs increment the quadword at `counter` with a LOCK prefix, while they run code of its page; returns it.
fn count_on_two_vcpus(counter: u64, turns: u64) -> u64 {
    use ring3_engine::{CodeSize, Config, GuestMode};
    let mut guest = Guest::new();
    // again: lock inc qword [rbx]; call rax; dec rcx; jnz again; int3 (the function lies beside the counter)
    let code = [0xf0, 0x48, 0xff, 0x03, 0xff, 0xd0, 0x48, 0xff, 0xc9, 0x75, 0xf5, 0xcc];
    guest.write(CODE, &code);
    guest.write(DATA, &[0xc3]);
    let other = guest.domain.create_vcpu(1, &Config { xcr0: 7 }).unwrap();
    let first = std::mem::replace(&mut guest.vcpu, other);
    let space = first.address_space(GuestMode::Kernel);
    guest.vcpu.set_address_space(GuestMode::Kernel, space);
    let second = std::mem::replace(&mut guest.vcpu, first);
    let run = |mut vcpu: Box<dyn ring3_engine::Vcpu>, rsp: u64| {
        std::thread::spawn(move || {
            vcpu.set_mode(GuestMode::Kernel, CodeSize::Bits64);
            let regs = vcpu.regs_mut();
            regs.rip = CODE;
            regs.set(GprName::Rbx, counter);
            regs.set(GprName::Rax, DATA);
            regs.set(GprName::Rcx, turns);
            regs.set(GprName::Rsp, rsp);
            loop {
                match vcpu.run() {
                    Exit::Interrupted(_) => {}
                    exit => return exit,
                }
            }
        })
    };
    let stack = support::STACK_END - 64;
    let spare = guest.domain.create_vcpu(2, &Config { xcr0: 7 }).unwrap();
    let first = std::mem::replace(&mut guest.vcpu, spare);
    let threads = [run(first, stack), run(second, stack - 0x800)];
    for thread in threads {
        assert_eq!(thread.join().unwrap(), TRAP);
    }
    let bytes: Vec<u8> = (0..8).flat_map(|n| guest.read(counter + n, 1)).collect();
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// CPUs that lack `tzcnt` and `lzcnt` ignore their prefix.
#[test]
fn test_hidden_counts_of_zeros_are_bit_scans() {
    let mut guest = Guest::new();
    // tzcnt eax, ebx; lzcnt ecx, ebx; tzcnt dx, [rsi]; tzcnt r10, rbx; int3
    let code = [
        0xf3, 0x0f, 0xbc, 0xc3, 0xf3, 0x0f, 0xbd, 0xcb, 0x66, 0xf3, 0x0f, 0xbc, 0x16, 0xf3, 0x4c, 0x0f, 0xbc, 0xd3,
        0xcc,
    ];
    let shown = |guest: &mut Guest, value: u64| {
        let regs = guest.vcpu.regs_mut();
        (regs.gpr[0], regs.gpr[1], regs.gpr[2], regs.gpr[3], regs.gpr[6]) = (77, 77, 77, value, DATA);
        guest.write(DATA, &(value as u16).to_le_bytes());
        assert_eq!(guest.run(&code), TRAP);
        [GprName::Rax, GprName::Rcx, GprName::Rdx, GprName::R10].map(|name| guest.gpr(name))
    };
    guest.domain.hide(Features::NONE);
    assert_eq!(shown(&mut guest, 0x10), [4, 27, 4, 4]);
    assert_eq!(shown(&mut guest, 0)[..3], [32, 32, 16]);
    guest.domain.hide(Features::BMI1.with(Features::LZCNT));
    assert_eq!(shown(&mut guest, 0x10), [4, 4, 4, 4]);
    assert_eq!(shown(&mut guest, 0)[..3], [77, 77, 77], "what is undefined stays as it is on all CPUs");
}

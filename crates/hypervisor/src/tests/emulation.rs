//! Privileged instructions.

use ring3_abi::hypercall::__HYPERVISOR_physdev_op;
use ring3_engine::{CodeSize, GprName, GuestMode, vector};

use super::support::{ARGS, BASE, Guest, SP, guest};

/// Puts an instruction at RIP and emulates it; the handler of #GP is at `BASE + 0x800`, of #UD at `BASE + 0x900`.
fn emulate(guest: &Guest, code: &[u8]) -> u64 {
    let mut bytes = [0x90u8; 16];
    bytes[..code.len()].copy_from_slice(code);
    guest.write(BASE, &bytes);
    guest.with(|r| {
        r.state.cpu.regs_mut().rip = BASE;
        r.state.cpu.regs_mut().set(GprName::Rsp, SP);
        r.state.traps[13].address = BASE + 0x800;
        r.state.traps[6].address = BASE + 0x900;
        r.privileged().unwrap();
        r.state.cpu.regs().rip
    })
}

#[test]
fn test_cpuid_and_the_forced_emulation_prefix() {
    let guest = guest();
    guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rax, 0x4000_0000));
    assert_eq!(emulate(&guest, &[0x0f, 0xa2]), BASE + 2);
    guest.with(|r| assert_eq!(r.state.cpu.regs().get(GprName::Rbx), 0x566e_6558));
    guest.write(BASE, &[0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2, 0x90u8]);
    guest.with(|r| {
        r.state.cpu.regs_mut().rip = BASE;
        r.state.cpu.regs_mut().set(GprName::Rax, 0x4000_0001);
        r.exception(vector::UD, None, 0).unwrap();
        assert_eq!(r.state.cpu.regs().rip, BASE + 7);
        assert_eq!(r.state.cpu.regs().get(GprName::Rax), (4 << 16) | 17);
    });
}

#[test]
fn test_ports_need_iopl_and_read_as_ones() {
    let guest = guest();
    assert_eq!(emulate(&guest, &[0xe4, 0x61]), BASE + 0x800);
    guest.write(ARGS, &1u32);
    assert_eq!(guest.call(__HYPERVISOR_physdev_op, &[6, ARGS]), 0);
    guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rax, 0x1234_0000));
    assert_eq!(emulate(&guest, &[0xe4, 0x61]), BASE + 2);
    guest.with(|r| assert_eq!(r.state.cpu.regs().get(GprName::Rax), 0x1234_00ff));
    assert_eq!(emulate(&guest, &[0xe6, 0x61]), BASE + 2);
}

#[test]
fn test_msrs_and_control_registers() {
    let guest = guest();
    guest.with(|r| {
        r.state.cpu.regs_mut().set(GprName::Rcx, 0xc000_0101);
        r.state.cpu.regs_mut().set(GprName::Rax, 0x9000);
        r.state.cpu.regs_mut().set(GprName::Rdx, 0xffff_8880);
    });
    assert_eq!(emulate(&guest, &[0x0f, 0x30]), BASE + 2);
    guest.with(|r| assert_eq!(r.state.cpu.regs().gs_base, 0xffff_8880_0000_9000));
    guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rcx, 0xdead));
    assert_eq!(emulate(&guest, &[0x0f, 0x32]), BASE + 0x800);
    // mov rax, cr3
    assert_eq!(emulate(&guest, &[0x0f, 0x20, 0xd8]), BASE + 3);
    guest.with(|r| assert_eq!(r.state.cpu.regs().get(GprName::Rax), guest.root().address()));
    // mov cr0, rax: only TS may change
    guest.with(|r| {
        let cr0 = r.state.cr0;
        r.state.cpu.regs_mut().set(GprName::Rax, cr0 | 8);
    });
    assert_eq!(emulate(&guest, &[0x0f, 0x22, 0xc0]), BASE + 3);
    assert_eq!(emulate(&guest, &[0x0f, 0x06]), BASE + 2);
    guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rax, 1));
    assert_eq!(emulate(&guest, &[0x0f, 0x22, 0xc0]), BASE + 0x800);
}

#[test]
fn test_cpuid_faulting_concerns_users_only() {
    let guest = guest();
    guest.with(|r| {
        r.state.cpu.regs_mut().set(GprName::Rcx, 0x140);
        r.state.cpu.regs_mut().set(GprName::Rax, 1);
        r.state.cpu.regs_mut().set(GprName::Rdx, 0);
    });
    assert_eq!(emulate(&guest, &[0x0f, 0x30]), BASE + 2);
    assert_eq!(emulate(&guest, &[0x0f, 0xa2]), BASE + 2);
    let enter_user = || {
        guest.with(|r| {
            let space = r.state.kernel_space();
            r.state.cpu.set_address_space(GuestMode::User, space);
            r.state.set_mode(GuestMode::User, CodeSize::Bits64);
        });
    };
    enter_user();
    assert_eq!(emulate(&guest, &[0x0f, 0xa2]), BASE + 0x800);
    guest.with(|r| assert!(r.state.is_kernel()));
}

#[test]
fn test_msr_relaxed_reads_what_xen_does_not_know_as_zero() {
    let (hv, _) = super::support::machine();
    let mut create = super::support::create(1);
    create.misc_flags = 1;
    let guest = super::support::build_as(&hv, &create);
    for (msr, expected) in [(0x1d9u64, BASE + 2), (0x1234_5678, BASE + 0x800), (0x4000_0200, BASE + 0x800)] {
        guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rcx, msr));
        assert_eq!(emulate(&guest, &[0x0f, 0x32]), expected, "{msr:#x}");
        guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rcx, msr));
        assert_eq!(emulate(&guest, &[0x0f, 0x30]), expected, "{msr:#x}");
    }
}

#[test]
fn test_other_privileged_instructions_fault() {
    let guest = guest();
    for code in [&[0xf4][..], &[0x0f, 0x01, 0x38], &[0x0f, 0x00, 0xd8], &[0x0f, 0x01, 0x10], &[0x0f, 0x35]] {
        let rip = emulate(&guest, code);
        assert!(rip == BASE + 0x800 || rip == BASE + 0x900, "{code:02x?}: {rip:#x}");
    }
}

#[test]
fn test_segment_loads_check_descriptors() {
    let guest = guest();
    // mov ds, eax: null, the hypervisor's flat one, and one outside the (empty) GDT.
    for (selector, expected) in [(0u64, BASE + 2), (0xe02b, BASE + 2), (0x18, BASE + 0x800)] {
        guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rax, selector));
        assert_eq!(emulate(&guest, &[0x8e, 0xd8]), expected, "{selector:#x}");
    }
    // retfq through the flat code selector
    guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rsp, SP));
    guest.write(SP, &[BASE + 0x40, 0xe033u64]);
    assert_eq!(emulate(&guest, &[0x48, 0xcb]), BASE + 0x40);
}

#[test]
fn test_random_bytes_never_panic() {
    let guest = guest();
    guest.with(|r| {
        for trap in r.state.traps.iter_mut() {
            trap.address = BASE + 0x800;
        }
    });
    let mut seed = 0x1234_5678_9abc_def0u64;
    for _ in 0..20_000 {
        let mut bytes = [0u8; 16];
        for chunk in bytes.chunks_mut(8) {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            chunk.copy_from_slice(&(seed ^ (seed >> 29)).to_le_bytes());
        }
        // Mostly from the two-byte map, where the privileged ones are.
        if seed & 3 != 0 {
            bytes[0] = 0x0f;
        }
        guest.write(BASE, &bytes);
        guest.with(|r| {
            r.state.cpu.regs_mut().rip = BASE;
            r.state.cpu.regs_mut().set(GprName::Rsp, SP);
            let _ = r.privileged();
        });
    }
}

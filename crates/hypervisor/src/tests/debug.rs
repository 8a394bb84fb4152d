//! Debug registers and exceptions, #NM, RF and TF where the hypervisor emulates.

use ring3_abi::hypercall::{__HYPERVISOR_fpu_taskswitch, __HYPERVISOR_get_debugreg, __HYPERVISOR_set_debugreg};
use ring3_engine::{GprName, dr6, rflags, vector};

use super::support::{BASE, Guest, SP, guest};

const HANDLER: u64 = BASE + 0x400;

/// With a handler for each vector.
fn ready() -> Guest {
    let guest = guest();
    guest.with(|r| {
        for (number, trap) in r.state.traps.iter_mut().enumerate() {
            trap.address = HANDLER + number as u64;
        }
    });
    guest
}

/// Emulates one instruction; returns RIP and, where that is a handler's, RIP and flags of its frame.
fn emulate(guest: &Guest, code: &[u8], flags: u64) -> (u64, Option<(u64, u64)>) {
    let mut bytes = [0x90u8; 16];
    bytes[..code.len()].copy_from_slice(code);
    guest.write(BASE, &bytes);
    guest.with(|r| {
        let regs = r.state.cpu.regs_mut();
        (regs.rip, regs.rflags) = (BASE, flags | 2);
        regs.set(GprName::Rsp, SP);
        r.privileged().unwrap();
    });
    let (rip, sp) = guest.with(|r| (r.state.cpu.regs().rip, r.state.cpu.regs().get(GprName::Rsp)));
    let entered = (HANDLER..HANDLER + 256).contains(&rip).then(|| {
        let skip = if rip == HANDLER + u64::from(vector::DB) { 0 } else { 8 };
        let mut raw = [0u8; 24];
        guest.with(|r| r.domain.memory.read(&r.state.kernel_space(), sp + 16 + skip, &mut raw).unwrap());
        let word = |n: usize| u64::from_le_bytes(raw[n * 8..n * 8 + 8].try_into().unwrap());
        (word(0), word(2) & (rflags::RF | rflags::TF))
    });
    (rip, entered)
}

#[test]
fn test_debug_exception_shows_in_dr6() {
    let guest = ready();
    guest.with(|r| {
        r.debug_exception(dr6::B0 << 2).unwrap();
        assert_eq!(r.state.cpu.regs().rip, HANDLER + 1);
        assert_eq!(r.state.get_debugreg(6), Ok(0xffff_0ff4));
        r.debug_exception(dr6::BS).unwrap();
        assert_eq!(r.state.get_debugreg(6), Ok(0xffff_4ff4), "bits stay until they are cleared");
    });
}

#[test]
fn test_debug_registers_refuse_what_xen_refuses() {
    let guest = ready();
    let set = |index: u64, value: u64| guest.call(__HYPERVISOR_set_debugreg, &[index, value]);
    assert_eq!(set(0, 0x1000), 0);
    assert_eq!(set(1, 1 << 63), -1, "not canonical");
    assert_eq!(set(1, 0xffff_8000_0000_0000), -1);
    assert_eq!(set(7, 1 << 32), -22);
    assert_eq!(set(7, 1 << 13), -1, "general detect");
    assert_eq!(set(7, 2 << 16 | 1), -1, "I/O, without CR4.DE");
    guest.with(|r| r.state.set_cr4(1 << 3, false));
    assert_eq!(set(7, 2 << 16 | 1), 0, "I/O, with CR4.DE");
    assert_eq!(guest.call(__HYPERVISOR_get_debugreg, &[7]), 0x2_0401);
    assert_eq!(set(8, 0), -19);
}

#[test]
fn test_io_breakpoints_trap_after_the_instruction() {
    let guest = ready();
    guest.with(|r| {
        r.state.iopl = 3;
        r.state.set_cr4(1 << 3, false);
        r.state.set_debugreg(3, 0x60).unwrap();
        // Two bytes, I/O, breakpoint 3.
        r.state.set_debugreg(7, 0x6 << 28 | 0x40).unwrap();
    });
    assert_eq!(emulate(&guest, &[0xe4, 0x62], 0), (BASE + 2, None));
    assert_eq!(emulate(&guest, &[0xe4, 0x61], 0), (HANDLER + 1, Some((BASE + 2, 0))));
    guest.with(|r| assert_eq!(r.state.get_debugreg(6), Ok(0xffff_0ff8)));
}

#[test]
fn test_single_step_through_what_is_emulated() {
    let guest = ready();
    let db = HANDLER + 1;
    assert_eq!(emulate(&guest, &[0x0f, 0xa2], rflags::TF), (db, Some((BASE + 2, rflags::TF))), "cpuid");
    guest.with(|r| r.state.cpu.regs_mut().set(GprName::Rax, 0xe02b));
    assert_eq!(emulate(&guest, &[0x8e, 0xd8], rflags::TF), (db, Some((BASE + 2, rflags::TF))), "mov ds, eax");
    assert_eq!(emulate(&guest, &[0x8e, 0xd0], rflags::TF), (BASE + 2, None), "mov ss, eax");
    guest.write(SP, &[BASE + 0x40, 0xe033u64]);
    assert_eq!(emulate(&guest, &[0x48, 0xcb], rflags::TF), (db, Some((BASE + 0x40, rflags::TF))), "retfq");
    guest.write(SP, &[BASE + 0x40, 0xe033u64, 2, SP, 0xe02b]);
    assert_eq!(emulate(&guest, &[0x48, 0xcf], rflags::TF), (db, Some((BASE + 0x40, 0))), "iretq that clears it");
    assert_eq!(emulate(&guest, &[0x48, 0xcf], 0), (BASE + 0x40, None), "iretq");
}

#[test]
fn test_faults_push_rf_and_traps_do_not() {
    let guest = ready();
    assert_eq!(emulate(&guest, &[0xf4], 0), (HANDLER + 13, Some((BASE, rflags::RF))), "hlt");
    guest.with(|r| {
        r.state.cpu.regs_mut().rip = BASE;
        r.state.cpu.regs_mut().set(GprName::Rsp, SP);
        r.software_interrupt(3).unwrap();
        let sp = r.state.cpu.regs().get(GprName::Rsp);
        let mut flags = [0u8; 8];
        r.domain.memory.read(&r.state.kernel_space(), sp + 32, &mut flags).unwrap();
        assert_eq!(u64::from_le_bytes(flags) & rflags::RF, 0, "int3");
    });
}

#[test]
fn test_device_not_available_clears_task_switched() {
    let guest = ready();
    assert_eq!(guest.call(__HYPERVISOR_fpu_taskswitch, &[1]), 0);
    guest.with(|r| {
        assert_eq!(r.state.cr0 & 8, 8);
        r.exception(vector::NM, None, 0).unwrap();
        assert_eq!(r.state.cpu.regs().rip, HANDLER + 7);
        assert_eq!(r.state.cr0 & 8, 0);
    });
}

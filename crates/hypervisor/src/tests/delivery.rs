//! Bounce frames, iret, failsafe, events.

use ring3_abi::arch_x86::{FLAT_RING3_CS64, FLAT_RING3_SS64, iret_context, trap_info};
use ring3_engine::{GprName, GuestMode, rflags, vector};
use ring3_machine::Mfn;

use super::support::{ARGS, BASE, Guest, KERNEL_SP, SP, guest};
use crate::domain::apply_context;

const HANDLER: u64 = BASE + 0x123;

fn frame<const N: usize>(guest: &Guest) -> [u64; N] {
    let sp = guest.with(|r| r.state.cpu.regs().get(GprName::Rsp));
    let mut raw = [0u8; 256];
    guest.with(|r| r.domain.memory.read(&r.state.kernel_space(), sp, &mut raw[..N * 8]).unwrap());
    std::array::from_fn(|i| u64::from_le_bytes(raw[i * 8..i * 8 + 8].try_into().unwrap()))
}

/// With a user root (the same tables) and handlers for everything.
fn ready() -> Guest {
    let guest = guest();
    let domain = guest.domain();
    let vcpu = domain.vcpu(0).unwrap();
    let mut context = guest.context();
    context.ctrlreg[1] = guest.root().address();
    context.event_callback_eip = HANDLER + 1;
    context.failsafe_callback_eip = HANDLER + 2;
    context.syscall_callback_eip = HANDLER + 3;
    context.gs_base_kernel = 0x1111;
    context.gs_base_user = 0x2222;
    for (number, trap) in context.trap_ctxt.iter_mut().enumerate() {
        *trap = trap_info { vector: number as u8, flags: 4, address: HANDLER, ..Default::default() };
    }
    let mut state = vcpu.state.lock();
    apply_context(guest.hv.m2p(), &domain, vcpu, &mut state, &context).unwrap();
    state.cpu.regs_mut().set(GprName::Rcx, 0xc);
    state.cpu.regs_mut().set(GprName::R11, 0x11);
    drop(state);
    domain.vcpu(0).unwrap().info.set_upcall_mask(false);
    guest
}

fn to_user(guest: &Guest, rip: u64) {
    let frame = iret_context {
        rip,
        cs: u64::from(FLAT_RING3_CS64),
        ss: u64::from(FLAT_RING3_SS64),
        rsp: SP - 64,
        rflags: 0x202,
        rcx: 5,
        rax: 9,
        ..Default::default()
    };
    guest.write(SP - 256, &frame);
    guest.with(|r| {
        r.state.cpu.regs_mut().set(GprName::Rsp, SP - 256);
        r.iret().unwrap();
    });
}

#[test]
fn test_exception_in_kernel_pushes_below_the_stack_in_use() {
    let guest = ready();
    guest.with(|r| r.exception(vector::GP, Some(0x18), 0).unwrap());
    let ss = u64::from(FLAT_RING3_SS64);
    let cs = u64::from(FLAT_RING3_CS64 & !3);
    assert_eq!(frame::<8>(&guest), [0xc, 0x11, 0x18, BASE, cs, 0x1_0202, SP, ss]);
    guest.with(|r| {
        assert_eq!(r.state.cpu.regs().rip, HANDLER);
        assert_eq!(r.state.cpu.regs().cs, FLAT_RING3_CS64);
        assert!(r.vcpu.info.is_upcall_masked(), "the gate masks events");
    });
    // The mask as it was now shows in the next frame: in bits 32 to 39 of CS, and as IF clear.
    guest.with(|r| r.exception(vector::UD, None, 0).unwrap());
    let [_, _, rip, cs2, flags, ..] = frame::<7>(&guest);
    assert_eq!((rip, cs2, flags), (HANDLER, cs | 1 << 32, 0x1_0002));
}

#[test]
fn test_page_fault_from_user_switches_stack_and_gs() {
    let guest = ready();
    to_user(&guest, BASE + 7);
    guest.with(|r| {
        assert_eq!(r.state.cpu.mode(), GuestMode::User);
        assert_eq!(r.state.cpu.regs().get(GprName::Rax), 9);
        assert_eq!((r.state.cpu.regs().gs_base, r.state.cpu.regs().kernel_gs_base), (0x2222, 0x1111));
        r.exception(vector::PF, Some(2), 0x0dea_d000).unwrap();
        assert_eq!(r.state.cpu.regs().gs_base, 0x1111);
        assert_eq!(r.state.cpu.mode(), GuestMode::Kernel);
        assert_eq!(r.state.cr2, 0x0dea_d000);
    });
    let [rcx, _, code, rip, cs, _, rsp, _] = frame::<8>(&guest);
    assert_eq!((rcx, code, rip, cs, rsp), (5, 2 | 4, BASE + 7, u64::from(FLAT_RING3_CS64), SP - 64));
    let sp = guest.with(|r| r.state.cpu.regs().get(GprName::Rsp));
    assert_eq!(sp, KERNEL_SP - 64);
}

#[test]
fn test_syscall_from_user_is_bounced_without_error_code() {
    let guest = ready();
    to_user(&guest, BASE + 7);
    guest.with(|r| {
        r.state.cpu.regs_mut().rflags |= rflags::DF;
        r.syscall().unwrap();
    });
    let [_, _, rip, _, flags, ..] = frame::<7>(&guest);
    assert_eq!((rip, flags & rflags::DF), (BASE + 7, rflags::DF));
    guest.with(|r| {
        assert_eq!(r.state.cpu.regs().rip, HANDLER + 3);
        assert_eq!(r.state.cpu.regs().rflags & rflags::DF, 0, "as kernels expect it, which set no mask of their own");
    });
}

#[test]
fn test_iret_makes_null_selectors_zero() {
    let guest = ready();
    guest.with(|r| {
        let regs = r.state.cpu.regs_mut();
        (regs.ds, regs.es, regs.fs, regs.gs) = (3, 2, 1, 0xe02b);
    });
    to_user(&guest, BASE + 7);
    guest.with(|r| {
        let regs = r.state.cpu.regs();
        assert_eq!((regs.ds, regs.es, regs.fs, regs.gs), (0, 0, 0, 0xe02b));
    });
}

#[test]
fn test_event_upcall_waits_for_the_mask() {
    let guest = ready();
    guest.with(|r| {
        r.vcpu.info.set_upcall_mask(true);
        r.vcpu.info.set_upcall_pending();
        r.deliver_pending().unwrap();
        assert_eq!(r.state.cpu.regs().rip, BASE);
        r.vcpu.info.set_upcall_mask(false);
        r.deliver_pending().unwrap();
        assert_eq!(r.state.cpu.regs().rip, HANDLER + 1);
        assert!(r.vcpu.info.is_upcall_masked());
    });
}

#[test]
fn test_iret_with_a_bad_selector_faults_at_its_target() {
    let guest = ready();
    let target = iret_context { rip: BASE, cs: 0x1230, ss: 0xe02b, rsp: KERNEL_SP, ..Default::default() };
    guest.write(SP - 256, &target);
    guest.with(|r| {
        r.state.cpu.regs_mut().set(GprName::Rsp, SP - 256);
        r.iret().unwrap();
        assert_eq!(r.state.cpu.mode(), GuestMode::Kernel);
    });
    let words = frame::<8>(&guest);
    assert_eq!((words[2], words[3], words[4] & 0xffff), (0x1230, BASE, 0x1230));
}

#[test]
fn test_selectors_that_do_not_load_enter_the_failsafe_callback() {
    let guest = ready();
    guest.with(|r| {
        let regs = r.state.cpu.regs_mut();
        (regs.ds, regs.es, regs.fs, regs.gs) = (0xe02b, 0x1233, 0, 0x2337);
        r.load_segments().unwrap();
        let regs = r.state.cpu.regs();
        assert_eq!(regs.rip, HANDLER + 2);
        assert_eq!((regs.ds, regs.es, regs.fs, regs.gs), (0xe02b, 0, 0, 0));
    });
    let words = frame::<11>(&guest);
    assert_eq!(words[2..6], [0xe02b, 0x1233, 0, 0x2337]);
}

#[test]
fn test_iret_to_user_without_user_tables_cannot_be_delivered() {
    let guest = guest();
    guest.write(SP - 256, &iret_context { cs: 0x33, ..Default::default() });
    guest.with(|r| {
        assert_eq!(r.state.root(GuestMode::User), Mfn(0));
        r.state.cpu.regs_mut().set(GprName::Rsp, SP - 256);
        assert!(r.iret().is_err());
    });
}

#[test]
fn test_missing_handler_and_bad_stack_crash_with_a_report() {
    let guest = guest();
    guest.with(|r| {
        let error = r.exception(vector::PF, Some(0), 0x7777_0000).unwrap_err();
        r.crash(error);
    });
    let report = guest.hv.domain_crash_report(guest.domid).unwrap().unwrap();
    assert!(report.contains("no handler for a page fault"), "{report}");
    assert!(report.contains("page-table walk of 0000000077770000"), "{report}");
    let info = guest.hv.domain_info(guest.domid).unwrap();
    assert_eq!((info.flags >> 16) & 0xff, 3);

    let guest = ready();
    guest.with(|r| {
        r.state.cpu.regs_mut().set(GprName::Rsp, 0x5000_0000);
        assert!(r.exception(vector::UD, None, 0).is_err());
        r.state.cpu.regs_mut().set(GprName::Rsp, ARGS);
        assert!(r.exception(vector::UD, None, 0).is_ok());
    });
}

#[test]
fn test_int_n_needs_the_dpl_that_the_guest_set() {
    let guest = ready();
    to_user(&guest, BASE + 9);
    guest.with(|r| {
        r.state.traps[0x80].flags = 3;
        r.software_interrupt(0x81).unwrap();
    });
    // #GP with the vector as error code, back at the instruction.
    let words = frame::<8>(&guest);
    assert_eq!((words[2], words[3]), ((0x81 << 3) | 2, BASE + 7));
    to_user(&guest, BASE + 9);
    guest.with(|r| r.software_interrupt(0x80).unwrap());
    assert_eq!(frame::<7>(&guest)[2], BASE + 9);
}

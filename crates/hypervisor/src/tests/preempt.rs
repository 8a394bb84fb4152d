//! Calls about page tables that stop when the pCPU is wanted, and are made again as Xen has them made.

use ring3_abi::event_channel::*;
use ring3_abi::hypercall::*;
use ring3_abi::vcpu::VCPUOP_initialise;
use ring3_abi::xen::*;
use ring3_engine::{GprName, Requests, pte};

use super::support::{ARGS, BASE, Guest, build, guest, machine};

const DONE: u64 = ARGS + 512;
/// Two pages for a context.
const CONTEXT: u64 = BASE + 17 * 4096;

/// Pages 12 to 15 become a tree, L1 to L4, in memory that is mapped read-only.
fn tree(guest: &Guest) -> [ring3_machine::Mfn; 4] {
    let table = |level: usize| guest.mfns[11 + level];
    for level in 2..=4u64 {
        let entry = table(level as usize - 1).address() | pte::PRESENT | pte::RW | pte::USER;
        guest.write(BASE + (11 + level) * 4096 + 8 * 3, &entry);
    }
    guest.write(BASE + 12 * 4096 + 8 * 3, &(guest.mfns[20].address() | pte::PRESENT | pte::RW | pte::USER));
    for page in 12..=15u64 {
        let entry = guest.mfns[page as usize].address() | pte::PRESENT | pte::USER;
        assert_eq!(guest.call(__HYPERVISOR_update_va_mapping, &[BASE + page * 4096, entry, UVMF_INVLPG]), 0);
    }
    [1, 2, 3, 4].map(table)
}

/// Makes a call while the pCPU is wanted all the time, again as long as it says so; the result, and how often.
fn call_wanted(guest: &Guest, op: u32, args: [u64; 4]) -> (i64, u32) {
    let (mut args, mut nr_calls) = (args, 0);
    loop {
        guest.with(|r| r.vcpu.control.request(Requests::RESCHEDULE));
        let rip = guest.with(|r| r.state.cpu.regs().rip);
        let result = guest.call(op, &args);
        nr_calls += 1;
        assert_eq!(guest.hv.audit_stopped(), Vec::<String>::new(), "after {nr_calls}");
        if guest.with(|r| r.state.cpu.regs().rip) == rip {
            return (result, nr_calls);
        }
        assert_eq!(result, i64::from(op));
        args = guest.with(|r| {
            r.state.cpu.regs_mut().rip = rip;
            [GprName::Rdi, GprName::Rsi, GprName::Rdx, GprName::R10].map(|name| r.state.cpu.regs().get(name))
        });
    }
}

fn mmuext(guest: &Guest, cmd: u32, mfn: ring3_machine::Mfn) -> (i64, u32, u32) {
    guest.write(ARGS, &mmuext_op { cmd, _pad: 0, arg1: mfn.0, arg2: 0 });
    guest.write(DONE, &77u32);
    let (result, nr_calls) = call_wanted(guest, __HYPERVISOR_mmuext_op, [ARGS, 1, DONE, u64::from(DOMID_SELF)]);
    (result, nr_calls, guest.read(DONE))
}

fn type_counts(guest: &Guest, mfns: [ring3_machine::Mfn; 4]) -> [u64; 4] {
    mfns.map(|mfn| guest.hv.frames.info(mfn).unwrap().type_count)
}

#[test]
fn test_a_pin_and_its_end_come_in_pieces() {
    let guest = guest();
    let tables = tree(&guest);
    assert_eq!(
        mmuext(&guest, MMUEXT_PIN_L4_TABLE, tables[3]),
        (0, 6, 1),
        "three tables; the pin and the first of them; the others"
    );
    assert_eq!(type_counts(&guest, tables), [1; 4]);
    let (result, nr_calls, done) = mmuext(&guest, MMUEXT_UNPIN_TABLE, tables[3]);
    assert_eq!((result, done), (0, 1));
    assert!(nr_calls > 3, "{nr_calls}");
    assert_eq!(type_counts(&guest, tables), [0; 4]);
    // What is wrong is told when all is let go.
    let bad = guest.mfns[2].address() | pte::PRESENT | pte::PSE;
    guest.hv.memory.machine.write(tables[3], 8 * 9, &bad.to_le_bytes()).unwrap();
    let (result, nr_calls, done) = mmuext(&guest, MMUEXT_PIN_L4_TABLE, tables[3]);
    assert_eq!((result, done), (-ring3_abi::errno::EINVAL, 0));
    assert!(nr_calls > 3, "{nr_calls}");
    assert_eq!(type_counts(&guest, tables), [0; 4]);
}

#[test]
fn test_updates_stop_within_and_between_requests() {
    let guest = guest();
    let tables = tree(&guest);
    let root = guest.root();
    let entry = tables[2].address() | pte::PRESENT | pte::RW | pte::USER;
    let list = [entry, 0, entry, 0].map(|val| mmu_update { ptr: root.address() + 8 * 77, val });
    guest.write(ARGS, &list);
    guest.write(DONE, &0u32);
    let (result, nr_calls) = call_wanted(&guest, __HYPERVISOR_mmu_update, [ARGS, 4, DONE, u64::from(DOMID_SELF)]);
    assert_eq!((result, guest.read::<u32>(DONE)), (0, 4));
    assert!(nr_calls > 8, "{nr_calls}");
    assert_eq!(type_counts(&guest, tables), [0; 4]);
}

#[test]
fn test_what_a_stopped_call_holds_goes_with_the_next_one_or_the_domain() {
    let guest = guest();
    let tables = tree(&guest);
    guest.write(ARGS, &mmuext_op { cmd: MMUEXT_PIN_L4_TABLE, _pad: 0, arg1: tables[3].0, arg2: 0 });
    for is_last in [false, true] {
        guest.with(|r| r.vcpu.control.request(Requests::RESCHEDULE));
        let stopped = guest.call(__HYPERVISOR_mmuext_op, &[ARGS, 1, 0, u64::from(DOMID_SELF)]);
        assert_eq!(stopped, i64::from(__HYPERVISOR_mmuext_op));
        assert_eq!(type_counts(&guest, tables), [1, 0, 0, 0]);
        if !is_last {
            assert_eq!(guest.call(__HYPERVISOR_mmuext_op, &[0, 0, 0, u64::from(DOMID_SELF)]), 0);
            assert_eq!(type_counts(&guest, tables), [0; 4]);
        }
    }
    let nr_free = guest.hv.frames.nr_free_frames();
    guest.hv.domain_destroy(guest.domid).unwrap();
    assert!(guest.hv.frames.nr_free_frames() > nr_free);
    assert!(tables.iter().all(|&mfn| guest.hv.frames.info(mfn).unwrap().count == 0));
    assert_eq!(guest.hv.audit_stopped(), Vec::<String>::new());
}

#[test]
fn test_a_root_set_by_mov_to_cr3_comes_in_pieces() {
    let guest = guest();
    let tables = tree(&guest);
    guest.write(BASE, &[0x0fu8, 0x22, 0xda]); // mov %rdx, %cr3
    let mut nr_tries = 0;
    let is_done = || {
        guest.with(|r| {
            r.vcpu.control.request(Requests::RESCHEDULE);
            let regs = r.state.cpu.regs_mut();
            regs.set(GprName::Rdx, tables[3].address());
            regs.rip = BASE;
            r.privileged().unwrap();
            r.state.cpu.regs().rip != BASE
        })
    };
    while !is_done() {
        nr_tries += 1;
        assert_eq!(guest.hv.audit_stopped(), Vec::<String>::new(), "after {nr_tries}");
    }
    assert_eq!(nr_tries, 3, "three tables below the root");
    assert_eq!(guest.with(|r| r.state.kernel_space().root), tables[3]);
    assert!(guest.with(|r| r.state.long.is_draining()), "what was prepared, and the old root");
    guest.with(|r| r.hv.frames.drain(&mut r.state.long, &mut || false));
    assert_eq!(type_counts(&guest, tables), [1; 4]);
    assert_eq!(guest.hv.audit_stopped(), Vec::<String>::new());
}

#[test]
fn test_a_context_of_another_vcpu_comes_in_pieces() {
    let (hv, _) = machine();
    let guest = build(&hv, 2);
    let tables = tree(&guest);
    let mut context = guest.context();
    context.ctrlreg[1] = tables[3].address();
    guest.write(CONTEXT, &context);
    let args = [u64::from(VCPUOP_initialise), 1, CONTEXT, 0];
    let (result, nr_calls) = call_wanted(&guest, __HYPERVISOR_vcpu_op, args);
    assert_eq!((result, nr_calls), (0, 4));
    guest.with(|r| r.hv.frames.drain(&mut r.state.long, &mut || false));
    assert_eq!(type_counts(&guest, tables), [1; 4]);
    // A context that is refused leaves nothing behind.
    assert_eq!(call_wanted(&guest, __HYPERVISOR_vcpu_op, args).0, -ring3_abi::errno::EEXIST);
    assert_eq!(guest.hv.audit_stopped(), Vec::<String>::new());
}

fn alloc_unbound(guest: &Guest) -> u32 {
    guest.write(ARGS, &evtchn_alloc_unbound { dom: DOMID_SELF, remote_dom: DOMID_SELF, port: 0 });
    assert_eq!(guest.call(__HYPERVISOR_event_channel_op, &[u64::from(EVTCHNOP_alloc_unbound), ARGS]), 0);
    guest.read::<evtchn_alloc_unbound>(ARGS).port
}

#[test]
fn test_a_reset_of_event_channels_comes_in_pieces() {
    let guest = guest();
    for _ in 0..200 {
        alloc_unbound(&guest);
    }
    let last = alloc_unbound(&guest);
    guest.write(ARGS, &evtchn_reset { dom: DOMID_SELF });
    let args = [u64::from(EVTCHNOP_reset), ARGS, 3, 4];
    // Ports up to the last one are in use but for port 0; 64 go at once.
    assert_eq!(call_wanted(&guest, __HYPERVISOR_event_channel_op, args), (0, last.div_ceil(64)));
    assert_eq!(alloc_unbound(&guest), 1);
}

//! Threads, pauses, timers, shutdown, destruction.

use std::time::{Duration, Instant};

use ring3_abi::event_channel::evtchn_bind_virq;
use ring3_abi::hypercall::*;
use ring3_abi::sched::{SCHEDOP_block, SCHEDOP_shutdown, sched_shutdown};
use ring3_abi::vcpu::vcpu_set_singleshot_timer;
use ring3_engine::{Exit, GprName, Regs};

use super::support::{ARGS, build, create, guest, machine};

fn hypercall(regs: &mut Regs, op: u32, args: [u64; 3]) -> Exit {
    regs.set(GprName::Rax, u64::from(op));
    for (name, value) in [GprName::Rdi, GprName::Rsi, GprName::Rdx].into_iter().zip(args) {
        regs.set(name, value);
    }
    Exit::Hypercall
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn test_fifty_domains_in_turn_give_everything_back() {
    let (hv, _) = machine();
    hv.start().unwrap();
    let free = hv.frames.nr_free_frames();
    for round in 0..50 {
        let guest = build(&hv, 1 + round % 3);
        guest.write(ARGS, &evtchn_bind_virq::default());
        assert_eq!(guest.call(__HYPERVISOR_event_channel_op, &[1, ARGS]), 0);
        guest.write(ARGS, &ring3_abi::vcpu::vcpu_register_vcpu_info { mfn: guest.mfns[9].0, offset: 0, rsvd: 0 });
        assert_eq!(guest.call(__HYPERVISOR_vcpu_op, &[10, 0, ARGS]), 0);
        guest.write(
            ARGS,
            &ring3_abi::grant_table::gnttab_setup_table {
                dom: ring3_abi::xen::DOMID_SELF,
                nr_frames: 2,
                frame_list: ARGS + 64,
                ..Default::default()
            },
        );
        assert_eq!(guest.call(__HYPERVISOR_grant_table_op, &[2, ARGS, 1]), 0);
        hv.domain_unpause(guest.domid).unwrap();
        hv.domain_destroy(guest.domid).unwrap();
        assert!(hv.domain_info(guest.domid).is_err());
    }
    hv.frames.drain_limbo();
    assert_eq!(hv.frames.nr_free_frames(), free);
    assert_eq!(hv.timers.nr_armed(), 0);
    assert!(hv.domain_list().is_empty());
    hv.stop();
}

#[test]
fn test_singleshot_timer_wakes_a_blocked_vcpu() {
    let (hv, scripts) = machine();
    let guest = build(&hv, 1);
    guest.write(ARGS, &evtchn_bind_virq::default());
    assert_eq!(guest.call(__HYPERVISOR_event_channel_op, &[1, ARGS]), 0);
    guest.with(|r| r.state.event_callback = super::support::BASE + 5);
    let deadline = hv.clock.now_ns() + 30_000_000;
    guest.write(ARGS, &vcpu_set_singleshot_timer { timeout_abs_ns: deadline, ..Default::default() });
    scripts.push(0, |regs| hypercall(regs, __HYPERVISOR_vcpu_op, [8, 0, ARGS]));
    scripts.push(0, |regs| hypercall(regs, __HYPERVISOR_sched_op, [u64::from(SCHEDOP_block), 0, 0]));
    let (woken, when) = std::sync::mpsc::channel();
    scripts.push(0, move |regs| {
        woken.send(regs.rip).unwrap();
        hypercall(regs, __HYPERVISOR_xen_version, [0, 0, 0])
    });
    hv.start().unwrap();
    hv.domain_unpause(guest.domid).unwrap();
    let rip = when.recv_timeout(Duration::from_secs(5)).unwrap();
    assert!(hv.clock.now_ns() >= deadline);
    assert_eq!(rip, super::support::BASE + 5, "it wakes into its event callback");
    hv.stop();
}

#[test]
fn test_pauses_count_and_stop_the_vcpu() {
    let (hv, _) = machine();
    let guest = build(&hv, 1);
    hv.start().unwrap();
    hv.domain_unpause(guest.domid).unwrap();
    wait_until("it runs", || hv.vcpu_summary(guest.domid, 0).unwrap().running);
    hv.domain_pause(guest.domid).unwrap();
    hv.domain_pause(guest.domid).unwrap();
    assert!(!hv.vcpu_summary(guest.domid, 0).unwrap().running);
    hv.domain_unpause(guest.domid).unwrap();
    assert!(!hv.vcpu_summary(guest.domid, 0).unwrap().running);
    hv.domain_unpause(guest.domid).unwrap();
    wait_until("it runs again", || hv.vcpu_summary(guest.domid, 0).unwrap().running);
    assert!(hv.domain_unpause(guest.domid).is_err());
    hv.stop();
}

#[test]
fn test_shutdown_keeps_its_reason_and_the_domain() {
    let (hv, scripts) = machine();
    let guest = build(&hv, 1);
    guest.write(ARGS, &sched_shutdown { reason: 1 });
    scripts.push(0, |regs| hypercall(regs, __HYPERVISOR_sched_op, [u64::from(SCHEDOP_shutdown), ARGS, 0]));
    hv.start().unwrap();
    hv.domain_unpause(guest.domid).unwrap();
    wait_until("it shut down", || hv.domain_info(guest.domid).unwrap().flags & 4 != 0);
    assert_eq!(hv.domain_info(guest.domid).unwrap().flags >> 16, 1);
    wait_until("it stopped", || !hv.vcpu_summary(guest.domid, 0).unwrap().running);
    hv.stop();
}

#[test]
fn test_more_vcpus_than_pcpus_all_run() {
    let (hv, _) = machine();
    let guests: Vec<_> = (0..4).map(|_| build(&hv, 1)).collect();
    hv.start().unwrap();
    guests.iter().for_each(|guest| hv.domain_unpause(guest.domid).unwrap());
    wait_until("each gets its turn", || {
        guests.iter().all(|guest| hv.vcpu_summary(guest.domid, 0).unwrap().cpu_time_ns > 1_000_000)
    });
    hv.stop();
}

#[test]
fn test_an_engine_failure_costs_one_domain() {
    let (hv, scripts) = machine();
    let guest = build(&hv, 1);
    scripts.push(0, |_| Exit::Failed("no room"));
    hv.start().unwrap();
    hv.domain_unpause(guest.domid).unwrap();
    wait_until("it crashed", || hv.domain_crash_report(guest.domid).unwrap().is_some());
    assert_eq!(hv.domain_info(guest.domid).unwrap().flags >> 16, 3);
    let other = build(&hv, 1);
    hv.domain_unpause(other.domid).unwrap();
    wait_until("others run", || hv.vcpu_summary(other.domid, 0).unwrap().running);
    hv.stop();
}

#[test]
fn test_context_is_read_back_as_it_was_set() {
    let guest = guest();
    let mut context = guest.context();
    context.user_regs.r15 = 15;
    context.user_regs.rax = 10;
    context.gs_base_kernel = 0x7000;
    context.trap_ctxt[3].address = 0x3000;
    guest.hv.vcpu_set_context(guest.domid, 0, &context).unwrap();
    let back = guest.hv.vcpu_get_context(guest.domid, 0).unwrap();
    assert_eq!((back.user_regs.r15, back.user_regs.rax, back.gs_base_kernel), (15, 10, 0x7000));
    assert_eq!((back.ctrlreg[3], back.trap_ctxt[3].address), (guest.root().address(), 0x3000));
    context.user_regs.rip = 0x8000_0000_0000;
    assert!(guest.hv.vcpu_set_context(guest.domid, 0, &context).is_err());
}

#[test]
fn test_creation_is_refused_as_xen_does() {
    let (hv, _) = machine();
    assert_eq!(hv.domain_create(&create(0)).unwrap_err().errno(), 22);
    assert_eq!(hv.domain_create(&create(129)).unwrap_err().errno(), 22);
    let first = hv.domain_create(&create(1)).unwrap();
    let mut again = create(1);
    again.domid = first;
    assert_eq!(hv.domain_create(&again).unwrap_err().errno(), 17);
    again.domid = 0x7ff0;
    assert_eq!(hv.domain_create(&again).unwrap_err().errno(), 22);
    assert_eq!(hv.domain_destroy(999).unwrap_err().errno(), 3);
    hv.stop();
}

#[test]
fn test_a_watchdog_that_is_not_fed_shuts_the_domain_down() {
    let (hv, _) = machine();
    let guest = build(&hv, 1);
    let watchdog = |id, timeout| {
        guest.write(ARGS, &ring3_abi::sched::sched_watchdog { id, timeout });
        guest.call(__HYPERVISOR_sched_op, &[u64::from(ring3_abi::sched::SCHEDOP_watchdog), ARGS])
    };
    assert_eq!(watchdog(0, 100), 1);
    assert_eq!(watchdog(0, 1), 2);
    assert_eq!(watchdog(0, 1), i64::from(u32::MAX - 27), "-ENOSPC, as 32 bits");
    hv.start().unwrap();
    let start = Instant::now();
    wait_until("the second one fires", || guest.domain().life.lock().shutdown.is_some());
    assert!(start.elapsed() >= Duration::from_millis(900));
    assert_eq!(guest.domain().life.lock().shutdown, Some(ring3_abi::sched::SHUTDOWN_watchdog));
    hv.domain_destroy(guest.domid).unwrap();
    assert_eq!(hv.timers.nr_armed(), 0);
    hv.stop();
}

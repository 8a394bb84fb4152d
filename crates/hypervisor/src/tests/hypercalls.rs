//! Hypercalls, made directly.

use ring3_abi::errno::*;
use ring3_abi::event_channel::*;
use ring3_abi::hypercall::*;
use ring3_abi::sched::*;
use ring3_abi::xen::*;
use ring3_engine::{GprName, pte};

use super::support::{ARGS, BASE, NR_PAGES, build, guest, machine};

#[test]
fn test_unknown_numbers_and_bad_handles() {
    let guest = guest();
    for op in [11, 43, 63, 64, 4096] {
        assert_eq!(guest.call(op, &[]), -ENOSYS, "{op}");
    }
    for (op, version) in
        [(__HYPERVISOR_domctl, 0x15), (__HYPERVISOR_sysctl, 0x15), (__HYPERVISOR_platform_op, 0x0300_0001)]
    {
        assert_eq!(guest.call(op, &[0]), -EFAULT, "{op}");
        guest.write(ARGS, &[5u32, version - 1, 0, 0]);
        assert_eq!(guest.call(op, &[ARGS]), -EACCES, "{op}: another version");
        guest.write(ARGS, &[5u32, version, 0, 0]);
        assert_eq!(guest.call(op, &[ARGS]), -EPERM, "{op}");
    }
    guest.write(ARGS, &[3u32, 0x15, u32::from(DOMID_SELF), 0]);
    assert_eq!(guest.call(__HYPERVISOR_domctl, &[ARGS]), -ESRCH, "DOMID_SELF is no domain there");
    for (op, args) in [
        (__HYPERVISOR_set_trap_table, vec![0x5000_0000u64]),
        (__HYPERVISOR_xen_version, vec![1, 0x5000_0000]),
        (__HYPERVISOR_event_channel_op, vec![4, 0x8000_0000_0000]),
        (__HYPERVISOR_memory_op, vec![12, u64::MAX - 3]),
        (__HYPERVISOR_vcpu_op, vec![10, 0, 0]),
    ] {
        assert_eq!(guest.call(op, &args), -EFAULT, "{op}");
    }
    assert_eq!(guest.call(__HYPERVISOR_vcpu_op, &[3, 5000, 0]), -ENOENT);
    assert_eq!(guest.call(__HYPERVISOR_xen_version, &[0]), (4 << 16) | 17);
}

#[test]
fn test_multicall_serves_each_and_refuses_nesting() {
    let guest = guest();
    let entry = |op: u32, args: [u64; 6]| multicall_entry { op: u64::from(op), result: 77, args };
    let list = [
        entry(__HYPERVISOR_xen_version, [0; 6]),
        entry(__HYPERVISOR_multicall, [ARGS, 1, 0, 0, 0, 0]),
        entry(__HYPERVISOR_stack_switch, [0xe02b, 0x1234_5678, 0, 0, 0, 0]),
        entry(60, [0; 6]),
    ];
    for (index, entry) in list.iter().enumerate() {
        guest.write(ARGS + index as u64 * 64, entry);
    }
    assert_eq!(guest.call(__HYPERVISOR_multicall, &[ARGS, 4]), 0);
    let result = |index: u64| guest.read::<multicall_entry>(ARGS + index * 64).result as i64;
    assert_eq!([result(0), result(1), result(2), result(3)], [(4 << 16) | 17, -EINVAL, 0, -ENOSYS]);
    guest.with(|r| assert_eq!(r.state.kernel_sp, 0x1234_5678));
}

#[test]
fn test_multicall_is_continued_when_the_pcpu_is_wanted() {
    let guest = guest();
    for index in 0..3 {
        guest.write(ARGS + index * 64, &multicall_entry { op: 17, ..Default::default() });
    }
    guest.with(|r| r.vcpu.control.request(ring3_engine::Requests::RESCHEDULE));
    let rip = guest.with(|r| r.state.cpu.regs().rip);
    assert_eq!(guest.call(__HYPERVISOR_multicall, &[ARGS, 3]), i64::from(__HYPERVISOR_multicall));
    guest.with(|r| {
        assert_eq!(r.state.cpu.regs().rip, rip - 2);
        assert_eq!(r.state.cpu.regs().get(GprName::Rdi), ARGS + 64);
        assert_eq!(r.state.cpu.regs().get(GprName::Rsi), 2);
    });
}

#[test]
fn test_page_tables_change_only_by_the_rules() {
    let guest = guest();
    let data = guest.mfns[20].address();
    let va = BASE + 20 * 4096;
    assert_eq!(guest.call(__HYPERVISOR_update_va_mapping, &[va, data | pte::PRESENT, UVMF_INVLPG]), 0);
    let table = guest.mfns[(NR_PAGES - 1) as usize].address();
    assert!(guest.call(__HYPERVISOR_update_va_mapping, &[va, table | pte::PRESENT | pte::RW, 0]) < 0);
    assert!(guest.call(__HYPERVISOR_update_va_mapping, &[va, 0x7fff_f000 | pte::PRESENT, 0]) < 0);
    guest.write(ARGS, &mmu_update { ptr: table + 8, val: data | pte::PRESENT | pte::RW });
    guest.write(ARGS + 16, &mmu_update { ptr: table + 8, val: table | pte::PRESENT | pte::RW });
    assert!(guest.call(__HYPERVISOR_mmu_update, &[ARGS, 2, ARGS + 64, u64::from(DOMID_SELF)]) < 0);
    assert_eq!(guest.read::<u32>(ARGS + 64), 1, "one of the two was done");
    assert_eq!(guest.call(__HYPERVISOR_mmu_update, &[ARGS, 1, 0, 9]), -ESRCH);
    assert_eq!(guest.call(__HYPERVISOR_mmu_update, &[ARGS, 1, 0, 0]), -EPERM);
}

#[test]
fn test_console_output_reaches_the_dmesg_ring() {
    let guest = guest();
    guest.write(ARGS, b"hello, xen\n\x07bell\n!");
    assert_eq!(guest.call(__HYPERVISOR_console_io, &[0, 17, ARGS]), 0);
    let (_, text) = guest.hv.dmesg.text();
    let expected = format!("(d{0}) hello, xen\n(d{0}) bell\n", guest.domid);
    assert!(String::from_utf8(text).unwrap().ends_with(&expected));
}

#[test]
fn test_event_channels_connect_two_domains() {
    let (hv, _) = machine();
    let (a, b) = (build(&hv, 1), build(&hv, 2));
    a.write(ARGS, &evtchn_alloc_unbound { dom: DOMID_SELF, remote_dom: b.domid, port: 0 });
    assert_eq!(a.call(__HYPERVISOR_event_channel_op, &[6, ARGS]), 0);
    let port: evtchn_alloc_unbound = a.read(ARGS);
    assert_eq!(port.port, 1);
    let bind = evtchn_bind_interdomain { remote_dom: a.domid, remote_port: 1, ..Default::default() };
    b.write(ARGS, &bind);
    assert_eq!(b.call(__HYPERVISOR_event_channel_op, &[0, ARGS]), 0);
    assert_eq!(b.call(__HYPERVISOR_event_channel_op, &[0, ARGS]), -EINVAL, "bound already");
    b.write(ARGS, &evtchn_send { port: 1 });
    assert_eq!(b.call(__HYPERVISOR_event_channel_op, &[4, ARGS]), 0);
    assert_eq!(hv.evtchn_bits(&a.domain(), 1), (true, false));
    assert!(a.domain().vcpu(0).unwrap().info.is_upcall_pending());
    a.write(ARGS, &evtchn_status { dom: DOMID_SELF, port: 1, ..Default::default() });
    assert_eq!(a.call(__HYPERVISOR_event_channel_op, &[5, ARGS]), 0);
    let status: evtchn_status = a.read(ARGS);
    assert_eq!((status.status, status.u), (EVTCHNSTAT_interdomain, [u32::from(b.domid), 1]));
    // The other end closes: unbound again, for the same domain.
    b.write(ARGS, &evtchn_close { port: 1 });
    assert_eq!(b.call(__HYPERVISOR_event_channel_op, &[3, ARGS]), 0);
    a.write(ARGS, &evtchn_status { dom: DOMID_SELF, port: 1, ..Default::default() });
    assert_eq!(a.call(__HYPERVISOR_event_channel_op, &[5, ARGS]), 0);
    assert_eq!(a.read::<evtchn_status>(ARGS).status, EVTCHNSTAT_unbound);
    // A stranger cannot ask for others, nor make ports for them.
    a.write(ARGS, &evtchn_alloc_unbound { dom: b.domid, remote_dom: 0, port: 0 });
    assert_eq!(a.call(__HYPERVISOR_event_channel_op, &[6, ARGS]), -EPERM);
}

#[test]
fn test_virqs_and_ipis_bind_once_and_to_real_vcpus() {
    let guest = guest();
    let bind = |virq, vcpu| {
        guest.write(ARGS, &evtchn_bind_virq { virq, vcpu, port: 0 });
        guest.call(__HYPERVISOR_event_channel_op, &[1, ARGS])
    };
    assert_eq!(bind(VIRQ_TIMER, 0), 0);
    assert_eq!(bind(VIRQ_TIMER, 0), -EEXIST);
    assert_eq!(bind(VIRQ_DEBUG, 1), -ENOENT);
    assert_eq!(bind(99, 0), -EINVAL);
    guest.write(ARGS, &evtchn_bind_ipi { vcpu: 0, port: 0 });
    assert_eq!(guest.call(__HYPERVISOR_event_channel_op, &[7, ARGS]), 0);
    guest.write(ARGS, &evtchn_send { port: 2 });
    assert_eq!(guest.call(__HYPERVISOR_event_channel_op, &[4, ARGS]), 0);
    assert_eq!(guest.hv.evtchn_bits(&guest.domain(), 2), (true, false));
}

#[test]
fn test_vcpu_info_moves_once() {
    let guest = guest();
    let place = guest.mfns[12].0;
    guest.write(ARGS, &ring3_abi::vcpu::vcpu_register_vcpu_info { mfn: place, offset: 128, rsvd: 0 });
    assert_eq!(guest.call(__HYPERVISOR_vcpu_op, &[10, 0, ARGS]), 0);
    assert_eq!(guest.call(__HYPERVISOR_vcpu_op, &[10, 0, ARGS]), -EINVAL);
    let info: vcpu_info = guest.read(BASE + 12 * 4096 + 128);
    assert_eq!((info.evtchn_upcall_mask, info.evtchn_pending_sel), (1, u64::MAX));
    assert!(info.time.tsc_to_system_mul != 0 && info.time.version.is_multiple_of(2));
}

#[test]
fn test_block_returns_at_once_when_an_event_is_pending() {
    let guest = guest();
    guest.with(|r| {
        r.vcpu.info.set_upcall_pending();
    });
    assert_eq!(guest.call(__HYPERVISOR_sched_op, &[u64::from(SCHEDOP_block)]), 0);
    guest.with(|r| {
        assert!(!r.vcpu.info.is_upcall_masked());
        assert!(!r.vcpu.blocked.load(std::sync::atomic::Ordering::SeqCst));
    });
}

#[test]
fn test_reservation_grows_and_shrinks_within_its_limit() {
    let guest = guest();
    let reservation = ring3_abi::memory::xen_memory_reservation {
        extent_start: ARGS + 64,
        nr_extents: 1,
        domid: DOMID_SELF,
        ..Default::default()
    };
    guest.write(ARGS, &reservation);
    guest.write(ARGS + 64, &100u64);
    assert_eq!(guest.call(__HYPERVISOR_memory_op, &[6, ARGS]), 0, "at the limit");
    guest.hv.domain_set_max_pages(guest.domid, NR_PAGES + 1).unwrap();
    assert_eq!(guest.call(__HYPERVISOR_memory_op, &[6, ARGS]), 1);
    let mfn: u64 = guest.read(ARGS + 64);
    assert_eq!(guest.hv.frames.m2p_entry(ring3_machine::Mfn(mfn)), Some(100));
    assert_eq!(guest.call(__HYPERVISOR_memory_op, &[1, ARGS]), 1);
    assert_eq!(guest.call(__HYPERVISOR_memory_op, &[1, ARGS]), 0, "not ours any more");
}

#[test]
fn test_reservations_come_in_extents_and_say_how_far_they_came() {
    let guest = guest();
    guest.hv.domain_set_max_pages(guest.domid, NR_PAGES + 40).unwrap();
    let reservation = |nr_extents, extent_order| ring3_abi::memory::xen_memory_reservation {
        extent_start: ARGS + 64,
        nr_extents,
        extent_order,
        domid: DOMID_SELF,
        ..Default::default()
    };
    guest.write(ARGS + 64, &[0x1000u64, 0x2000, 0x3000, 0x4000]);
    guest.write(ARGS, &reservation(4, 4));
    assert_eq!(guest.call(__HYPERVISOR_memory_op, &[6, ARGS]), 2, "32 of 40 pages");
    let mfns: [u64; 3] = guest.read(ARGS + 64);
    assert!(mfns[0].is_multiple_of(16) && mfns[2] == 0x3000);
    assert_eq!(guest.hv.frames.m2p_entry(ring3_machine::Mfn(mfns[1] + 5)), Some(0x2005));
    guest.write(ARGS, &reservation(2, 4));
    assert_eq!(guest.call(__HYPERVISOR_memory_op, &[1, ARGS]), 2);
    assert_eq!(guest.domain().mm.nr_pages(), NR_PAGES);
    for (nr, order, start) in [(4, 10, 0), (4, 4, 9), (1 << 62, 0, 0)] {
        guest.write(ARGS, &reservation(nr, order));
        assert_eq!(guest.call(__HYPERVISOR_memory_op, &[6 | start << 6, ARGS]), start as i64);
    }
}

#[test]
fn test_a_long_reservation_is_continued_when_the_pcpu_is_wanted() {
    let guest = guest();
    guest.hv.domain_set_max_pages(guest.domid, NR_PAGES + 1500).unwrap();
    let reservation =
        ring3_abi::memory::xen_memory_reservation { nr_extents: 1200, domid: DOMID_SELF, ..Default::default() };
    guest.write(ARGS, &reservation);
    guest.with(|r| r.vcpu.control.request(ring3_engine::Requests::RESCHEDULE));
    assert_eq!(guest.call(__HYPERVISOR_memory_op, &[0, ARGS]), i64::from(__HYPERVISOR_memory_op));
    guest.with(|r| assert_eq!(r.state.cpu.regs().get(GprName::Rdi), 512 << 6));
    assert_eq!(guest.domain().mm.nr_pages(), NR_PAGES + 512);
}

#[test]
fn test_iret_leaves_a_multicall() {
    let guest = guest();
    let frame: [u64; 9] = [7, 11, 12, 0, BASE + 64, 0xe030, 0x202, BASE + 4096, 0xe02b];
    guest.write(super::support::SP, &frame);
    guest.write(ARGS, &multicall_entry { op: 17, ..Default::default() });
    guest.write(ARGS + 64, &multicall_entry { op: 23, ..Default::default() });
    guest.write(ARGS + 128, &multicall_entry { op: 17, ..Default::default() });
    assert_eq!(guest.call(__HYPERVISOR_multicall, &[ARGS, 3]), 7, "RAX of the frame");
    guest.with(|r| assert_eq!(r.state.cpu.regs().rip, BASE + 64));
    assert_eq!(guest.read::<multicall_entry>(ARGS + 128).result, 0, "not served");
}

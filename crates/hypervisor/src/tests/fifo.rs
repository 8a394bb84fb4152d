//! The FIFO event ABI, with a guest's half played by threads.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use ring3_abi::errno::*;
use ring3_abi::event_channel::*;
use ring3_abi::hypercall::__HYPERVISOR_event_channel_op;
use ring3_abi::xen::{DOMID_SELF, VIRQ_DOM_EXC};
use ring3_machine::{Machine, Mfn};

use super::support::{ARGS, Guest, NR_PAGES, build, machine};

const PENDING: u32 = 1 << EVTCHN_FIFO_PENDING;
const LINKED: u32 = 1 << EVTCHN_FIFO_LINKED;
/// Page of the event array; the control blocks of the vCPUs are in the next ones.
const ARRAY: u64 = 16;

impl Guest {
    fn evtchn<T: bytemuck::Pod>(&self, cmd: u32, op: &T) -> (i64, T) {
        self.write(ARGS, op);
        let result = self.call(__HYPERVISOR_event_channel_op, &[u64::from(cmd), ARGS]);
        (result, self.read(ARGS))
    }

    fn start_fifo(&self, nr_vcpus: u32) {
        for vcpu in 0..nr_vcpus {
            let control_gfn = self.mfns[(ARRAY + 1 + u64::from(vcpu)) as usize].0;
            let init = evtchn_init_control { control_gfn, vcpu, ..Default::default() };
            assert_eq!(self.evtchn(EVTCHNOP_init_control, &init).0, 0);
        }
        let array_gfn = self.mfns[ARRAY as usize].0;
        assert_eq!(self.evtchn(EVTCHNOP_expand_array, &evtchn_expand_array { array_gfn }).0, 0);
    }

    fn bind_ipi(&self, vcpu: u32) -> u32 {
        let (result, op) = self.evtchn(EVTCHNOP_bind_ipi, &evtchn_bind_ipi { vcpu, port: 0 });
        assert_eq!(result, 0);
        op.port
    }
}

/// A guest's view of its event array and of one vCPU's control block.
struct Consumer<'a> {
    machine: &'a Machine,
    array: Mfn,
    block: Mfn,
    heads: [u32; EVTCHN_FIFO_MAX_QUEUES],
}

impl Consumer<'_> {
    fn word(&self, port: u32) -> &AtomicU32 {
        self.machine.word32(self.array, port as usize * 4).unwrap()
    }

    /// Takes all events, as a guest does in its upcall.
    fn take_all(&mut self, mut event: impl FnMut(u32)) {
        let ready_word = self.machine.word32(self.block, 0).unwrap();
        let mut ready = ready_word.swap(0, Ordering::SeqCst);
        while ready != 0 {
            let priority = ready.trailing_zeros() as usize;
            if self.heads[priority] == 0 {
                self.heads[priority] =
                    self.machine.word32(self.block, 8 + priority * 4).unwrap().load(Ordering::SeqCst);
            }
            let port = self.heads[priority];
            let old = self
                .word(port)
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |word| Some(word & !(LINKED | EVTCHN_FIFO_LINK_MASK)))
                .unwrap();
            self.heads[priority] = old & EVTCHN_FIFO_LINK_MASK;
            if self.heads[priority] == 0 {
                ready &= !(1 << priority);
            }
            if self.word(port).fetch_and(!PENDING, Ordering::SeqCst) & PENDING != 0 {
                event(port);
            }
            ready |= ready_word.swap(0, Ordering::SeqCst);
        }
    }
}

#[test]
fn test_no_event_is_lost_between_senders_and_consumers() {
    const NR_PORTS: u32 = 12;
    let (hv, _) = machine();
    let guest = build(&hv, 2);
    guest.start_fifo(2);
    let ports: Vec<u32> = (0..NR_PORTS).map(|n| guest.bind_ipi(n % 2)).collect();
    let domain = guest.domain();
    let sent: Vec<AtomicU64> = ports.iter().map(|_| AtomicU64::new(0)).collect();
    let (is_over, nr_taken) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let consumers: Vec<_> = (0..2usize)
            .map(|vcpu| {
                let (hv, guest, is_over, nr_taken) = (&hv, &guest, &is_over, &nr_taken);
                scope.spawn(move || {
                    let block = guest.mfns[ARRAY as usize + 1 + vcpu];
                    let array = guest.mfns[ARRAY as usize];
                    let mut consumer = Consumer { machine: &hv.memory.machine, array, block, heads: [0; 16] };
                    loop {
                        let was_over = is_over.load(Ordering::SeqCst);
                        consumer.take_all(|_| {
                            nr_taken.fetch_add(1, Ordering::SeqCst);
                        });
                        if was_over {
                            return;
                        }
                        std::thread::yield_now();
                    }
                })
            })
            .collect();
        let senders: Vec<_> = (0..3u32)
            .map(|seed| {
                let (hv, domain, ports, sent) = (&hv, &domain, &ports, &sent);
                scope.spawn(move || {
                    let mut random = 12345 + seed;
                    for n in 0..20_000 {
                        random = random.wrapping_mul(1_103_515_245).wrapping_add(12345);
                        let index = (random >> 16) as usize % ports.len();
                        let port = ports[index];
                        if n % 64 == 0 {
                            hv.evtchn_set_priority(domain, port, random >> 28).unwrap();
                        }
                        sent[index].fetch_add(1, Ordering::SeqCst);
                        hv.evtchn_send(domain, port).unwrap();
                    }
                })
            })
            .collect();
        senders.into_iter().for_each(|thread| thread.join().unwrap());
        is_over.store(true, Ordering::SeqCst);
        consumers.into_iter().for_each(|thread| thread.join().unwrap());
    });
    for &port in &ports {
        let word = hv.memory.machine.word32(guest.mfns[ARRAY as usize], port as usize * 4).unwrap();
        assert_eq!(word.load(Ordering::SeqCst), 0, "port {port} was left behind");
    }
    let nr_sent: u64 = sent.iter().map(|n| n.load(Ordering::SeqCst)).sum();
    let nr_taken = nr_taken.load(Ordering::SeqCst);
    assert!(nr_taken >= u64::from(NR_PORTS) && nr_taken <= nr_sent, "{nr_taken} of {nr_sent}");
}

#[test]
fn test_a_guest_that_writes_nonsense_to_its_array_harms_itself_only() {
    let (hv, _) = machine();
    let (guest, other) = (build(&hv, 1), build(&hv, 1));
    guest.start_fifo(1);
    let port = guest.bind_ipi(0);
    let domain = guest.domain();
    let mut random = 99u64;
    for _ in 0..20_000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let word = hv.memory.machine.word32(guest.mfns[ARRAY as usize], (random >> 40) as usize % 64 * 4).unwrap();
        word.store((random >> 16) as u32, Ordering::SeqCst);
        let block = hv.memory.machine.word32(guest.mfns[ARRAY as usize + 1], (random >> 50) as usize % 18 * 4).unwrap();
        block.store(random as u32, Ordering::SeqCst);
        let _ = hv.evtchn_send(&domain, port);
        let _ = hv.evtchn_unmask(&domain, port);
    }
    other.write(ARGS, &7u64);
    assert_eq!(other.read::<u64>(ARGS), 7);
}

#[test]
fn test_frames_are_held_while_in_use_and_given_back() {
    let (hv, _) = machine();
    let guest = build(&hv, 1);
    let count = |page: u64| hv.frames.info(guest.mfns[page as usize]).unwrap().count;
    let before = (count(ARRAY), count(ARRAY + 1));
    guest.start_fifo(1);
    assert_eq!((count(ARRAY), count(ARRAY + 1)), (before.0 + 1, before.1 + 1));
    // A port above the 2-level ABI's, which the domain may not have.
    let port = guest.bind_ipi(0);
    assert!(guest.domain().evtchn.is_fifo());
    assert_eq!(guest.evtchn(EVTCHNOP_set_priority, &evtchn_set_priority { port: 2000, priority: 1 }).0, -EINVAL);
    assert_eq!(guest.evtchn(EVTCHNOP_reset, &evtchn_reset { dom: DOMID_SELF }).0, 0);
    assert_eq!((count(ARRAY), count(ARRAY + 1)), before);
    assert_eq!(guest.evtchn(EVTCHNOP_send, &evtchn_send { port }).0, -EINVAL);
    guest.start_fifo(1);
    hv.domain_destroy(guest.domid).unwrap();
    assert_eq!((count(ARRAY), count(ARRAY + 1)), (0, 0));
}

#[test]
fn test_the_array_can_grow_to_all_ports_and_no_further() {
    let (hv, _) = machine();
    let guest = build(&hv, 1);
    guest.start_fifo(1);
    let array_gfn = guest.mfns[(ARRAY + 5) as usize].0;
    let expand = evtchn_expand_array { array_gfn };
    for _ in 1..128 {
        assert_eq!(guest.evtchn(EVTCHNOP_expand_array, &expand).0, 0);
    }
    assert_eq!(guest.evtchn(EVTCHNOP_expand_array, &expand).0, -ENOSPC);
    let table = guest.mfns[(NR_PAGES - 1) as usize].0;
    assert_eq!(guest.evtchn(EVTCHNOP_expand_array, &evtchn_expand_array { array_gfn: table }).0, -ENOSPC);
}

#[test]
fn test_events_sent_before_their_word_is_there_are_kept() {
    let (hv, _) = machine();
    let guest = build(&hv, 1);
    let port = guest.bind_ipi(0);
    assert_eq!(guest.evtchn(EVTCHNOP_send, &evtchn_send { port }).0, 0);
    let control_gfn = guest.mfns[(ARRAY + 1) as usize].0;
    let init = evtchn_init_control { control_gfn, ..Default::default() };
    assert_eq!(guest.evtchn(EVTCHNOP_init_control, &init).0, 0);
    let late = guest.bind_ipi(0);
    assert_eq!(guest.evtchn(EVTCHNOP_send, &evtchn_send { port: late }).0, 0);
    assert_eq!(hv.evtchn_bits(&guest.domain(), port), (false, true), "no word yet");
    let array_gfn = guest.mfns[ARRAY as usize].0;
    assert_eq!(guest.evtchn(EVTCHNOP_expand_array, &evtchn_expand_array { array_gfn }).0, 0);
    assert_eq!(hv.evtchn_bits(&guest.domain(), port), (true, false));
    assert_eq!(hv.evtchn_bits(&guest.domain(), late), (true, false));
    assert!(guest.domain().vcpu(0).unwrap().info.is_upcall_pending());
}

#[test]
fn test_a_global_virq_binds_on_vcpu_0_only() {
    let (hv, _) = machine();
    let guest = build(&hv, 2);
    let bind = |virq, vcpu| guest.evtchn(EVTCHNOP_bind_virq, &evtchn_bind_virq { virq, vcpu, port: 0 }).0;
    assert_eq!([bind(VIRQ_DOM_EXC, 1), bind(VIRQ_DOM_EXC, 0), bind(VIRQ_DOM_EXC, 0)], [-EINVAL, 0, -EEXIST]);
    // It is domain 0's to be sent: nothing happens here.
    hv.send_global_virq(VIRQ_DOM_EXC);
    assert_eq!(hv.evtchn_bits(&guest.domain(), 1), (false, false));
}

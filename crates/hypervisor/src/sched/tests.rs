//! The order of the run queue, by a clock of the test's.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::queue::Queue;
use crate::Hypervisor;
use crate::domain::Domain;
use crate::tests::support::{create, machine};
use crate::vcpu::{Leave, Vcpu};

const MS: u64 = 1_000_000;

/// A domain of `nr` runnable vCPUs that nobody runs, and a queue of `nr_pcpus`.
fn domain(nr: u32, nr_pcpus: usize) -> (Arc<Hypervisor>, Arc<Domain>, Queue) {
    let (hv, _) = machine();
    let domid = hv.domain_create(&create(nr)).unwrap();
    let domain = hv.domain(domid).unwrap();
    domain.pause.store(0, Ordering::SeqCst);
    domain.vcpus.iter().for_each(|vcpu| vcpu.online.store(true, Ordering::SeqCst));
    (hv, domain, Queue::new(nr_pcpus))
}

fn run_next(queue: &mut Queue, pcpu: usize, now_ns: u64) -> Arc<Vcpu> {
    let next = queue.pop().unwrap();
    queue.start(pcpu, &next, now_ns);
    next
}

#[test]
fn test_equal_work_gets_equal_turns() {
    let (_hv, domain, mut queue) = domain(3, 1);
    domain.vcpus.iter().for_each(|vcpu| assert!(queue.wake(vcpu, 0).is_none()));
    let mut ran = [0u64; 3];
    let mut now = 0;
    for _ in 0..300 {
        let vcpu = run_next(&mut queue, 0, now);
        let end = queue.next_end().unwrap();
        assert!(queue.expire(end - 1).is_empty());
        assert_eq!(queue.expire(end)[0].id, vcpu.id);
        ran[vcpu.id as usize] += end - now;
        now = end;
        queue.end(0, &vcpu, Leave::Preempted, now);
    }
    assert_eq!(ran, [now / 3; 3]);
}

#[test]
fn test_who_slept_preempts_who_ran_but_saves_up_little() {
    let (_hv, domain, mut queue) = domain(2, 1);
    let (hog, sleeper) = (&domain.vcpus[0], &domain.vcpus[1]);
    queue.wake(hog, 0);
    run_next(&mut queue, 0, 0);
    assert!(queue.next_end().is_none(), "nobody waits");
    let victim = queue.wake(sleeper, 10_000 * MS).unwrap();
    assert_eq!(victim.id, hog.id);
    assert!(queue.expire(20_000 * MS).is_empty(), "it was told already");
    queue.end(0, hog, Leave::Preempted, 10_000 * MS);
    assert_eq!(run_next(&mut queue, 0, 10_000 * MS).id, sleeper.id);
    // Ten seconds of sleep are worth a few milliseconds.
    queue.end(0, sleeper, Leave::Preempted, 10_006 * MS);
    assert_eq!(run_next(&mut queue, 0, 10_006 * MS).id, hog.id);
}

#[test]
fn test_an_idle_pcpu_takes_a_waking_vcpu_and_nobody_is_preempted() {
    let (_hv, domain, mut queue) = domain(2, 2);
    queue.wake(&domain.vcpus[0], 0);
    run_next(&mut queue, 0, 0);
    assert!(queue.wake(&domain.vcpus[1], 5000 * MS).is_none());
}

#[test]
fn test_who_yields_stands_last_and_lets_the_holder_of_a_lock_run() {
    let (_hv, domain, mut queue) = domain(4, 1);
    domain.vcpus.iter().for_each(|vcpu| _ = queue.wake(vcpu, 0));
    // vCPU 0 is preempted in its kernel, late in the order.
    let holder = run_next(&mut queue, 0, 0);
    holder.left_in_kernel.store(true, Ordering::SeqCst);
    queue.end(0, &holder, Leave::Preempted, 10 * MS);
    // vCPU 1 waits for it.
    let spinner = run_next(&mut queue, 0, 10 * MS);
    assert_eq!((holder.id, spinner.id), (0, 1));
    queue.end(0, &spinner, Leave::Yielded, 10 * MS + 10_000);
    assert_eq!(run_next(&mut queue, 0, 10 * MS + 10_000).id, holder.id);
    queue.end(0, &holder, Leave::Stopped, 10 * MS + 20_000);
    queue.remove(&holder);
    // The spinner comes after all others, whatever time it had.
    let order: Vec<u32> = (0..3).map(|_| queue.pop().unwrap().id).collect();
    assert_eq!(order, [2, 3, 1]);
}

#[test]
fn test_who_has_an_event_to_handle_runs_before_others_of_its_domain() {
    let (_hv, domain, mut queue) = domain(4, 1);
    domain.vcpus.iter().for_each(|vcpu| _ = queue.wake(vcpu, 0));
    let spinner = run_next(&mut queue, 0, 0);
    let target = &domain.vcpus[3];
    target.info.set_upcall_mask(false);
    target.info.set_upcall_pending();
    queue.end(0, &spinner, Leave::Yielded, MS);
    assert_eq!(queue.pop().unwrap().id, target.id);
}

#[test]
fn test_a_removed_vcpu_is_neither_next_nor_hinted() {
    let (_hv, domain, mut queue) = domain(3, 1);
    domain.vcpus.iter().for_each(|vcpu| _ = queue.wake(vcpu, 0));
    let spinner = run_next(&mut queue, 0, 0);
    domain.vcpus[2].left_in_kernel.store(true, Ordering::SeqCst);
    queue.end(0, &spinner, Leave::Yielded, MS);
    queue.remove(&domain.vcpus[2]);
    assert_eq!(queue.pop().unwrap().id, 1);
    queue.remove(&domain.vcpus[1]);
    assert_eq!(queue.pop().unwrap().id, 0);
    assert!(queue.pop().is_none());
}

#[test]
fn test_slices_shrink_when_many_wait() {
    let (_hv, domain, mut queue) = domain(32, 2);
    domain.vcpus.iter().take(2).for_each(|vcpu| _ = queue.wake(vcpu, 0));
    run_next(&mut queue, 0, 0);
    assert_eq!(queue.next_end(), Some(10 * MS));
    domain.vcpus.iter().skip(2).for_each(|vcpu| _ = queue.wake(vcpu, 0));
    assert_eq!(queue.next_end(), Some(2 * MS));
}

//! A guest that makes code without end: the oldest of it goes, and nobody else is much the worse for it.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use iced_x86::code_asm::*;
use ring3_engine::{AddressSpace, CodeSize, Config, DomainEngine, Exit, GprName, GuestMode, Requests, Vcpu};
use ring3_engine_bt::{BtEngine, DirectPolicy, Options};
use ring3_machine::Mfn;
use support::{CODE, Guest, STACK_END, assemble, counter, written_and_called};

/// The least that a cache may have.
const CACHE_BYTES: usize = 2 << 20;
/// Where the computing code is, and the function that it calls.
const LOOP: u64 = CODE + 0x1000;
const CALLED: u64 = CODE + 0x2000;

/// Calls a function of another page ECX times.
fn computing_code() -> Vec<u8> {
    assemble(LOOP, |a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.call(CALLED)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.syscall()
    })
}

fn guest() -> Guest {
    let guest = Guest::with_engine(
        BtEngine::with_options(Options { direct: DirectPolicy::Never, cache_bytes: CACHE_BYTES, ..Options::default() })
            .unwrap(),
    );
    guest.write(CODE, &written_and_called());
    guest.write(LOOP, &computing_code());
    guest.write(
        CALLED,
        &assemble(CALLED, |a| {
            a.imul_3(rax, rax, 77)?;
            a.add(rax, rcx)?;
            a.ret()
        }),
    );
    guest
}

fn second_vcpu(domain: &dyn DomainEngine) -> Box<dyn Vcpu> {
    let mut vcpu = domain.create_vcpu(1, &Config { xcr0: 7 }).unwrap();
    vcpu.set_address_space(GuestMode::Kernel, AddressSpace { root: Mfn(1), ..AddressSpace::default() });
    vcpu.set_mode(GuestMode::Kernel, CodeSize::Bits64);
    vcpu.regs_mut().rflags = 0x202;
    vcpu
}

fn start(vcpu: &mut dyn Vcpu, at: u64, count: u32, stack: u64) -> Exit {
    let regs = vcpu.regs_mut();
    regs.rip = at;
    regs.set(GprName::Rcx, u64::from(count));
    regs.set(GprName::Rsp, stack);
    vcpu.run()
}

/// CPU time of this thread, as the scheduler accounts it.
fn thread_time() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

#[test]
fn test_code_without_end_gives_right_results() {
    let mut guest = guest();
    let count = 40_000;
    assert_eq!(start(&mut *guest.vcpu, CODE, count, STACK_END - 64), Exit::Hypercall);
    let sum = (1..=count).fold(0u32, |sum, n| sum.wrapping_add(n));
    assert_eq!(guest.gpr(GprName::Rdx), u64::from(sum));
    let regions = counter(&*guest.domain, "regions emptied");
    assert!(regions > 32, "the cache was filled more than once: {regions} regions were emptied");
}

#[test]
fn test_eviction_takes_the_oldest_blocks_only() {
    let mut guest = guest();
    assert_eq!(start(&mut *guest.vcpu, LOOP, 10, STACK_END - 64), Exit::Hypercall);
    fill(&mut guest);
    assert_eq!(start(&mut *guest.vcpu, LOOP, 10, STACK_END - 64), Exit::Hypercall);
    let evictions = counter(&*guest.domain, "regions emptied");
    // What the loop needs was made anew just now, and stays for nearly a round.
    let mut made = counter(&*guest.domain, "blocks translated");
    while counter(&*guest.domain, "regions emptied") < evictions + 25 {
        assert_eq!(start(&mut *guest.vcpu, CODE, 100, STACK_END - 64), Exit::Hypercall);
        let before = counter(&*guest.domain, "blocks translated");
        assert_eq!(start(&mut *guest.vcpu, LOOP, 10, STACK_END - 64), Exit::Hypercall);
        assert_eq!(counter(&*guest.domain, "blocks translated"), before);
        assert!(before > made);
        made = before;
    }
}

/// Makes code until some of it has to go.
fn fill(guest: &mut Guest) {
    while counter(&*guest.domain, "regions emptied") == 0 {
        assert_eq!(start(&mut *guest.vcpu, CODE, 100, STACK_END - 64), Exit::Hypercall);
    }
}

/// CPU time of a computing vCPU, alone and beside one that makes code without end: the median of some rounds.
fn pace(computing: &mut dyn Vcpu, endless: &mut dyn Vcpu) -> (Duration, Duration) {
    const COUNT: u32 = 20_000_000;
    let compute = |vcpu: &mut dyn Vcpu| {
        let before = thread_time();
        assert_eq!(start(vcpu, LOOP, COUNT, STACK_END - 0x400), Exit::Hypercall);
        thread_time() - before
    };
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        alone.push(compute(computing));
        let done = AtomicBool::new(false);
        let control = endless.control();
        beside.push(std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    let exit = start(endless, CODE, 1_000_000, STACK_END - 64);
                    assert!(matches!(exit, Exit::Hypercall | Exit::Interrupted(_)));
                }
            });
            let time = compute(computing);
            done.store(true, Ordering::SeqCst);
            control.request(Requests::RESCHEDULE);
            time
        }));
    }
    alone.sort_unstable();
    beside.sort_unstable();
    (alone[2], beside[2])
}

#[test]
#[cfg_attr(debug_assertions, ignore = "says something of speed")]
fn test_another_domain_keeps_its_blocks_and_its_pace() {
    let (mut endless, mut computing) = (guest(), guest());
    assert_eq!(start(&mut *computing.vcpu, LOOP, 10, STACK_END - 64), Exit::Hypercall);
    let made = counter(&*computing.domain, "blocks translated");
    fill(&mut endless);
    let (alone, beside) = pace(&mut *computing.vcpu, &mut *endless.vcpu);
    assert!(counter(&*endless.domain, "regions emptied") > 1);
    assert_eq!(counter(&*computing.domain, "blocks translated"), made);
    eprintln!("{alone:?} alone, {beside:?} beside endless code of another domain");
    assert!(beside < alone.mul_f64(1.0 / 0.9), "{alone:?} alone, {beside:?} beside");
}

#[test]
#[cfg_attr(debug_assertions, ignore = "says something of speed")]
fn test_a_hot_loop_of_the_same_domain_keeps_its_pace() {
    let mut guest = guest();
    let mut computing = second_vcpu(&*guest.domain);
    fill(&mut guest);
    let made = counter(&*guest.domain, "blocks translated");
    let (alone, beside) = pace(&mut *computing, &mut *guest.vcpu);
    let made = counter(&*guest.domain, "blocks translated") - made;
    eprintln!("{alone:?} alone, {beside:?} beside {made} blocks of endless code of the same domain");
    // Each store to code has this vCPU come to a safe point.
    assert!(beside < alone.mul_f64(1.0 / 0.75), "{alone:?} alone, {beside:?} beside");
}

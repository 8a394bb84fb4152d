//! Random hypercalls of two domains with two vCPUs each. After each one the whole machine is checked against itself
//! (`crate::audit`); at the end everything is given back. A failure names the seed and the last calls.
//!
//! `RING3_FUZZ_SECONDS=3600 cargo test --release -p ring3-hypervisor fuzz_without_end -- --ignored --nocapture` goes on and on.

mod calls;
mod random;
pub mod targets;

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use ring3_abi::errno;
use ring3_abi::grant_table::{GTF_permit_access, GTF_readonly, GTF_sub_page, grant_entry_v1};
use ring3_machine::Mfn;

use super::support::{ARGS, Guest, NR_PAGES, build, machine};
use crate::Hypervisor;
use crate::vcpu::Action;
use crate::vcpu::bounce::Running;
use calls::Call;
use random::Random;

/// Pages that a domain may have more than it starts with.
const MORE_PAGES: u64 = 8;
/// Calls in the life of a pair of domains.
const CALLS_OF_A_LIFE: u64 = 2000;
const NR_REMEMBERED: usize = 12;

/// Who calls, and where its arguments go.
pub struct Place<'a> {
    pub guest: &'a Guest,
    pub peer: &'a Guest,
    pub args: u64,
}

impl Guest {
    /// Makes a hypercall as a vCPU, with its argument bytes in place if they can be written.
    fn fuzz(&self, vcpu: u32, args_at: u64, call: &Call) -> i64 {
        let domain = self.domain();
        let vcpu = domain.vcpu(vcpu).unwrap();
        let mut state = vcpu.state.lock();
        let mut running = Running { hv: &self.hv, domain: &domain, vcpu, state: &mut state };
        let _ = domain.memory.write(&running.state.kernel_space(), args_at, &call.memory);
        let result = crate::hypercall::dispatch_guest(&mut running, u64::from(call.op), &call.args);
        // What the run loop would do next; nothing here ever sleeps.
        running.state.action = Action::None;
        vcpu.blocked.store(false, Ordering::SeqCst);
        drop(state);
        self.hv.end_poll(&domain, vcpu);
        result
    }

    /// Loads a random selector of the LDT, as a guest does without a call: its frame becomes a descriptor page.
    fn fuzz_ldt(&self, r: &mut Random, vcpu: u32) {
        let domain = self.domain();
        let vcpu = domain.vcpu(vcpu).unwrap();
        let mut state = vcpu.state.lock();
        let selector = (r.below(600) as u16) << 3 | 7;
        let mut running = Running { hv: &self.hv, domain: &domain, vcpu, state: &mut state };
        let _ = running.load_segment(iced_x86::Register::ES, selector);
    }

    /// Writes a random grant entry, as a guest does in its own memory.
    fn fuzz_grant_entry(&self, r: &mut Random, peer: &Guest) {
        let flags = r.pick(&[GTF_permit_access, GTF_permit_access, GTF_permit_access | GTF_readonly, 0, 2, 3])
            | if r.one_in(16) { GTF_sub_page } else { 0 };
        let place = Place { guest: self, peer, args: ARGS };
        let (domid, frame) = (if r.one_in(8) { r.domid(&place) } else { peer.domid }, r.mfn(&place));
        let Some(frame) = u32::try_from(frame.0).ok() else { return };
        let entry = grant_entry_v1 { flags, domid, frame };
        let _ = self.hv.memory.machine.write(self.table_frame(), r.below(12) as usize * 8, bytemuck::bytes_of(&entry));
    }

    /// Whether the vCPUs can still pass arguments.
    fn is_usable(&self) -> bool {
        let domain = self.domain();
        domain.vcpus.iter().all(|vcpu| {
            let space = vcpu.state.lock().kernel_space();
            space.root != Mfn(0) && domain.memory.write(&space, args_of(vcpu.id), &[0]).is_ok()
        })
    }
}

fn args_of(vcpu: u32) -> u64 {
    ARGS + u64::from(vcpu) * 4096
}

fn pair(hv: &Arc<Hypervisor>) -> [Guest; 2] {
    [0, 1].map(|_| {
        let guest = build(hv, 2);
        hv.domain_set_max_pages(guest.domid, NR_PAGES + MORE_PAGES).unwrap();
        let mut context = guest.context();
        context.user_regs.rsp -= 4096;
        hv.vcpu_set_context(guest.domid, 1, &context).unwrap();
        guest
    })
}

/// Counts of what was granted and refused, by hypercall and sub-op.
type Seen = BTreeMap<(u32, u64), (u64, u64)>;

/// Runs one pair of domains; returns the number of calls. `wrong` gets what the audit says.
fn live(hv: &Arc<Hypervisor>, r: &mut Random, seen: &mut Seen, nr_calls: u64) -> Result<u64, String> {
    let guests = pair(hv);
    let mut last: VecDeque<(usize, u32, Call)> = VecDeque::new();
    let mut nr = 0;
    while nr < nr_calls && (nr % 64 != 63 || guests.iter().all(Guest::is_usable)) {
        let who = usize::from(r.one_in(2));
        let (guest, peer) = (&guests[who], &guests[1 - who]);
        if r.one_in(6) {
            guest.fuzz_grant_entry(r, peer);
        }
        let vcpu = r.small(2);
        if r.one_in(6) {
            guest.fuzz_ldt(r, vcpu);
        }
        let args = args_of(vcpu);
        let call = calls::random(r, &Place { guest, peer, args });
        last.push_back((who, vcpu, call.clone()));
        if last.len() > NR_REMEMBERED {
            last.pop_front();
        }
        nr += 1;
        let story = |what: String| {
            let calls = last.iter().map(|(who, vcpu, call)| format!("\ndomain {who} vCPU {vcpu}: {call:x?}"));
            format!("{what}\nafter {nr} calls, the last:{}", calls.collect::<String>())
        };
        let Ok(result) = catch_unwind(AssertUnwindSafe(|| guest.fuzz(vcpu, args, &call))) else {
            return Err(story("panic".to_owned()));
        };
        let counts = seen.entry((call.op, call.kind())).or_default();
        if result < 0 {
            counts.1 += 1
        } else {
            counts.0 += 1
        }
        if result == -errno::ENOSYS || result == -errno::EPERM {
            continue;
        }
        let wrong = hv.audit_stopped();
        if !wrong.is_empty() {
            return Err(story(format!("result {result}\n{}", wrong.join("\n"))));
        }
    }
    for guest in &guests {
        hv.domain_destroy(guest.domid).map_err(|error| error.to_string())?;
        let wrong = hv.audit_stopped();
        if !wrong.is_empty() {
            return Err(format!("domain {} destroyed: {}\n{last:x?}", guest.domid, wrong.join("\n")));
        }
    }
    Ok(nr)
}

/// Runs a seed in a machine of its own.
fn run(seed: u64, nr_calls: u64, seen: &mut Seen) -> u64 {
    let (hv, _) = machine();
    let nr_free = hv.frames.nr_free_frames();
    let mut r = Random::new(seed);
    let mut nr = 0;
    while nr < nr_calls {
        match live(&hv, &mut r, seen, CALLS_OF_A_LIFE.min(nr_calls - nr)) {
            Ok(done) => nr += done.max(1),
            Err(wrong) => panic!("seed {seed:#x}: {wrong}"),
        }
        assert_eq!(hv.frames.nr_free_frames(), nr_free, "seed {seed:#x}: frames were lost after {nr} calls");
    }
    nr
}

#[test]
fn test_random_hypercalls_keep_every_reference_explained() {
    let mut seen = Seen::new();
    for seed in 1..5 {
        run(seed, 4000, &mut seen);
    }
    // The test means something only if calls of most kinds are granted and refused.
    let both = seen.values().filter(|(granted, refused)| *granted > 0 && *refused > 0).count();
    assert!(both >= 20, "{seen:?}");
}

/// Four vCPUs call at once; the audit comes whenever all have stopped.
fn run_at_once(seed: u64, nr_rounds: u64) -> u64 {
    const CALLS_OF_A_ROUND: u64 = 100;
    let (hv, _) = machine();
    let guests = pair(&hv);
    let (before, after) = (Barrier::new(5), Barrier::new(5));
    let is_over = AtomicBool::new(false);
    let nr_calls = AtomicU64::new(0);
    let mut wrong = Vec::new();
    let panics = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (who, vcpu) in [(0usize, 0u32), (0, 1), (1, 0), (1, 1)] {
            let (guests, before, after, is_over) = (&guests, &before, &after, &is_over);
            let (nr_calls, panics) = (&nr_calls, &panics);
            scope.spawn(move || {
                let mut r = Random::new(seed * 4 + who as u64 * 2 + u64::from(vcpu));
                loop {
                    before.wait();
                    if is_over.load(Ordering::SeqCst) {
                        return;
                    }
                    for _ in 0..CALLS_OF_A_ROUND {
                        let (guest, peer) = (&guests[who], &guests[1 - who]);
                        if r.one_in(6) {
                            guest.fuzz_grant_entry(&mut r, peer);
                            guest.fuzz_ldt(&mut r, vcpu);
                        }
                        let args = args_of(vcpu);
                        let call = calls::random(&mut r, &Place { guest, peer, args });
                        if catch_unwind(AssertUnwindSafe(|| guest.fuzz(vcpu, args, &call))).is_err() {
                            panics.lock().push(format!("panic: {call:x?}"));
                            break;
                        }
                    }
                    nr_calls.fetch_add(CALLS_OF_A_ROUND, Ordering::SeqCst);
                    after.wait();
                }
            });
        }
        for _ in 0..nr_rounds {
            before.wait();
            after.wait();
            wrong = std::mem::take(&mut *panics.lock());
            wrong.extend(hv.audit_stopped());
            if !wrong.is_empty() || !guests.iter().all(Guest::is_usable) {
                break;
            }
        }
        is_over.store(true, Ordering::SeqCst);
        before.wait();
    });
    assert!(wrong.is_empty(), "seed {seed:#x}: {}", wrong.join("\n"));
    for guest in &guests {
        hv.domain_destroy(guest.domid).unwrap();
        let wrong = hv.audit_stopped();
        assert!(wrong.is_empty(), "seed {seed:#x}, domain {} destroyed: {}", guest.domid, wrong.join("\n"));
    }
    nr_calls.load(Ordering::SeqCst)
}

#[test]
fn test_random_hypercalls_at_once_keep_every_reference_explained() {
    let nr: u64 = (1..20).map(|seed| run_at_once(seed, 20)).sum();
    assert!(nr > 4_000, "{nr}");
}

#[test]
#[ignore = "runs for RING3_FUZZ_SECONDS, an hour by default"]
fn fuzz_without_end() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let limit = Duration::from_secs(number("RING3_FUZZ_SECONDS", 3600));
    let start = Instant::now();
    let mut seed = number("RING3_FUZZ_SEED", 0x1000_0000);
    let (mut nr, mut nr_at_once) = (0, 0);
    let mut seen = Seen::new();
    let mut told = start;
    while start.elapsed() < limit {
        nr += run(seed, 20_000, &mut seen);
        nr_at_once += (0..10).map(|n| run_at_once(seed + (n << 32), 100)).sum::<u64>();
        seed += 1;
        if told.elapsed() > Duration::from_secs(60) {
            told = Instant::now();
            println!("{} s: {nr} calls, {nr_at_once} at once, seed {seed:#x}", start.elapsed().as_secs());
        }
    }
    println!(
        "{nr} calls one by one and {nr_at_once} at once, last seed {seed:#x}; by hypercall (granted, refused): {seen:?}"
    );
}

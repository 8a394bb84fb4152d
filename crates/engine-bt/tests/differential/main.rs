//! The engine against the host CPU: random sequences run natively and translated, and must agree on every register,
//! flag and byte of memory.
//!
//! A fixed seed runs with the other tests. `RING3_FUZZ_SEED` chooses another, `RING3_FUZZ_CODES=movs` only some codes,
//! `RING3_FUZZ_ROUNDS` how many times. `cargo test --test differential -- --ignored fuzz` runs without end, or for
//! `RING3_FUZZ_SECONDS`. `RING3_COVERAGE=1` writes docs/engine-coverage.md.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod block;
mod case;
mod coverage;
mod exclude;
mod flags;
mod guest;
mod ldt;
mod mutate;
mod narrow;
mod native_unsafe;
mod odd;
mod operand;
mod prng;
mod runner;
mod segmented;
mod single;
mod smc;
mod state;
#[path = "../support/mod.rs"]
mod support;
mod values;
mod xsave;

use std::collections::BTreeMap;

use iced_x86::{Code, Mnemonic};

use case::Case;
use guest::Way;
use prng::Prng;
use runner::{Batch, Runner, describe};

fn seed() -> u64 {
    std::env::var("RING3_FUZZ_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1)
}

fn rounds(default: u64) -> u64 {
    std::env::var("RING3_FUZZ_ROUNDS").ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

/// Most failures reported in one run, at most one for each instruction.
const MAX_REPORTS: usize = 60;

/// Collects failures, one for each instruction.
#[derive(Default)]
struct Report {
    failures: BTreeMap<String, (u64, String)>,
    coverage: coverage::Coverage,
}

impl Report {
    fn check(&mut self, runner: &mut Runner, batch: &Batch) {
        let mismatches = runner.run(batch);
        for (entry, &completed) in batch.entries.iter().zip(&runner.completed) {
            self.coverage.add(entry.case.code, completed);
        }
        for mismatch in mismatches {
            let entry = &batch.entries[mismatch.index];
            let name = entry.case.name();
            if let Some((count, _)) = self.failures.get_mut(&name) {
                *count += 1;
                continue;
            }
            if self.failures.len() >= MAX_REPORTS {
                continue;
            }
            let ip = entry.placed.addresses[0];
            let text = match runner.minimise(batch, &entry.case, ip, entry.way) {
                Some((case, shortest)) => describe(&case, batch, ip, entry.way, &shortest),
                None => format!("only among others: {}", describe(&entry.case, batch, ip, entry.way, &mismatch)),
            };
            self.failures.insert(name, (1, text));
        }
    }

    fn finish(&self) {
        for (name, (count, text)) in &self.failures {
            eprintln!("---- {name} ({count} times) {text}");
        }
        assert!(self.failures.is_empty(), "{} instructions differ from the host CPU", self.failures.len());
    }
}

/// The codes to compare; RING3_FUZZ_CODES names a part of them, as `movs` or `vex_`.
fn codes_not(excluded: impl Fn(Code) -> Option<exclude::Excluded>) -> Vec<Code> {
    let part = std::env::var("RING3_FUZZ_CODES").unwrap_or_default().to_lowercase();
    let is_wanted = |code: &Code| format!("{code:?}").to_lowercase().starts_with(&part);
    Code::values().filter(|&code| excluded(code).is_none()).filter(is_wanted).collect()
}

/// Compares what `generate` makes for each item, in batches that `begin` makes; the dice may refuse some.
fn run_each<T>(
    (what, seed): (&str, u64),
    mut rng: Prng,
    begin: fn(&mut Prng) -> Batch,
    items: impl Iterator<Item = T>,
    mut generate: impl FnMut(&mut Prng, &Batch, T) -> Option<Case>,
) -> Report {
    let mut runner = Runner::new(rng.favours_loops);
    let mut report = Report::default();
    let started = std::time::Instant::now();
    let mut batch = begin(&mut rng);
    for item in items {
        let Some(case) = generate(&mut rng, &batch, item) else { continue };
        let (way, gap) = (Way::random(&mut rng), rng.below(8) as usize);
        if !batch.add(case, way, gap) {
            report.check(&mut runner, &batch);
            batch = begin(&mut rng);
        }
    }
    report.check(&mut runner, &batch);
    summarise(what, seed, &runner, started);
    assert!(!rng.favours_loops || runner.nr_followed() > 0, "no loop was followed");
    report
}

/// One sequence for each code, `rounds` times.
fn run_singles(seed: u64, rounds: u64) -> Report {
    let codes = codes_not(exclude::excluded);
    let items = (0..rounds).flat_map(|_| &codes);
    run_each(("single instructions", seed), Prng::new(seed), Batch::new, items, |rng, batch, &code| {
        let case = (0..8).find_map(|_| single::generate(rng, code, &batch.memory[..]))?;
        Some(if rng.one_in(6) { mutate::mutate(rng, &case).unwrap_or(case) } else { case })
    })
}

/// As `run_singles`, for 32-bit code.
fn run_singles32(seed: u64, rounds: u64) -> Report {
    let codes = codes_not(exclude::excluded32);
    eprintln!("{} codes in 32-bit code", codes.len());
    let items = (0..rounds).flat_map(|_| &codes);
    let what = ("single instructions of 32-bit code", seed);
    run_each(what, Prng::new(seed ^ 0x32), Batch::new, items, |rng, batch, &code| {
        (0..8).find_map(|_| single::generate32(rng, code, &batch.memory[..]))
    })
}

/// `count` byte strings, less those that cannot be compared.
fn run_odd(seed: u64, count: u64, in_32: bool) -> Report {
    let rng = Prng::new(seed ^ if in_32 { 0xb32d } else { 0xb1fe });
    let codes = codes_not(if in_32 { exclude::excluded32 } else { exclude::excluded });
    let what = if in_32 { "byte strings of 32-bit code" } else { "byte strings" };
    run_each((what, seed), rng, Batch::new, 0..count, |rng, batch, _| {
        odd::generate(rng, &codes, &batch.memory[..], in_32)
    })
}

/// `count` blocks, less those that the dice refuse.
fn run_blocks(seed: u64, count: u64, in_32: bool) -> Report {
    let rng = Prng::new(seed ^ if in_32 { 0xb32c } else { 0xb10c });
    let codes = if in_32 { block::Codes::new32() } else { block::Codes::new() };
    run_blocks_of(seed, rng, &codes, (count, in_32), "blocks")
}

/// As `run_blocks`, with many faults, and mostly instructions that have to do with flags.
fn run_faulting(seed: u64, count: u64, in_32: bool) -> Report {
    let mut rng = Prng::new(seed ^ if in_32 { 0xf32c } else { 0xf10c });
    rng.favours_faults = true;
    run_blocks_of(seed, rng, &block::Codes::of_flags(in_32), (count, in_32), "blocks with faults")
}

fn run_blocks_of(seed: u64, rng: Prng, codes: &block::Codes, (count, in_32): (u64, bool), what: &str) -> Report {
    let generate = if in_32 { block::generate32 } else { block::generate };
    let what = if in_32 { format!("{what} of 32-bit code") } else { what.to_owned() };
    run_each((&what, seed), rng, Batch::new, 0..count, |rng, batch, _| generate(rng, codes, &batch.memory[..]))
}

/// As `run_blocks`, with many loops, each of which the engine follows.
fn run_loops(seed: u64, count: u64, in_32: bool) -> Report {
    let mut rng = Prng::new(seed ^ if in_32 { 0x1032 } else { 0x1064 });
    rng.favours_loops = true;
    let codes = if in_32 { block::Codes::new32() } else { block::Codes::new() };
    run_blocks_of(seed, rng, &codes, (count, in_32), "blocks with loops")
}

/// `count` sequences of code of 16 or 32 bits that runs through segments of odd bases and limits.
fn run_segmented(seed: u64, count: u64, in_16: bool) -> Report {
    let rng = Prng::new(seed ^ if in_16 { 0x5e61 } else { 0x5e63 });
    let codes = segmented::Codes::new(in_16);
    let what = if in_16 { "sequences of 16-bit code" } else { "sequences in segments" };
    run_each((what, seed), rng, Batch::segmented, 0..count, |rng, batch, _| {
        segmented::generate(rng, &codes, &batch.ldt, &batch.memory[..])
    })
}

/// Self-modifying code: the routines of a batch lie in its memory.
fn run_smc(seed: u64, batches: u64) -> Report {
    let mut rng = Prng::new(seed ^ 0x57c);
    let mut runner = Runner::new(rng.favours_loops);
    let mut report = Report::default();
    let started = std::time::Instant::now();
    for _ in 0..batches {
        let mut batch = Batch::new(&mut rng);
        let Some(routines) = smc::Routines::new(&mut rng, &mut batch.memory) else { continue };
        for _ in 0..40 {
            let Some(case) = routines.case(&mut rng) else { continue };
            let (way, gap) = (Way::random(&mut rng), rng.below(8) as usize);
            batch.add(case, way, gap);
        }
        report.check(&mut runner, &batch);
    }
    summarise("self-modifying sequences", seed, &runner, started);
    report
}

/// Stores that an interceptor does.
fn run_intercepted(seed: u64, rounds: u64) -> Report {
    let mut rng = Prng::new(seed ^ 0x1c37);
    let mut runner = Runner::new(rng.favours_loops);
    let mut report = Report::default();
    let started = std::time::Instant::now();
    let codes = codes_not(exclude::excluded);
    rng.favours_read_only = true;
    let mut batch = Batch::new(&mut rng);
    for _ in 0..rounds {
        for &code in &codes {
            let Some(case) = single::generate(&mut rng, code, &batch.memory[..]) else { continue };
            // Xen does not look whether the new top of the stack can be written, and no more does the engine here.
            if case.items.iter().any(|item| item.instr.mnemonic() == Mnemonic::Enter && item.instr.immediate16() != 0) {
                continue;
            }
            if !batch.add(case, Way::Intercepted, 0) {
                report.check(&mut runner, &batch);
                batch = Batch::new(&mut rng);
            }
        }
    }
    report.check(&mut runner, &batch);
    summarise("intercepted instructions", seed, &runner, started);
    report
}

/// State that is saved, changed and restored.
fn run_xsave(seed: u64, batches: u64) -> Report {
    let mut rng = Prng::new(seed ^ 0x5a7e);
    let mut runner = Runner::new(rng.favours_loops);
    let mut report = Report::default();
    let started = std::time::Instant::now();
    for _ in 0..batches {
        let mut batch = Batch::new(&mut rng);
        for _ in 0..40 {
            let Some(case) = xsave::generate(&mut rng) else { continue };
            let (way, gap) = (Way::random(&mut rng), rng.below(8) as usize);
            batch.add(case, way, gap);
        }
        report.check(&mut runner, &batch);
    }
    summarise("state images", seed, &runner, started);
    report
}

fn summarise(what: &str, seed: u64, runner: &Runner, started: std::time::Instant) {
    let (run, faults, lost) = (runner.nr_run, runner.nr_faults, runner.nr_lost());
    let followed = runner.nr_followed();
    eprintln!(
        "{run} {what} (seed {seed}): {faults} faults, {lost} lost, {followed} loops followed, {:?}",
        started.elapsed()
    );
}

#[test]
fn test_single_instructions_agree_with_the_host_cpu() {
    let report = run_singles(seed(), rounds(100));
    if std::env::var_os("RING3_COVERAGE").is_some() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/engine-coverage.md");
        std::fs::write(page, report.coverage.table()).unwrap();
    }
    let part = std::env::var_os("RING3_FUZZ_CODES");
    let never = if part.is_some() { Vec::new() } else { report.coverage.never_completed() };
    report.finish();
    assert!(never.iter().all(|code| format!("{code:?}").starts_with("Ud")), "never completed: {never:?}");
}

#[test]
fn test_32_bit_instructions_agree_with_the_host_cpu() {
    run_singles32(seed(), rounds(100)).finish();
}

#[test]
fn test_any_bytes_agree_with_the_host_cpu() {
    run_odd(seed(), rounds(100) * 250, false).finish();
}

#[test]
fn test_any_bytes_of_32_bit_code_agree_with_the_host_cpu() {
    run_odd(seed(), rounds(100) * 150, true).finish();
}

#[test]
fn test_32_bit_blocks_agree_with_the_host_cpu() {
    run_blocks(seed(), rounds(100) * 500, true).finish();
}

#[test]
fn test_16_bit_code_agrees_with_the_host_cpu() {
    run_segmented(seed(), rounds(100) * 250, true).finish();
}

#[test]
fn test_segments_agree_with_the_host_cpu() {
    run_segmented(seed(), rounds(100) * 250, false).finish();
}

#[test]
fn test_blocks_agree_with_the_host_cpu() {
    run_blocks(seed(), rounds(100) * 1000, false).finish();
}

#[test]
fn test_flags_at_faults_agree_with_the_host_cpu() {
    run_faulting(seed(), rounds(100) * 300, false).finish();
}

#[test]
fn test_flags_at_faults_of_32_bit_code_agree_with_the_host_cpu() {
    run_faulting(seed(), rounds(100) * 150, true).finish();
}

#[test]
fn test_loops_agree_with_the_host_cpu() {
    run_loops(seed(), rounds(100) * 300, false).finish();
}

#[test]
fn test_loops_of_32_bit_code_agree_with_the_host_cpu() {
    run_loops(seed(), rounds(100) * 150, true).finish();
}

#[test]
fn test_intercepted_stores_agree_with_the_host_cpu() {
    run_intercepted(seed(), rounds(100) / 6).finish();
}

#[test]
fn test_self_modifying_code_agrees_with_the_host_cpu() {
    run_smc(seed(), rounds(100) * 3).finish();
}

#[test]
fn test_saved_state_agrees_with_the_host_cpu() {
    run_xsave(seed(), rounds(100) * 3).finish();
}

/// Runs until something differs (or for RING3_FUZZ_SECONDS), each round with a seed of its own.
#[test]
#[ignore = "runs without end"]
fn fuzz() {
    let seconds = std::env::var("RING3_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(u64::MAX);
    let started = std::time::Instant::now();
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut seed = std::env::var("RING3_FUZZ_SEED").map_or(since_epoch.as_secs(), |s| s.parse().unwrap());
    while started.elapsed().as_secs() < seconds {
        run_singles(seed, 50).finish();
        run_singles32(seed, 50).finish();
        run_blocks(seed, 100_000, false).finish();
        run_blocks(seed, 50_000, true).finish();
        run_faulting(seed, 100_000, false).finish();
        run_faulting(seed, 50_000, true).finish();
        run_loops(seed, 100_000, false).finish();
        run_loops(seed, 50_000, true).finish();
        run_smc(seed, 500).finish();
        run_intercepted(seed, 10).finish();
        run_xsave(seed, 500).finish();
        run_odd(seed, 100_000, false).finish();
        run_odd(seed, 50_000, true).finish();
        run_segmented(seed, 50_000, true).finish();
        run_segmented(seed, 50_000, false).finish();
        seed += 1;
    }
}

//! An independent look at emitted code: disassembles a block and proves of it what `crates/SAFETY.md` says of translated
//! code, knowing nothing of how it was made. Runs on every block in debug builds, and with the feature `verify`.
//!
//! Proved of each block, by data flow over its instructions:
//! - Guest memory is accessed at host addresses only that come from a hit in the mode's TLB, or from the slow path, and only
//!   as far as the check reached, and is stored to only where the check was one for stores.
//! - The vCPU state is accessed at constant offsets, in fields that are the block's to use, or in the TLB and the jump
//!   cache at offsets cut to their size; host addresses that it holds get neither to the guest nor to its memory.
//! - It leaves by a stub, by an entry of another block, or by the host address of a jump cache entry; all else stays
//!   in the block, at instruction boundaries.
//! - It has no instruction that uses the guest's stack, changes a segment or its base, or leaves user mode.
//!
//! Trusted: the stubs, the Rust side, the decoder, and that what `Cache::resolve` patches in is an entry.

mod graph;
mod layout;
#[cfg(test)]
mod tests;
mod transfer;
mod value;

use std::collections::BTreeSet;

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, InstructionInfoFactory};

use crate::emit::stubs::Stubs;
use crate::translate::Entries;
use graph::Graph;
use transfer::{R10, R11};
use value::Known;

/// What code may be around a block.
#[derive(Clone, Copy)]
pub struct Surroundings<'a> {
    pub stubs: &'a Stubs,
    /// Index of the guest mode.
    pub mode: usize,
    /// Whether an address is an entry of another block that this one may jump to.
    pub is_entry: &'a dyn Fn(u64) -> bool,
}

/// What is wrong with a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    pub at: u64,
    pub what: &'static str,
}

impl Violation {
    /// For a person to read: the block, with the instruction marked.
    pub fn describe(&self, code: &[u8], origin: u64) -> String {
        let mut text = format!("{} at {:#x}:\n", self.what, self.at);
        for instr in Decoder::with_ip(64, code, origin, DecoderOptions::NONE) {
            let mark = if instr.ip() == self.at { ">" } else { " " };
            text += &format!("{mark} {:x} {instr}\n", instr.ip());
        }
        text
    }
}

type Verdict<T> = Result<T, Violation>;

/// Checks a block that will stand at `origin`.
///
/// # Errors
/// [`Violation`], the first that is found.
pub fn verify(code: &[u8], origin: u64, entries: Entries, around: &Surroundings<'_>) -> Verdict<()> {
    let graph = Graph::new(code, origin, entries)?;
    graph.check_loops(entries)?;
    Verifier { graph, around: *around, factory: InstructionInfoFactory::new(), waiting: BTreeSet::new() }.run(entries)
}

struct Verifier<'a> {
    graph: Graph,
    around: Surroundings<'a>,
    factory: InstructionInfoFactory,
    /// Places where ways meet that are to be looked at (again), in the order in which that is best done.
    waiting: BTreeSet<(bool, u64)>,
}

impl Verifier<'_> {
    fn run(mut self, entries: Entries) -> Verdict<()> {
        self.reach(entries.near, Known::at_entry(entries.near, false));
        self.reach(entries.native, Known::at_entry(entries.native, false));
        self.reach(entries.far, Known::at_entry(entries.far, true));
        while let Some((_, at)) = self.waiting.pop_first() {
            if let Some(known) = self.graph.known_at(at).cloned() {
                self.run_from(at, known)?;
            }
        }
        Ok(())
    }

    /// Control may get to `to`, where ways meet, with this known.
    fn reach(&mut self, to: u64, known: Known) {
        if self.graph.meet(to, known) {
            self.waiting.insert((!self.graph.is_cold(to), to));
        }
    }

    /// Follows the instructions from `at` on to where ways meet, or out of the block.
    fn run_from(&mut self, mut at: u64, mut known: Known) -> Verdict<()> {
        loop {
            let Some(instr) = self.graph.instruction(at).copied() else {
                return Err(Violation { at, what: "control flow that runs out of the block" });
            };
            at = instr.next_ip();
            match instr.flow_control() {
                FlowControl::Next => transfer::execute(&instr, &mut known, &mut self.factory, self.around.mode)?,
                FlowControl::UnconditionalBranch if instr.is_jmp_short_or_near() => {
                    return self.branch(&instr, known);
                }
                FlowControl::ConditionalBranch if instr.is_jcc_short_or_near() || instr.is_jcx_short() => {
                    self.branch(&instr, known.clone())?;
                    transfer::refine_not_taken(&instr, &mut known);
                }
                FlowControl::IndirectBranch if instr.is_jmp_near_indirect() => {
                    transfer::check_jump_entry(&instr, &known, self.around.mode)?;
                    return check_exit(&known, instr.ip(), true);
                }
                // Where an instruction could not be encoded; the guest gets #UD.
                FlowControl::Exception if instr.code() == Code::Ud2 => return Ok(()),
                _ => return Err(Violation { at: instr.ip(), what: "a transfer of control that blocks do not have" }),
            }
            if self.graph.is_meeting(at) {
                self.reach(at, known);
                return Ok(());
            }
        }
    }

    /// A direct jump that is taken.
    fn branch(&mut self, instr: &Instruction, mut known: Known) -> Verdict<()> {
        let (at, to) = (instr.ip(), instr.near_branch_target());
        let stubs = *self.around.stubs;
        if self.graph.instruction(to).is_some() {
            self.reach(to, known);
            return Ok(());
        }
        if to == stubs.slow_access || stubs.tlb_miss[self.around.mode].contains(&to) {
            let is_store = stubs.tlb_miss[self.around.mode][1] == to;
            let back = transfer::slow_access(&mut known, at, (to != stubs.slow_access).then_some(is_store))?;
            if !self.graph.is_meeting(back) {
                return Err(Violation { at, what: "a slow access that comes back to no instruction of the block" });
            }
            self.reach(back, known);
            return Ok(());
        }
        let is_stub = [stubs.exit, stubs.exit_with_flags, stubs.pending].contains(&to);
        let is_miss = to == stubs.jump_miss[self.around.mode];
        if is_miss {
            transfer::check_jump_index(&known, at)?;
        } else if !is_stub && !(self.around.is_entry)(to) {
            return Err(Violation { at, what: "a jump out of the block to no stub and no entry" });
        }
        check_exit(&known, at, is_stub || is_miss)
    }
}

/// What the guest sees holds no host address; nor does R11 where it is the exit's value or target.
fn check_exit(known: &Known, at: u64, r11_counts: bool) -> Verdict<()> {
    let counts = |n: usize| n != R10 && (n != R11 || r11_counts);
    if known.registers.iter().enumerate().any(|(n, value)| counts(n) && value.is_secret()) {
        return Err(Violation { at, what: "a host address in a register at an exit" });
    }
    Ok(())
}

//! The instructions of a block, and where its ways meet.

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind};

use super::value::Known;
use super::{Verdict, Violation};
use crate::translate::Entries;

pub struct Graph {
    origin: u64,
    instructions: Vec<Instruction>,
    /// For each byte of the code: number of the instruction that starts there, plus one.
    starts: Vec<u32>,
    /// For each instruction where ways meet: what is known there.
    meetings: Vec<Option<Option<Box<Known>>>>,
    /// First address of code that is out of the usual way.
    cold: u64,
}

impl Graph {
    pub fn new(code: &[u8], origin: u64, entries: Entries) -> Verdict<Self> {
        let mut graph = Self {
            origin,
            instructions: Vec::with_capacity(code.len() / 4),
            starts: vec![0; code.len()],
            meetings: Vec::new(),
            cold: u64::MAX,
        };
        for instr in Decoder::with_ip(64, code, origin, DecoderOptions::NONE) {
            if instr.code() == Code::INVALID {
                return Err(Violation { at: instr.ip(), what: "bytes that are no instruction" });
            }
            graph.instructions.push(instr);
            let number = graph.instructions.len() as u32;
            if let Some(start) = graph.starts.get_mut((instr.ip() - origin) as usize) {
                *start = number;
            }
        }
        graph.meetings = vec![None; graph.instructions.len()];
        let targets: Vec<u64> = graph.instructions.iter().filter_map(target).collect();
        for to in targets.into_iter().chain([entries.near, entries.native, entries.far]) {
            let Some(n) = graph.number(to) else { continue };
            graph.meetings[n] = Some(None);
            let before = n.checked_sub(1).and_then(|n| graph.instructions.get(n));
            let ends = |i: &Instruction| {
                matches!(i.flow_control(), FlowControl::UnconditionalBranch | FlowControl::IndirectBranch)
            };
            if before.is_some_and(ends) {
                graph.cold = graph.cold.min(to);
            }
        }
        if [entries.near, entries.native, entries.far].iter().any(|&entry| graph.number(entry).is_none()) {
            return Err(Violation { at: entries.near, what: "an entry that is no instruction" });
        }
        Ok(graph)
    }

    fn number(&self, at: u64) -> Option<usize> {
        let offset = usize::try_from(at.checked_sub(self.origin)?).ok()?;
        self.starts.get(offset)?.checked_sub(1).map(|n| n as usize)
    }

    pub fn instruction(&self, at: u64) -> Option<&Instruction> {
        self.instructions.get(self.number(at)?)
    }

    pub fn is_cold(&self, at: u64) -> bool {
        at >= self.cold
    }

    pub fn is_meeting(&self, at: u64) -> bool {
        self.number(at).and_then(|n| self.meetings.get(n)).is_some_and(Option::is_some)
    }

    pub fn known_at(&self, at: u64) -> Option<&Known> {
        self.meetings.get(self.number(at)?)?.as_ref()?.as_deref()
    }

    /// Adds a way to get to `at`. Returns whether less is known there now.
    pub fn meet(&mut self, at: u64, known: Known) -> bool {
        let Some(place) = self.number(at).and_then(|n| self.meetings.get_mut(n)) else { return false };
        let merged = match place {
            Some(Some(before)) => before.join(&known, at),
            _ => known,
        };
        if matches!(place, Some(Some(before)) if **before == merged) {
            return false;
        }
        *place = Some(Some(Box::new(merged)));
        true
    }

    /// Control comes back to an instruction by an entry only, where nothing is known: names are then of one time around.
    ///
    /// # Errors
    /// [`Violation`].
    pub fn check_loops(&self, entries: Entries) -> Verdict<()> {
        const ON_PATH: u8 = 1;
        const DONE: u8 = 2;
        let mut marks = vec![0u8; self.instructions.len()];
        let roots = [entries.near, entries.native, entries.far].map(|at| self.number(at));
        let mut stack: Vec<(usize, bool)> = roots.iter().flatten().map(|&n| (n, false)).collect();
        while let Some((n, is_done)) = stack.pop() {
            let (Some(mark), Some(instr)) = (marks.get_mut(n), self.instructions.get(n)) else { continue };
            if is_done || *mark == DONE {
                *mark = DONE;
                continue;
            }
            *mark = ON_PATH;
            stack.push((n, true));
            let goes_on = matches!(instr.flow_control(), FlowControl::Next | FlowControl::ConditionalBranch);
            let next = Some(n + 1).filter(|_| goes_on);
            let other = target(instr).and_then(|to| self.number(to));
            for to in [next, other].into_iter().flatten().filter(|n| !roots.contains(&Some(*n))) {
                if marks.get(to) == Some(&ON_PATH) {
                    return Err(Violation { at: instr.ip(), what: "a loop that is not the block's" });
                }
                stack.push((to, false));
            }
        }
        Ok(())
    }
}

/// Where an instruction says that control may get to: by a jump, or as the return address of a slow access.
fn target(instr: &Instruction) -> Option<u64> {
    if matches!(instr.op0_kind(), OpKind::NearBranch64) {
        return Some(instr.near_branch_target());
    }
    (instr.mnemonic() == Mnemonic::Lea && instr.is_ip_rel_memory_operand()).then(|| instr.ip_rel_memory_address())
}

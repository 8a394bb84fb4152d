//! Cold code of instructions that stay in translated code but for rare cases.

use super::emitter::Emitter;
use super::memory::ColdRun;
use super::recipe::Recipe;
use crate::emit::asm::{Fixup, S0, S1};

/// Where a rare case leaves for Rust, before the instruction has an effect; with where the flags are that are nowhere.
#[derive(Debug)]
pub(super) struct ColdLeave {
    pub from: Vec<Fixup>,
    /// Lookups that come here where they fail.
    pub runs: Vec<ColdRun>,
    /// Reason and value of the exit.
    pub why: u32,
    pub value: u32,
    pub dead: Option<Recipe>,
}

impl Emitter<'_> {
    pub fn cold_leave(&mut self, cold: &ColdLeave) {
        let misses: Vec<_> = cold.runs.iter().map(|run| self.cold_run(run)).collect();
        for &from in cold.from.iter().chain(&misses) {
            self.asm.bind(from);
        }
        self.leave_recipe(cold.dead);
        self.asm.mov32_imm(S1, cold.value);
        self.asm.mov32_imm(S0, cold.why);
        self.asm.jmp(self.stubs.exit);
    }
}

//! Control flow: near edges (same page, chained), far exits (jump cache), exits to Rust.

use std::mem::offset_of;

use iced_x86::{Decoder, DecoderError, Mnemonic, OpKind};
use ring3_machine::PAGE_SIZE_BYTES;

use super::emitter::{Cold, Emitter, FlagLoc, Given, Link};
use super::flags::{ALL, Demand, NONE};
use super::lines::lines;
use super::memory::{Access, hardware, in_memory, is_stack_operand};
use super::recipe::Recipe;
use super::{Insn, MAX_INSTRUCTION_BYTES, offset_value};
use crate::emit::asm::{Fixup, Mem, Reg, S0, S1, cc};
use crate::emit::stubs::reason;
use crate::host_unsafe::decoder_options;
use crate::jumps;
use crate::state::{JumpEntry, State};

/// An exit placed out of line. `dead` says how to have flags that are nowhere.
#[derive(Debug)]
pub(super) enum ColdExit {
    /// A request was pending at a backward edge to `target`.
    Pending { from: Fixup, target: usize, dead: Option<Recipe> },
    /// The guest spins; it goes on at `target`.
    Spinning { from: Fixup, target: usize, dead: Option<Recipe> },
    /// First pass over a near edge: tells Rust which link to resolve. `link` indexes the block's links.
    Link { from: Fixup, link: usize, target: usize, why: u32, stub: u64, dead: Option<Recipe> },
    /// A conditional jump ahead to another page: error paths mostly, so what comes next stands next. Flags are native.
    Far { from: Fixup, target: u64 },
    /// A conditional near edge to a block that shows flags which it does not read; they are in the CPU.
    Edge { from: Fixup, target: usize, demand: Demand, recipe: Option<Recipe> },
    /// A group's check failed before the instruction at `target`; where the flags are, and whether somebody reads them.
    Ungrouped { from: Fixup, target: usize, loc: FlagLoc, dead: Option<Recipe>, is_live: bool },
}

impl Emitter<'_> {
    fn demand_at(&mut self, target: usize) -> Demand {
        if target == self.own.0 && !self.request.single && !self.request.variant.fpu_off {
            return self.own.2;
        }
        let (demand, of) = super::demand_at(self.request, self.neighbours, &mut self.info, target);
        self.lines |= of;
        demand
    }

    /// Leaves translated code for Rust; all flags are kept.
    pub fn leave_at(&mut self, _insn: &Insn, why: u32, value: usize) {
        self.spill_flags(ALL);
        self.asm.mov32_imm(S1, offset_value(value));
        self.asm.mov32_imm(S0, why);
        self.asm.jmp(self.stubs.exit);
    }

    /// End of a single-instruction block.
    pub fn stepped(&mut self, next: usize) {
        self.spill_flags(ALL);
        self.page_address(next as u64);
        self.leave_stepped();
    }

    fn leave_stepped(&mut self) {
        self.asm.mov32_imm(S0, reason::STEPPED);
        self.asm.jmp(self.stubs.exit);
    }

    /// S1 = linear address of page offset `offset` (which may lie outside the page).
    fn page_address(&mut self, offset: u64) {
        self.asm.load(S1, Mem::state(offset_of!(State, page_base)));
        if self.request.is_compat() {
            self.asm.lea(false, S1, Mem::at(S1, offset as i32));
        } else {
            self.add_constant(offset);
        }
    }

    /// Leaves for the linear address in S1, by the jump cache. Flags must have been spilled.
    pub fn far_exit(&mut self) {
        if self.request.single {
            self.leave_stepped();
            return;
        }
        let jumps = jumps::offset(self.mode_index());
        let jump_miss = self.stubs.jump_miss[self.mode_index()];
        self.compare_requests();
        let asm = &mut self.asm;
        let pending = asm.jcc_forward(cc::NE);
        asm.patch(pending, self.stubs.pending);
        asm.raw(&[0x45, 0x69, 0xd3]); // imul r10d, r11d, HASH
        asm.raw(&jumps::HASH.to_le_bytes());
        asm.raw(&[0x41, 0xc1, 0xea, jumps::HASH_SHIFT]); // shr r10d, HASH_SHIFT
        asm.raw(&[0x41, 0x81, 0xe2]); // and r10d, HASH_MASK
        asm.raw(&jumps::HASH_MASK.to_le_bytes());
        asm.op_mem(true, &[0x3b], S1, Mem::state_at(S0, jumps + offset_of!(JumpEntry, rip)));
        let miss = asm.jcc_forward(cc::NE);
        asm.patch(miss, jump_miss);
        asm.jmp_mem(Mem::state_at(S0, jumps + offset_of!(JumpEntry, host)));
    }

    /// Leaves for page offset `target`, near if it lies in the page.
    pub fn near_or_far(&mut self, target: usize) {
        if self.is_near(target) {
            let demand = self.demand_at(target);
            self.near_jump(target, demand, false);
        } else {
            self.leave_for(target as u64);
        }
    }

    /// Leaves for another page, at `target` relative to this one's address.
    fn leave_for(&mut self, target: u64) {
        self.spill_flags(ALL);
        self.page_address(target);
        self.far_exit();
    }

    /// Leaves for a branch target given relative to the page's address.
    fn branch(&mut self, insn: &Insn) {
        let target = insn.instr.near_branch_target();
        match usize::try_from(target) {
            Ok(near) if self.is_near(near) => {
                let demand = self.demand_at(near);
                self.near_jump(near, demand, near <= insn.offset);
            }
            _ => self.leave_for(target),
        }
    }

    /// Whether a chained jump may go to `target`. Blocks that cross into a second page depend on its mapping too, so
    /// they chain to nothing.
    fn is_near(&mut self, target: usize) -> bool {
        target < PAGE_SIZE_BYTES
            && !self.request.single
            && self.request.code.len() == PAGE_SIZE_BYTES
            && !self.crosses_page(target)
    }

    /// Whether the instruction at `target` continues on the next page.
    fn crosses_page(&mut self, target: usize) -> bool {
        if target + MAX_INSTRUCTION_BYTES <= PAGE_SIZE_BYTES {
            return false;
        }
        self.lines |= lines(target..PAGE_SIZE_BYTES);
        let bytes = self.request.code.get(target..).unwrap_or_default();
        let mut decoder = Decoder::new(self.request.bitness(), bytes, decoder_options());
        let _ = decoder.decode();
        decoder.last_error() == DecoderError::NoMoreBytes
    }

    /// `jmp` to another block of the page, or to a stub that has it made.
    fn near_jump(&mut self, target: usize, demand: Demand, backward: bool) {
        if demand.live == NONE && demand.shown != NONE {
            self.publish(demand.clobbers);
        }
        if backward {
            if target == self.own.0 && demand.live == NONE {
                return self.turn(target);
            }
            self.pending_check(target, demand);
        }
        if demand.live != NONE {
            self.fill_flags();
        }
        self.asm.align_rel32(1);
        let jump = self.asm.jmp_forward();
        self.link(jump, target, demand);
    }

    /// Goes to the block's own entry, which reads no flags, unless there are requests.
    fn turn(&mut self, target: usize) {
        self.spill_flags(NONE);
        self.compare_requests();
        let back = self.asm.jcc_forward(cc::E);
        self.asm.patch(back, self.own.1);
        let from = self.asm.jmp_forward();
        let dead = self.dead_flags();
        self.cold.push(Cold::Exit(ColdExit::Pending { from, target, dead }));
    }

    /// `cmp dword gs:[requests], 0`.
    fn compare_requests(&mut self) {
        self.asm.op_mem(false, &[0x83], Reg(7), Mem::state(offset_of!(State, requests)));
        self.asm.raw(&[0]);
    }

    /// Tests for requests at a backward edge.
    fn pending_check(&mut self, target: usize, demand: Demand) {
        self.spill_flags(demand.live);
        self.compare_requests();
        let from = self.asm.jcc_forward(cc::NE);
        let dead = self.dead_flags();
        self.cold.push(Cold::Exit(ColdExit::Pending { from, target, dead }));
    }

    /// Leaves for Rust if the host's flags say zero.
    pub fn exit_if_spinning(&mut self, target: usize) {
        let from = self.asm.jcc_forward(cc::E);
        let dead = self.dead_flags();
        self.cold.push(Cold::Exit(ColdExit::Spinning { from, target, dead }));
    }

    /// Points a jump at the block at `target`, which demands `demand`: this one, or whichever is linked.
    fn link(&mut self, jump: Fixup, target: usize, demand: Demand) {
        if target == self.own.0 {
            self.asm.patch(jump, self.own.1);
            return;
        }
        let given = match demand {
            Demand { live: NONE, shown: NONE, .. } => Given::Nothing,
            Demand { live: NONE, .. } => Given::State,
            _ => Given::Native,
        };
        self.unresolved(jump, target, reason::LINK, given);
    }

    /// Makes a jump patchable; until it is patched it leaves for a reason that has it done.
    fn unresolved(&mut self, jump: Fixup, target: usize, why: u32, given: Given) {
        let link = self.links.len();
        self.links.push(Link { site: self.asm.site(jump), target, grouped: why == reason::LINK, given });
        let stub = if self.loc == FlagLoc::Native { self.stubs.exit_with_flags } else { self.stubs.exit };
        let dead = self.dead_flags();
        self.cold.push(Cold::Exit(ColdExit::Link { from: jump, link, target, why, stub, dead }));
    }

    pub fn jcc(&mut self, insn: &Insn) {
        self.fill_flags();
        let opcode = insn.instr.condition_code();
        let cond = condition(opcode);
        let target = insn.instr.near_branch_target();
        let before = (self.loc, self.recipe, self.is_saved);
        match usize::try_from(target) {
            Ok(near) if self.is_near(near) => {
                let demand = self.demand_at(near);
                if near <= insn.offset {
                    let over = self.asm.jcc_forward(cond ^ 1);
                    self.near_jump(near, demand, true);
                    self.asm.bind(over);
                } else if demand.live == NONE && demand.shown != NONE {
                    let from = self.asm.jcc_forward(cond);
                    let recipe = self.recipe;
                    self.cold.push(Cold::Exit(ColdExit::Edge { from, target: near, demand, recipe }));
                } else {
                    self.asm.align_rel32(2);
                    let jump = self.asm.jcc_forward(cond);
                    self.link(jump, near, demand);
                }
            }
            _ if (target as i64) < 0 => {
                let over = self.asm.jcc_forward(cond ^ 1);
                self.leave_for(target);
                self.asm.bind(over);
            }
            _ => {
                let from = self.asm.jcc_forward(cond);
                self.cold.push(Cold::Exit(ColdExit::Far { from, target }));
            }
        }
        (self.loc, self.recipe, self.is_saved) = before;
    }

    /// `jrcxz`, `jecxz`, `loop`, `loope`, `loopne`.
    pub fn counted_jump(&mut self, insn: &Insn) {
        let instr = &insn.instr;
        let rcx = Reg(1);
        let narrow = matches!(
            instr.code(),
            iced_x86::Code::Jecxz_rel8_32
                | iced_x86::Code::Loop_rel8_32_ECX
                | iced_x86::Code::Loope_rel8_32_ECX
                | iced_x86::Code::Loopne_rel8_32_ECX
                | iced_x86::Code::Jecxz_rel8_64
                | iced_x86::Code::Loop_rel8_64_ECX
                | iced_x86::Code::Loope_rel8_64_ECX
                | iced_x86::Code::Loopne_rel8_64_ECX
        );
        let looping = !matches!(instr.mnemonic(), Mnemonic::Jrcxz | Mnemonic::Jecxz);
        if looping {
            self.fill_flags();
            self.asm.lea(!narrow, rcx, Mem::at(rcx, -1));
        }
        let mut not_taken = Vec::new();
        // jrcxz reaches 127 bytes only: it goes over a near jump.
        let count_is_zero = |asm: &mut crate::emit::asm::Asm| {
            if narrow {
                asm.raw(&[0x67]);
            }
            asm.raw(&[0xe3, 5]); // jrcxz +5
            asm.jmp_forward() // taken when the count is not zero
        };
        let not_zero = count_is_zero(&mut self.asm);
        if looping {
            // count is zero here: not taken
            not_taken.push(self.asm.jmp_forward());
            self.asm.bind(not_zero);
            match instr.mnemonic() {
                Mnemonic::Loope => not_taken.push(self.asm.jcc_forward(cc::NE)),
                Mnemonic::Loopne => not_taken.push(self.asm.jcc_forward(cc::E)),
                _ => {}
            }
        } else {
            not_taken.push(not_zero);
        }
        let before = (self.loc, self.recipe, self.is_saved);
        self.branch(insn);
        (self.loc, self.recipe, self.is_saved) = before;
        for fixup in not_taken {
            self.asm.bind(fixup);
        }
    }

    pub fn jmp(&mut self, insn: &Insn) {
        self.branch(insn);
    }

    pub fn call(&mut self, insn: &Insn) {
        let live = match usize::try_from(insn.instr.near_branch_target()) {
            Ok(near) if self.is_near(near) => self.demand_at(near).live,
            _ => ALL,
        };
        self.spill_flags(live);
        self.push_return_address(insn);
        self.branch(insn);
    }

    /// Loads the target of an indirect jump or call into S1.
    fn indirect_target(&mut self, insn: &Insn) {
        let instr = &insn.instr;
        self.pointer = None;
        if instr.op0_kind() == OpKind::Memory {
            self.linear_address(instr, 0);
            let stack = is_stack_operand(instr);
            let size = self.word();
            self.check(insn, Access { size, write: false, stack });
            self.load_element(size, S1, Mem::at(S1, 0));
        } else if in_memory(instr.op0_register()) {
            self.load_guest(S1, instr.op0_register());
        } else {
            self.asm.mov(S1, hardware(instr.op0_register()));
        }
    }

    pub fn jmp_indirect(&mut self, insn: &Insn) {
        self.spill_flags(ALL);
        self.indirect_target(insn);
        self.far_exit();
    }

    pub fn call_indirect(&mut self, insn: &Insn) {
        self.spill_flags(ALL);
        let slot = Mem::state(offset_of!(State, scratch) + 8);
        self.indirect_target(insn);
        self.asm.store(slot, S1);
        self.push_return_address(insn);
        self.asm.load(S1, slot);
        self.far_exit();
    }

    pub fn ret(&mut self, insn: &Insn) {
        self.spill_flags(ALL);
        let extra = if insn.instr.op_count() > 0 { i32::from(insn.instr.immediate16()) } else { 0 };
        self.pop_return_address(insn, extra);
        self.far_exit();
    }

    pub fn cold_exit(&mut self, exit: &ColdExit) {
        match *exit {
            ColdExit::Pending { from, target, dead } => {
                self.asm.bind(from);
                self.leave_recipe(dead);
                self.page_address(target as u64);
                self.asm.mov32_imm(S0, reason::TURN);
                self.asm.jmp(self.stubs.exit);
            }
            ColdExit::Spinning { from, target, dead } => {
                self.asm.bind(from);
                self.leave_recipe(dead);
                self.page_address(target as u64);
                self.asm.mov32_imm(S0, reason::SPINNING);
                self.asm.jmp(self.stubs.exit);
            }
            ColdExit::Far { from, target } => {
                self.asm.bind(from);
                (self.loc, self.recipe, self.is_saved) = (FlagLoc::Native, None, false);
                self.leave_for(target);
            }
            ColdExit::Edge { from, target, demand, recipe } => {
                self.asm.bind(from);
                (self.loc, self.recipe, self.is_saved) = (FlagLoc::Native, recipe, false);
                self.near_jump(target, demand, false);
            }
            ColdExit::Ungrouped { from, target, loc, dead, is_live } => {
                self.asm.bind(from);
                (self.loc, self.recipe) = (loc, dead);
                if !is_live {
                    self.publish(u16::MAX);
                }
                self.fill_flags();
                self.asm.align_rel32(1);
                let jump = self.asm.jmp_forward();
                let given = if self.loc == FlagLoc::Native { Given::Native } else { Given::State };
                self.unresolved(jump, target, reason::UNGROUPED, given);
            }
            ColdExit::Link { from, link, target, why, stub, dead } => {
                self.asm.bind(from);
                self.leave_recipe(dead);
                let number = self.request.first_link.wrapping_add(link as u32);
                self.asm.store32_imm(Mem::state(offset_of!(State, link)), number);
                self.asm.mov32_imm(S1, offset_value(target));
                self.asm.mov32_imm(S0, why);
                self.asm.jmp(stub);
            }
        }
    }
}

/// The opcode's condition nibble.
fn condition(code: iced_x86::ConditionCode) -> u8 {
    use iced_x86::ConditionCode as C;
    match code {
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne | C::None => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    }
}

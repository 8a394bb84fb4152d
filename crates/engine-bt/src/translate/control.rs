//! Control flow: near edges (same page, chained), far exits (jump cache), exits to Rust.

use std::mem::offset_of;

use iced_x86::{Decoder, DecoderError, Instruction, Mnemonic, OpKind};
use ring3_machine::PAGE_SIZE_BYTES;

use super::emitter::{Cold, Emitter, FlagLoc, Link};
use super::flags::{ALL, FlagSet, NONE};
use super::lines::lines;
use super::memory::{Access, hardware, in_memory, is_stack_operand};
use super::{Insn, MAX_INSTRUCTION_BYTES, offset_value};
use crate::emit::asm::{Fixup, Mem, Reg, S0, S1, cc};
use crate::emit::stubs::reason;
use crate::host_unsafe::decoder_options;
use crate::jumps;
use crate::state::{JumpEntry, State};

/// An exit placed out of line.
#[derive(Debug)]
pub(super) enum ColdExit {
    /// A request was pending at a backward edge to `target`; flags are saved or dead.
    Pending { from: Fixup, target: usize },
    /// The guest spins; it goes on at `target`. Flags are saved or dead.
    Spinning { from: Fixup, target: usize },
    /// First pass over a near edge: tells Rust which link to resolve. `link` indexes the block's links.
    Link { from: Fixup, link: usize, target: usize, why: u32, stub: u64 },
    /// A conditional jump ahead to another page: error paths mostly, so what comes next stands next. Flags are native.
    Far { from: Fixup, target: u64 },
    /// A group's check failed before the instruction at `target`; where the flags are.
    Ungrouped { from: Fixup, target: usize, loc: FlagLoc, dead: Option<Box<Instruction>> },
}

impl Emitter<'_> {
    fn live_at(&mut self, target: usize) -> FlagSet {
        if target == self.own.0 && !self.request.single && !self.request.variant.fpu_off {
            return self.own.2;
        }
        let (live, of) = super::live_at(self.request, self.neighbours, target);
        self.lines |= of;
        live
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
        let asm = &mut self.asm;
        asm.op_mem(false, &[0x83], Reg(7), Mem::state(offset_of!(State, requests))); // cmp dword gs:[requests], 0
        asm.raw(&[0]);
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

    /// Leaves for page offset `target`, near if it lies in the page. `live` are the flags wanted there.
    pub fn near_or_far(&mut self, target: usize, live: FlagSet) {
        if self.is_near(target) {
            self.near_jump(target, live, false);
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
                let live = self.live_at(near);
                self.near_jump(near, live, near <= insn.offset);
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
    fn near_jump(&mut self, target: usize, live: FlagSet, backward: bool) {
        if backward {
            self.pending_check(target, live);
        }
        if live != NONE {
            self.fill_flags();
        }
        self.asm.align_rel32(1);
        let jump = self.asm.jmp_forward();
        self.link(jump, target);
    }

    /// Tests for requests at a backward edge.
    fn pending_check(&mut self, target: usize, live: FlagSet) {
        self.spill_flags(live);
        self.asm.op_mem(false, &[0x83], Reg(7), Mem::state(offset_of!(State, requests)));
        self.asm.raw(&[0]);
        let from = self.asm.jcc_forward(cc::NE);
        self.cold.push(Cold::Exit(ColdExit::Pending { from, target }));
    }

    /// Leaves for Rust if the host's flags say zero.
    pub fn exit_if_spinning(&mut self, target: usize) {
        let from = self.asm.jcc_forward(cc::E);
        self.cold.push(Cold::Exit(ColdExit::Spinning { from, target }));
    }

    /// Points a jump at the block at `target`: this one, or whichever is linked.
    fn link(&mut self, jump: Fixup, target: usize) {
        if target == self.own.0 {
            self.asm.patch(jump, self.own.1);
            return;
        }
        self.unresolved(jump, target, reason::LINK, self.stubs.exit_with_flags);
    }

    /// Makes a jump patchable; until it is patched it leaves by `stub` for a reason that has it done.
    fn unresolved(&mut self, jump: Fixup, target: usize, why: u32, stub: u64) {
        let link = self.links.len();
        self.links.push(Link { site: self.asm.site(jump), target, grouped: why == reason::LINK });
        self.cold.push(Cold::Exit(ColdExit::Link { from: jump, link, target, why, stub }));
    }

    pub fn jcc(&mut self, insn: &Insn) {
        self.fill_flags();
        let opcode = insn.instr.condition_code();
        let cond = condition(opcode);
        let target = insn.instr.near_branch_target();
        let loc = self.loc;
        match usize::try_from(target) {
            Ok(near) if self.is_near(near) => {
                let live = self.live_at(near);
                if near <= insn.offset {
                    let over = self.asm.jcc_forward(cond ^ 1);
                    self.near_jump(near, live, true);
                    self.asm.bind(over);
                } else {
                    self.asm.align_rel32(2);
                    let jump = self.asm.jcc_forward(cond);
                    self.link(jump, near);
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
        self.loc = loc;
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
        let loc = self.loc;
        self.branch(insn);
        self.loc = loc;
        for fixup in not_taken {
            self.asm.bind(fixup);
        }
    }

    pub fn jmp(&mut self, insn: &Insn) {
        self.branch(insn);
    }

    pub fn call(&mut self, insn: &Insn) {
        let live = match usize::try_from(insn.instr.near_branch_target()) {
            Ok(near) if self.is_near(near) => self.live_at(near),
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
            ColdExit::Pending { from, target } => {
                self.asm.bind(from);
                self.page_address(target as u64);
                self.asm.jmp(self.stubs.pending);
            }
            ColdExit::Spinning { from, target } => {
                self.asm.bind(from);
                self.page_address(target as u64);
                self.asm.mov32_imm(S0, reason::SPINNING);
                self.asm.jmp(self.stubs.exit);
            }
            ColdExit::Far { from, target } => {
                self.asm.bind(from);
                self.loc = FlagLoc::Native;
                self.leave_for(target);
            }
            ColdExit::Ungrouped { from, target, loc, ref dead } => {
                self.asm.bind(from);
                self.save_dead(dead.as_deref());
                self.loc = loc;
                self.fill_flags();
                self.asm.align_rel32(1);
                let jump = self.asm.jmp_forward();
                // Dead flags in the host are the check's; what is saved is the guest's of some time.
                let stub = if loc == FlagLoc::Dead { self.stubs.exit } else { self.stubs.exit_with_flags };
                self.unresolved(jump, target, reason::UNGROUPED, stub);
            }
            ColdExit::Link { from, link, target, why, stub } => {
                self.asm.bind(from);
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

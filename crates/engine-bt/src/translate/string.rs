//! String instructions that stay in translated code: `movs` and `stos`, repeated or not, and a single `lods`, going
//! forward in flat segments, as long as each operand lies within a page that the TLB knows. The repeated ones then run as
//! they are, on host addresses. Whatever is otherwise leaves for `interp::string`, which does a page at a time.

use std::mem::offset_of;

use ring3_engine::SegmentName;

use super::emitter::{Cold, Emitter};
use super::leave::ColdLeave;
use super::memory::{Access, ColdRun};
use super::{Insn, Repeat, StringForm, StringOp, Variant};
use crate::emit::asm::{Fixup, Mem, RAX, RCX, RDI, RSI, Reg, S0, S1, cc};
use crate::emit::stubs::reason;
use crate::state::State;

/// The form of a string instruction that may stay.
pub fn inline_form(instr: &iced_x86::Instruction, variant: Variant) -> Option<StringForm> {
    let form = StringForm::of(instr)?;
    let is_covered = match form.op {
        StringOp::Movs | StringOp::Stos => true,
        StringOp::Lods => form.repeat == Repeat::Once,
        StringOp::Scas | StringOp::Cmps => false,
    };
    let has_base = matches!(form.segment, SegmentName::Fs | SegmentName::Gs);
    let may_access = [form.segment, SegmentName::Es].into_iter().all(|name| variant.may_access_by(name));
    let address_bits = if variant.size.is_compat() { 32 } else { 64 };
    (is_covered && !has_base && may_access && form.address_bits == address_bits).then_some(form)
}

/// Value of the exit `reason::STRING`.
pub(super) fn exit_value(insn: &Insn, form: StringForm) -> usize {
    insn.offset | insn.instr.len() << 13 | (form.pack() as usize) << 17
}

impl Emitter<'_> {
    pub fn string(&mut self, insn: &Insn, form: StringForm) {
        let live = self.live_before(insn);
        self.spill_flags(live);
        let (mut from, mut runs) = (Vec::with_capacity(4), Vec::new());
        // cmp word gs:[direction], 0
        self.asm.raw(&[0x65, 0x66, 0x83, 0x3c, 0x25]);
        self.asm.raw(&(offset_of!(State, direction) as u32).to_le_bytes());
        self.asm.raw(&[0]);
        from.push(self.asm.jcc_forward(cc::NE));
        if form.repeat == Repeat::Once {
            self.string_once(insn, form);
        } else {
            self.string_repeated(form, &mut from, &mut runs);
        }
        let value = exit_value(insn, form) as u32;
        let dead = self.dead_flags();
        self.cold.push(Cold::Leave(ColdLeave { from, runs, why: reason::STRING, value, dead }));
    }

    fn string_once(&mut self, insn: &Insn, form: StringForm) {
        let size = usize::from(form.size);
        let slot = Mem::state(offset_of!(State, scratch) + 8);
        if form.op != StringOp::Stos {
            self.asm.mov(S1, RSI);
            self.check(insn, Access { size, write: false, stack: false });
        }
        match form.op {
            StringOp::Lods => match size {
                1 => self.asm.op_mem(false, &[0x8a], RAX, Mem::at(S1, 0)),
                2 => {
                    self.asm.raw(&[0x66]);
                    self.asm.op_mem(false, &[0x8b], RAX, Mem::at(S1, 0));
                }
                4 => self.asm.load32(RAX, Mem::at(S1, 0)),
                _ => self.asm.load(RAX, Mem::at(S1, 0)),
            },
            StringOp::Movs => {
                self.load_element(size, S0, Mem::at(S1, 0));
                self.asm.store(slot, S0);
                self.asm.mov(S1, RDI);
                self.check(insn, Access { size, write: true, stack: false });
                self.asm.load(S0, slot);
                self.store_sized(size, S0);
            }
            _ => {
                self.asm.mov(S1, RDI);
                self.check(insn, Access { size, write: true, stack: false });
                self.store_sized(size, RAX);
            }
        }
        let wide = !self.request.is_compat();
        if form.op != StringOp::Stos {
            self.asm.lea(wide, RSI, Mem::at(RSI, size as i32));
        }
        if form.op != StringOp::Lods {
            self.asm.lea(wide, RDI, Mem::at(RDI, size as i32));
        }
    }

    /// Stores the low `size` bytes of `from`, which is RAX or a high register, at S1.
    fn store_sized(&mut self, size: usize, from: Reg) {
        if size == 1 {
            self.asm.op_mem(false, &[0x88], from, Mem::at(S1, 0));
        } else {
            self.store_element(size, Mem::at(S1, 0), from);
        }
    }

    fn string_repeated(&mut self, form: StringForm, from: &mut Vec<Fixup>, runs: &mut Vec<ColdRun>) {
        let log2 = form.size.trailing_zeros() as u8;
        let scratch = |n: usize| Mem::state(offset_of!(State, scratch) + 8 * n);
        let moves = form.op == StringOp::Movs;
        self.asm.raw(&[0x48, 0x81, 0xf9]); // cmp rcx, elements of a page
        self.asm.raw(&(4096u32 >> log2).to_le_bytes());
        from.push(self.asm.jcc_forward(cc::A));
        if moves {
            runs.push(self.check_run(RSI, log2, false));
            self.asm.store(scratch(2), S1);
            self.asm.store(scratch(3), RSI);
        }
        runs.push(self.check_run(RDI, log2, true));
        self.asm.store(scratch(1), RDI);
        self.asm.mov(S0, RCX);
        self.asm.mov(RDI, S1);
        if moves {
            self.asm.load(RSI, scratch(2));
        }
        self.asm.raw(&[0xf3]);
        match form.size {
            2 => self.asm.raw(&[0x66]),
            8 => self.asm.raw(&[0x48]),
            _ => {}
        }
        let opcode = if moves { 0xa4 } else { 0xaa };
        self.asm.raw(&[opcode | u8::from(form.size > 1)]);
        let wide = !self.request.is_compat();
        for (register, n) in [(RDI, 1), (RSI, 3)].into_iter().take(1 + usize::from(moves)) {
            self.asm.load(register, scratch(n));
            self.asm.lea(wide, register, Mem { base: Some(register), index: Some((S0, log2)), disp: 0, gs: false });
        }
    }
}

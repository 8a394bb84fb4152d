//! String instructions, with every repeat prefix. Registers hold the state of progress after each piece, so a fault or
//! a request restarts where it happened.

use iced_x86::{Instruction, Register};
use ring3_engine::{GprName, SegmentName};
use ring3_machine::{PAGE_SIZE, PAGE_SIZE_BYTES};

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;
use crate::flag_word::subtraction;
use crate::translate::{Repeat, StringForm, StringOp};

/// Shape of a string instruction.
#[derive(Clone, Copy, Debug)]
struct Shape {
    size: u64,
    /// What the address size leaves of index and count: 32 bits (ESI, EDI, ECX) or, in 32-bit code, 16.
    mask: u64,
    repeat: Repeat,
    source: SegmentName,
}

impl BtVcpu {
    pub(super) fn string(&mut self, instr: &Instruction, single: bool) -> Step {
        let Some(form) = StringForm::of(instr) else { return Ok(Next::Privileged) };
        self.string_form(form, single)
    }

    /// Executes a string instruction whose form is known.
    pub(crate) fn string_form(&mut self, form: StringForm, single: bool) -> Step {
        let shape = self.shape(form);
        if shape.repeat != Repeat::Once && self.count(&shape) == 0 {
            return Ok(Next::Advance);
        }
        loop {
            let ended = match form.op {
                StringOp::Movs => {
                    self.movs(&shape, single)?;
                    false
                }
                StringOp::Stos => {
                    self.stos(&shape, single)?;
                    false
                }
                StringOp::Lods => {
                    self.lods(&shape)?;
                    false
                }
                StringOp::Scas => self.scas(&shape)?,
                StringOp::Cmps => self.cmps(&shape)?,
            };
            if shape.repeat == Repeat::Once || ended || self.count(&shape) == 0 {
                return Ok(Next::Advance);
            }
            if single || self.has_hits() || self.requests_pending() {
                return Ok(Next::Again);
            }
        }
    }

    fn shape(&self, form: StringForm) -> Shape {
        let mask = match form.address_bits {
            16 => 0xffff,
            32 => 0xffff_ffff,
            _ => u64::MAX,
        };
        Shape { size: u64::from(form.size), mask, repeat: form.repeat, source: form.segment }
    }

    fn index(&self, shape: &Shape, name: GprName) -> u64 {
        self.gpr(name) & shape.mask
    }

    /// Writes an index or the count, as the CPU writes a register of that size.
    fn set_index(&mut self, shape: &Shape, name: GprName, value: u64) {
        let kept = if shape.mask == 0xffff { self.gpr(name) & !0xffff } else { 0 };
        self.set_gpr(name, kept | value & shape.mask);
    }

    fn count(&self, shape: &Shape) -> u64 {
        self.index(shape, GprName::Rcx)
    }

    fn is_backward(&self) -> bool {
        self.state().direction != 0
    }

    /// Moves an index register by `elements` in the current direction.
    fn advance(&mut self, shape: &Shape, name: GprName, elements: u64) {
        let bytes = elements.wrapping_mul(shape.size);
        let value = self.gpr(name);
        let moved = if self.is_backward() { value.wrapping_sub(bytes) } else { value.wrapping_add(bytes) };
        self.set_index(shape, name, moved);
    }

    fn consume(&mut self, shape: &Shape, elements: u64) {
        if shape.repeat != Repeat::Once {
            let left = self.count(shape).wrapping_sub(elements);
            self.set_index(shape, GprName::Rcx, left);
        }
    }

    /// Linear address of `elements` of the source.
    fn source(&self, shape: &Shape, elements: u64) -> Result<u64, Fault> {
        self.place(shape.source, self.index(shape, GprName::Rsi), (elements * shape.size) as usize, false)
    }

    /// Linear address of `elements` of the target; its segment is always ES.
    fn target(&self, shape: &Shape, elements: u64, write: bool) -> Result<u64, Fault> {
        self.place(SegmentName::Es, self.index(shape, GprName::Rdi), (elements * shape.size) as usize, write)
    }

    /// Elements that can be done at once from offset `index` and linear address `va` on: those left that lie wholly in its
    /// page and below the end of what the address size reaches, going forward.
    fn run_length(&self, shape: &Shape, index: u64, va: u64, single: bool) -> u64 {
        let room = ((PAGE_SIZE - va % PAGE_SIZE) / shape.size).min((shape.mask - index) / shape.size);
        let one = single || shape.repeat == Repeat::Once || self.is_element_wise();
        let wanted = if one { 1 } else { self.count(shape) };
        if self.is_backward() { wanted.min(1).min(room) } else { wanted.min(room) }
    }

    /// Stores an element, or leaves the store to who intercepts it.
    pub(super) fn store_element(&mut self, va: u64, value: u64, size: u64) -> Result<(), Fault> {
        let bytes = value.to_le_bytes();
        let bytes = bytes.get(..size as usize).ok_or_else(Fault::undefined)?;
        if self.defer_store(va, bytes)? { Ok(()) } else { self.write_element(va, value, size) }
    }

    fn movs(&mut self, shape: &Shape, single: bool) -> Result<(), Fault> {
        let n = match self.copied_at_once(shape, single)? {
            0 => {
                // An element across pages or at a limit, or one that is looked at.
                let value = self.read_element(self.source(shape, 1)?, shape.size)?;
                self.store_element(self.target(shape, 1, true)?, value, shape.size)?;
                1
            }
            n => n,
        };
        self.advance(shape, GprName::Rsi, n);
        self.advance(shape, GprName::Rdi, n);
        self.consume(shape, n);
        Ok(())
    }

    /// Copies as many elements as can be done at once, perhaps none.
    fn copied_at_once(&mut self, shape: &Shape, single: bool) -> Result<u64, Fault> {
        let (Ok(source), Ok(target)) = (self.source(shape, 1), self.target(shape, 1, true)) else { return Ok(0) };
        let (from, to) = (self.index(shape, GprName::Rsi), self.index(shape, GprName::Rdi));
        let wanted = self.run_length(shape, from, source, single).min(self.run_length(shape, to, target, single));
        let is_inside = wanted > 0 && self.source(shape, wanted).is_ok() && self.target(shape, wanted, true).is_ok();
        if !is_inside || self.is_element_wise() {
            return Ok(0);
        }
        let size = shape.size as usize;
        Ok((self.copy_guest(source, target, wanted as usize * size, size)? / size) as u64)
    }

    fn stos(&mut self, shape: &Shape, single: bool) -> Result<(), Fault> {
        let target = self.target(shape, 1, true)?;
        self.check_alignment(target, shape.size as usize)?;
        let wanted = self.run_length(shape, self.index(shape, GprName::Rdi), target, single).max(1);
        let n = if self.target(shape, wanted, true).is_ok() { wanted } else { 1 };
        let value = self.gpr(GprName::Rax).to_le_bytes();
        let len = (n * shape.size) as usize;
        if self.is_intercepting() {
            let value = self.gpr(GprName::Rax);
            self.store_element(target, value, shape.size)?;
            self.advance(shape, GprName::Rdi, 1);
            self.consume(shape, 1);
            return Ok(());
        }
        let element = value.get(..shape.size as usize).unwrap_or_default();
        let first = value[0];
        if element.iter().all(|&byte| byte == first) && len <= PAGE_SIZE_BYTES - (target % PAGE_SIZE) as usize {
            self.fill_guest(target, len, first)?;
        } else {
            let mut bytes = [0u8; PAGE_SIZE_BYTES];
            let bytes = bytes.get_mut(..len).ok_or_else(Fault::undefined)?;
            for slot in bytes.chunks_exact_mut(element.len()) {
                slot.copy_from_slice(element);
            }
            self.write_guest(target, bytes)?;
        }
        self.advance(shape, GprName::Rdi, n);
        self.consume(shape, n);
        Ok(())
    }

    fn lods(&mut self, shape: &Shape) -> Result<(), Fault> {
        let value = self.read_element(self.source(shape, 1)?, shape.size)?;
        let register = match shape.size {
            1 => Register::AL,
            2 => Register::AX,
            4 => Register::EAX,
            _ => Register::RAX,
        };
        if shape.size == 1 {
            let rax = self.gpr(GprName::Rax);
            self.set_gpr(GprName::Rax, rax & !0xff | value);
        } else {
            self.set_register(register, value);
        }
        self.advance(shape, GprName::Rsi, 1);
        self.consume(shape, 1);
        Ok(())
    }

    /// Returns whether the comparison ends the repetition.
    fn compare(&mut self, shape: &Shape, left: u64, right: u64) -> bool {
        let flags = subtraction(left, right, 8 * shape.size as u32);
        self.state_mut().flags = flags;
        let equal = flags & 0x4000 != 0;
        match shape.repeat {
            Repeat::Once => true,
            Repeat::WhileEqual => !equal,
            Repeat::WhileNotEqual => equal,
        }
    }

    fn scas(&mut self, shape: &Shape) -> Result<bool, Fault> {
        let right = self.read_element(self.target(shape, 1, false)?, shape.size)?;
        let left = self.gpr(GprName::Rax);
        self.advance(shape, GprName::Rdi, 1);
        self.consume(shape, 1);
        Ok(self.compare(shape, left, right))
    }

    fn cmps(&mut self, shape: &Shape) -> Result<bool, Fault> {
        // In the CPU's order, which shows where both fault.
        let right = self.read_element(self.target(shape, 1, false)?, shape.size)?;
        let left = self.read_element(self.source(shape, 1)?, shape.size)?;
        self.advance(shape, GprName::Rsi, 1);
        self.advance(shape, GprName::Rdi, 1);
        self.consume(shape, 1);
        Ok(self.compare(shape, left, right))
    }
}

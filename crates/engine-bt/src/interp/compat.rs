//! What code of 16 and 32 bits has and 64-bit code lacks.
//! Source: Intel SDM vol. 2.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};
use ring3_engine::{Exit, GprName, vector};

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;
use crate::flag_word::{AF, CF, OF, ZF, result};
use crate::translate::segment_name;

/// `daa` (or `das` where `subtract`): the new AL and whether CF and AF are set.
fn decimal_adjust(al: u8, carry: bool, adjust: bool, subtract: bool) -> (u8, bool, bool) {
    let low = al & 0xf > 9 || adjust;
    let high = al > 0x99 || carry;
    let correction = if low { 6 } else { 0 } | if high { 0x60 } else { 0 };
    let new = if subtract { al.wrapping_sub(correction) } else { al.wrapping_add(correction) };
    // A borrow or carry out of the low correction counts too.
    let beyond = subtract && low && al < 6;
    (new, high || beyond, low)
}

impl BtVcpu {
    /// Instructions of code of 16 and 32 bits. `None`: treated as in 64-bit code.
    pub(super) fn compat(&mut self, instr: &Instruction) -> Option<Step> {
        use Mnemonic as M;
        if let Some(step) = self.compat_branch(instr).or_else(|| self.compat_stack(instr)) {
            return Some(step);
        }
        let step = match instr.mnemonic() {
            M::Aam => self.aam(instr.immediate8()),
            M::Aad => self.aad(instr.immediate8()),
            M::Aaa => self.ascii_adjust(false),
            M::Aas => self.ascii_adjust(true),
            M::Daa => self.decimal(false),
            M::Das => self.decimal(true),
            M::Salc => {
                let value = if self.flag(CF) { 0xff } else { 0 };
                self.set_al(value);
                Ok(Next::Advance)
            }
            M::Into => {
                if !self.flag(OF) {
                    return Some(Ok(Next::Advance));
                }
                Ok(Next::Leave(Exit::SoftwareInterrupt { vector: vector::OF }))
            }
            M::Bound => self.bound(instr),
            M::Vzeroall => self.clear_vectors(0),
            M::Vzeroupper => self.clear_vectors(16),
            M::Arpl => self.arpl(instr),
            M::Xlatb => self.xlatb(instr),
            _ => return None,
        };
        Some(step)
    }

    /// `vzeroall`, `vzeroupper`: of the eight registers that there are, what lies from byte `from` on.
    fn clear_vectors(&mut self, from: usize) -> Step {
        let vectors = self.state_mut().ymm.iter_mut().take(8);
        vectors.for_each(|vector| vector.iter_mut().skip(from).for_each(|byte| *byte = 0));
        Ok(Next::Advance)
    }

    pub(super) fn flag(&self, flag: u16) -> bool {
        self.state().flags & flag != 0
    }

    fn set_flags(&mut self, flags: u16) {
        self.state_mut().flags = flags | 0x0200;
    }

    fn set_al(&mut self, value: u8) {
        let rax = self.gpr(GprName::Rax);
        self.set_gpr(GprName::Rax, rax & !0xff | u64::from(value));
    }

    fn aam(&mut self, base: u8) -> Step {
        let al = self.gpr(GprName::Rax) as u8;
        let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
            return Err(Fault(Exit::Exception { vector: vector::DE, error_code: None, cr2: 0 }));
        };
        self.set_register(Register::AX, u64::from(high) << 8 | u64::from(low));
        self.set_flags(result(u64::from(low), 8));
        Ok(Next::Advance)
    }

    fn aad(&mut self, base: u8) -> Step {
        let ax = self.gpr(GprName::Rax) as u16;
        let value = ((ax >> 8) as u8).wrapping_mul(base).wrapping_add(ax as u8);
        self.set_register(Register::AX, u64::from(value));
        self.set_flags(result(u64::from(value), 8));
        Ok(Next::Advance)
    }

    /// `aaa`, `aas`.
    fn ascii_adjust(&mut self, subtract: bool) -> Step {
        let ax = self.gpr(GprName::Rax) as u16;
        let adjust = ax & 0xf > 9 || self.flag(AF);
        let moved = match (adjust, subtract) {
            (false, _) => ax,
            (true, false) => ax.wrapping_add(0x106),
            (true, true) => ax.wrapping_sub(6).wrapping_sub(0x100),
        };
        self.set_register(Register::AX, u64::from(moved & 0xff0f));
        self.set_flags(if adjust { AF | CF } else { 0 } | result(u64::from(moved & 0xf), 8));
        Ok(Next::Advance)
    }

    /// `daa`, `das`.
    fn decimal(&mut self, subtract: bool) -> Step {
        let al = self.gpr(GprName::Rax) as u8;
        let (value, carry, adjust) = decimal_adjust(al, self.flag(CF), self.flag(AF), subtract);
        self.set_al(value);
        let flags = result(u64::from(value), 8) | if carry { CF } else { 0 } | if adjust { AF } else { 0 };
        self.set_flags(flags);
        Ok(Next::Advance)
    }

    fn bound(&mut self, instr: &Instruction) -> Step {
        let size = instr.op0_register().size() as u64;
        let signed = |value: u64| if size == 2 { i64::from(value as i16) } else { i64::from(value as i32) };
        let low = signed(self.read_element(self.operand(instr, 0, size as usize, false)?, size)?);
        let high = signed(self.read_element(self.operand(instr, size as usize, size as usize, false)?, size)?);
        let index = signed(self.register(instr.op0_register()));
        if index < low || index > high {
            return Err(Fault(Exit::Exception { vector: vector::BR, error_code: None, cr2: 0 }));
        }
        Ok(Next::Advance)
    }

    fn arpl(&mut self, instr: &Instruction) -> Step {
        let source = self.register(instr.op1_register()) as u16;
        let in_memory = instr.op0_kind() == OpKind::Memory;
        let address = if in_memory { self.operand(instr, 0, 2, false)? } else { 0 };
        let old = if in_memory { self.read_element(address, 2)? } else { self.register(instr.op0_register()) } as u16;
        let raised = old & 3 < source & 3;
        if raised {
            let new = old & !3 | source & 3;
            if in_memory {
                let address = self.operand(instr, 0, 2, true)?;
                self.write_element(address, u64::from(new), 2)?;
            } else if let Some(slot) = self.state_mut().regs.gpr.get_mut(instr.op0_register().number()) {
                // 16 bits, though the operand has the name of 32.
                *slot = *slot & !0xffff | u64::from(new);
            }
        }
        let flags = self.state().flags & !ZF | if raised { ZF } else { 0 };
        self.set_flags(flags);
        Ok(Next::Advance)
    }

    fn xlatb(&mut self, instr: &Instruction) -> Step {
        let al = self.gpr(GprName::Rax) & 0xff;
        let base = self.register(instr.memory_base()).wrapping_add(al);
        let base = if instr.memory_base() == Register::BX { base & 0xffff } else { base & 0xffff_ffff };
        let address = self.place(segment_name(instr.memory_segment()), base, 1, false)?;
        let value = self.read_element(address, 1)?;
        self.set_al(value as u8);
        Ok(Next::Advance)
    }
}

#[cfg(test)]
mod tests {
    use super::decimal_adjust;

    /// The manual's own wording, step by step.
    fn reference(al: u8, cf: bool, af: bool, subtract: bool) -> (u8, bool, bool) {
        let (old, mut value, mut carry, mut adjust) = (al, al, false, false);
        let change = |v: u8, by: u8| if subtract { v.overflowing_sub(by) } else { v.overflowing_add(by) };
        if al & 0xf > 9 || af {
            let (new, out) = change(value, 6);
            (value, carry, adjust) = (new, cf || out, true);
        }
        if old > 0x99 || cf {
            value = change(value, 0x60).0;
            carry = true;
        } else if !subtract {
            carry = false;
        }
        (value, carry, adjust)
    }

    #[test]
    fn test_decimal_adjustments_follow_the_manual() {
        for al in 0..=255u8 {
            for bits in 0..8 {
                let (cf, af, subtract) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0);
                assert_eq!(
                    decimal_adjust(al, cf, af, subtract),
                    reference(al, cf, af, subtract),
                    "al {al:#x} cf {cf} af {af} subtract {subtract}"
                );
            }
        }
    }
}

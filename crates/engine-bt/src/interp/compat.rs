//! What 32-bit code has and 64-bit code lacks, and its stack instructions that are too rare to translate.
//! Source: Intel SDM vol. 2.

use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use ring3_engine::{Exit, GprName, rflags, vector};

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;

/// Flags in AX form (see `State::flags`) and their bits.
const CF: u16 = 0x0100;
const PF: u16 = 0x0400;
const AF: u16 = 0x1000;
const ZF: u16 = 0x4000;
const SF: u16 = 0x8000;
const OF: u16 = 0x0001;

/// Order of `pusha`.
const PUSHA: [Register; 8] = [
    Register::EAX,
    Register::ECX,
    Register::EDX,
    Register::EBX,
    Register::ESP,
    Register::EBP,
    Register::ESI,
    Register::EDI,
];

/// SF, ZF and PF of a byte.
fn result_flags(value: u8) -> u16 {
    let mut flags = if value & 0x80 != 0 { SF } else { 0 };
    if value == 0 {
        flags |= ZF;
    }
    if value.count_ones().is_multiple_of(2) {
        flags |= PF;
    }
    flags
}

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
    /// Instructions of 32-bit code. `None`: treated as in 64-bit code.
    pub(super) fn compat(&mut self, instr: &Instruction) -> Option<Step> {
        use Mnemonic as M;
        let step = match instr.mnemonic() {
            M::Pushad | M::Pusha => self.push_all(instr),
            M::Popad | M::Popa => self.pop_all(instr),
            M::Pushfd | M::Pushf => self.push_flags(instr),
            M::Popfd | M::Popf => self.pop_flags(instr),
            M::Enter => self.enter_frame(instr),
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
            M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz => self.counted_branch(instr),
            _ if instr.op0_kind() == OpKind::NearBranch16 => self.branch16(instr),
            _ if matches!(instr.code(), Code::Jmp_rm16 | Code::Call_rm16 | Code::Retnw | Code::Retnw_imm16) => {
                self.branch16(instr)
            }
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

    fn flag(&self, flag: u16) -> bool {
        self.state().flags & flag != 0
    }

    fn set_flags(&mut self, flags: u16) {
        self.state_mut().flags = flags | 0x0200;
    }

    fn set_al(&mut self, value: u8) {
        let rax = self.gpr(GprName::Rax);
        self.set_gpr(GprName::Rax, rax & !0xff | u64::from(value));
    }

    fn esp(&self) -> u64 {
        self.gpr(GprName::Rsp) & 0xffff_ffff
    }

    /// Stores an element of `size` bytes below `esp`; returns its address.
    fn push_at(&mut self, esp: u64, value: u64, size: u64) -> Result<u64, Fault> {
        let at = esp.wrapping_sub(size) & 0xffff_ffff;
        self.write_element(at, value, size)?;
        Ok(at)
    }

    fn push_all(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Pusha { 2u64 } else { 4 };
        let mut bytes = Vec::with_capacity(32);
        for register in PUSHA.iter().rev() {
            let value = self.register(*register).to_le_bytes();
            bytes.extend_from_slice(value.get(..size as usize).unwrap_or_default());
        }
        let at = self.esp().wrapping_sub(8 * size) & 0xffff_ffff;
        self.check_alignment(at, size as usize)?;
        self.write_guest(at, &bytes)?;
        self.set_gpr(GprName::Rsp, at);
        Ok(Next::Advance)
    }

    fn pop_all(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Popa { 2usize } else { 4 };
        let mut bytes = [0u8; 32];
        let bytes = bytes.get_mut(..8 * size).ok_or_else(Fault::undefined)?;
        let esp = self.esp();
        self.check_alignment(esp, size)?;
        self.read_guest(esp, bytes)?;
        for (register, raw) in PUSHA.iter().rev().zip(bytes.chunks_exact(size)) {
            let mut value = [0u8; 8];
            if let Some(to) = value.get_mut(..size) {
                to.copy_from_slice(raw);
            }
            let number = register.number();
            let value = u64::from_le_bytes(value);
            if *register != Register::ESP
                && let Some(slot) = self.state_mut().regs.gpr.get_mut(number)
            {
                *slot = if size == 2 { *slot & !0xffff | value } else { value };
            }
        }
        self.set_gpr(GprName::Rsp, esp.wrapping_add(8 * size as u64) & 0xffff_ffff);
        Ok(Next::Advance)
    }

    fn push_flags(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Pushf { 2 } else { 4 };
        self.state_mut().pack_flags();
        let value = self.state().regs.rflags & 0x00fc_ffff;
        let at = self.push_at(self.esp(), value, size)?;
        self.set_gpr(GprName::Rsp, at);
        Ok(Next::Advance)
    }

    fn pop_flags(&mut self, instr: &Instruction) -> Step {
        let size = if instr.mnemonic() == Mnemonic::Popf { 2 } else { 4 };
        let esp = self.esp();
        let value = self.read_element(esp, size)?;
        let mask = if size == 2 { super::misc::POPF_MASK & 0xffff } else { super::misc::POPF_MASK };
        let state = self.state_mut();
        state.pack_flags();
        state.regs.rflags = state.regs.rflags & !mask & !rflags::RF | value & mask | rflags::FIXED;
        state.unpack_flags();
        self.set_gpr(GprName::Rsp, esp.wrapping_add(size) & 0xffff_ffff);
        Ok(Next::Advance)
    }

    fn enter_frame(&mut self, instr: &Instruction) -> Step {
        let size = if instr.code() == Code::Enterw_imm16_imm8 { 2u64 } else { 4 };
        let (bytes, level) = (u64::from(instr.immediate16()), instr.immediate8_2nd() & 31);
        let ebp = self.gpr(GprName::Rbp);
        let frame = self.push_at(self.esp(), ebp, size)?;
        let mut esp = frame;
        for n in 1..u64::from(level) {
            let link = self.read_element(ebp.wrapping_sub(size * n) & 0xffff_ffff, size)?;
            esp = self.push_at(esp, link, size)?;
        }
        if level > 0 {
            esp = self.push_at(esp, frame, size)?;
        }
        // The CPU checks that the new top of the stack can be written, without writing.
        let new_esp = esp.wrapping_sub(bytes) & 0xffff_ffff;
        self.check_alignment(new_esp, size as usize)?;
        self.probe_for_writing(new_esp, size as usize)?;
        self.set_gpr(GprName::Rbp, if size == 2 { ebp & !0xffff | frame & 0xffff } else { frame });
        self.set_gpr(GprName::Rsp, new_esp);
        Ok(Next::Advance)
    }

    fn aam(&mut self, base: u8) -> Step {
        let al = self.gpr(GprName::Rax) as u8;
        let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
            return Err(Fault(Exit::Exception { vector: vector::DE, error_code: None, cr2: 0 }));
        };
        self.set_register(Register::AX, u64::from(high) << 8 | u64::from(low));
        self.set_flags(result_flags(low));
        Ok(Next::Advance)
    }

    fn aad(&mut self, base: u8) -> Step {
        let ax = self.gpr(GprName::Rax) as u16;
        let value = ((ax >> 8) as u8).wrapping_mul(base).wrapping_add(ax as u8);
        self.set_register(Register::AX, u64::from(value));
        self.set_flags(result_flags(value));
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
        self.set_flags(if adjust { AF | CF } else { 0 } | result_flags((moved & 0xf) as u8));
        Ok(Next::Advance)
    }

    /// `daa`, `das`.
    fn decimal(&mut self, subtract: bool) -> Step {
        let al = self.gpr(GprName::Rax) as u8;
        let (value, carry, adjust) = decimal_adjust(al, self.flag(CF), self.flag(AF), subtract);
        self.set_al(value);
        let flags = result_flags(value) | if carry { CF } else { 0 } | if adjust { AF } else { 0 };
        self.set_flags(flags);
        Ok(Next::Advance)
    }

    fn bound(&mut self, instr: &Instruction) -> Step {
        let size = instr.op0_register().size() as u64;
        let signed = |value: u64| if size == 2 { i64::from(value as i16) } else { i64::from(value as i32) };
        let address = self.operand_address(instr);
        let low = signed(self.read_element(address, size)?);
        let high = signed(self.read_element(address.wrapping_add(size) & 0xffff_ffff, size)?);
        let index = signed(self.register(instr.op0_register()));
        if index < low || index > high {
            return Err(Fault(Exit::Exception { vector: vector::BR, error_code: None, cr2: 0 }));
        }
        Ok(Next::Advance)
    }

    fn arpl(&mut self, instr: &Instruction) -> Step {
        let source = self.register(instr.op1_register()) as u16;
        let in_memory = instr.op0_kind() == OpKind::Memory;
        let address = self.operand_address(instr);
        let old = if in_memory { self.read_element(address, 2)? } else { self.register(instr.op0_register()) } as u16;
        let raised = old & 3 < source & 3;
        if raised {
            let new = old & !3 | source & 3;
            if in_memory {
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
        let address = base.wrapping_add(self.segment_base(instr.memory_segment())) & 0xffff_ffff;
        let value = self.read_element(address, 1)?;
        self.set_al(value as u8);
        Ok(Next::Advance)
    }

    /// `loop` and kin that count in CX, and `jcxz`; or with a 16-bit operand size.
    fn counted_branch(&mut self, instr: &Instruction) -> Step {
        let in_cx = matches!(
            instr.code(),
            Code::Jcxz_rel8_16
                | Code::Jcxz_rel8_32
                | Code::Loop_rel8_16_CX
                | Code::Loop_rel8_32_CX
                | Code::Loope_rel8_16_CX
                | Code::Loope_rel8_32_CX
                | Code::Loopne_rel8_16_CX
                | Code::Loopne_rel8_32_CX
        );
        let register = if in_cx { Register::CX } else { Register::ECX };
        let mut count = self.register(register);
        let looping = !matches!(instr.mnemonic(), Mnemonic::Jcxz | Mnemonic::Jecxz);
        if looping {
            self.set_register(register, count.wrapping_sub(1));
            count = self.register(register);
        }
        let taken = match instr.mnemonic() {
            Mnemonic::Loop => count != 0,
            Mnemonic::Loope => count != 0 && self.flag(ZF),
            Mnemonic::Loopne => count != 0 && !self.flag(ZF),
            _ => count == 0,
        };
        Ok(if taken { Next::Jump(instr.near_branch_target()) } else { Next::Advance })
    }

    /// Near branches with a 16-bit operand size: the target is cut to 16 bits.
    fn branch16(&mut self, instr: &Instruction) -> Step {
        let target = match instr.code() {
            Code::Retnw | Code::Retnw_imm16 => {
                let esp = self.esp();
                let target = self.read_element(esp, 2)?;
                let extra = if instr.op_count() > 0 { u64::from(instr.immediate16()) } else { 0 };
                self.set_gpr(GprName::Rsp, esp.wrapping_add(2 + extra) & 0xffff_ffff);
                return Ok(Next::Jump(target));
            }
            Code::Jmp_rm16 | Code::Call_rm16 if instr.op0_kind() == OpKind::Memory => {
                let address = self.operand_address(instr);
                self.read_element(address, 2)?
            }
            Code::Jmp_rm16 | Code::Call_rm16 => self.register(instr.op0_register()),
            _ => u64::from(instr.near_branch16()),
        };
        match instr.mnemonic() {
            Mnemonic::Call => {
                let at = self.push_at(self.esp(), instr.next_ip() & 0xffff, 2)?;
                self.set_gpr(GprName::Rsp, at);
            }
            Mnemonic::Jmp => {}
            _ if !self.condition(instr.condition_code()) => return Ok(Next::Advance),
            _ => {}
        }
        Ok(Next::Jump(target))
    }

    fn condition(&self, code: iced_x86::ConditionCode) -> bool {
        use iced_x86::ConditionCode as C;
        let (cf, zf, sf, of, pf) = (self.flag(CF), self.flag(ZF), self.flag(SF), self.flag(OF), self.flag(PF));
        match code {
            C::None => true,
            C::o => of,
            C::no => !of,
            C::b => cf,
            C::ae => !cf,
            C::e => zf,
            C::ne => !zf,
            C::be => cf || zf,
            C::a => !cf && !zf,
            C::s => sf,
            C::ns => !sf,
            C::p => pf,
            C::np => !pf,
            C::l => sf != of,
            C::ge => sf == of,
            C::le => zf || sf != of,
            C::g => !zf && sf == of,
        }
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

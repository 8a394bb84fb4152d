//! Near branches of code of 16 and 32 bits: targets are cut to the operand size, and must lie in the code segment. And those with
//! a 16-bit operand size in 64-bit code, by which RIP is cut to 16 bits: AMD's CPUs have them, Intel's ignore the prefix there.
//! Source: Intel SDM vol. 2, "JMP", "CALL", "RET", "Jcc", "LOOP".

use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind, Register};
use ring3_engine::SegmentName;

use super::{Fault, Next, Step};
use crate::dispatch::BtVcpu;
use crate::flag_word::{CF, OF, PF, SF, ZF};
use crate::translate::{is_stack_operand, is_word_branch};

impl BtVcpu {
    /// Executes a branch of 64-bit code with a 16-bit operand size. `None` if the instruction is another.
    pub(super) fn word_branch(&mut self, instr: &Instruction) -> Option<Step> {
        is_word_branch(instr).then(|| self.near_branch(instr))
    }

    /// Executes a near branch of code of 16 or 32 bits. `None` if the instruction is another.
    pub(super) fn compat_branch(&mut self, instr: &Instruction) -> Option<Step> {
        use Mnemonic as M;
        let is_near = match instr.mnemonic() {
            M::Jmp => instr.is_jmp_short_or_near() || instr.is_jmp_near_indirect(),
            M::Call => instr.is_call_near() || instr.is_call_near_indirect(),
            M::Ret | M::Loop | M::Loope | M::Loopne | M::Jcxz | M::Jecxz => true,
            _ => instr.is_jcc_short_or_near(),
        };
        is_near.then(|| self.near_branch(instr))
    }

    fn near_branch(&mut self, instr: &Instruction) -> Step {
        // Bytes of a return address: the operand size.
        let word = if is_word_branch(instr) { 2 } else { 4 };
        match instr.mnemonic() {
            Mnemonic::Ret => {
                let (target, sp) = self.pop_at(self.sp(), word)?;
                self.check_target(target)?;
                let extra = if instr.op_count() > 0 { u64::from(instr.immediate16()) } else { 0 };
                self.set_sp(sp.wrapping_add(extra));
                return Ok(Next::Jump(target));
            }
            Mnemonic::Call => {
                let target = self.target_of(instr, word)?;
                let sp = self.push_at(self.sp(), instr.next_ip(), word)?;
                self.check_target(target)?;
                self.set_sp(sp);
                return Ok(Next::Jump(target));
            }
            _ => {}
        }
        let target = self.target_of(instr, word)?;
        let (count, is_taken) = self.is_taken(instr);
        if is_taken {
            self.check_target(target)?;
        }
        if let Some((register, value)) = count {
            self.set_register(register, value);
        }
        Ok(if is_taken { Next::Jump(target) } else { Next::Advance })
    }

    fn target_of(&mut self, instr: &Instruction, word: u64) -> Result<u64, Fault> {
        match instr.op0_kind() {
            OpKind::Register => Ok(self.register(instr.op0_register())),
            OpKind::Memory => {
                self.stack_operand = is_stack_operand(instr);
                let at = self.operand(instr, 0, word as usize, false)?;
                self.read_element(at, word)
            }
            _ => Ok(instr.near_branch_target()),
        }
    }

    /// A branch to outside of the code segment faults itself.
    fn check_target(&self, target: u64) -> Result<(), Fault> {
        let is_inside = target <= u64::from(self.segment(SegmentName::Cs).limit);
        if is_inside { Ok(()) } else { Err(Fault::protection()) }
    }

    /// What `loop` leaves in its counter, and whether a branch is taken.
    fn is_taken(&self, instr: &Instruction) -> (Option<(Register, u64)>, bool) {
        use Code as C;
        use Mnemonic as M;
        let register = match instr.code() {
            C::Loop_rel8_16_ECX | C::Loop_rel8_32_ECX | C::Loope_rel8_16_ECX | C::Loope_rel8_32_ECX => Register::ECX,
            C::Loopne_rel8_16_ECX | C::Loopne_rel8_32_ECX | C::Jecxz_rel8_16 | C::Jecxz_rel8_32 => Register::ECX,
            C::Loop_rel8_16_RCX | C::Loope_rel8_16_RCX | C::Loopne_rel8_16_RCX | C::Jrcxz_rel8_16 => Register::RCX,
            _ => Register::CX,
        };
        let mask = u64::MAX >> (64 - 8 * register.size());
        let count = self.register(register).wrapping_sub(1) & mask;
        let (counted, is_zero) = (Some((register, count)), self.flag(ZF));
        match instr.mnemonic() {
            M::Loop => (counted, count != 0),
            M::Loope => (counted, count != 0 && is_zero),
            M::Loopne => (counted, count != 0 && !is_zero),
            M::Jcxz | M::Jecxz | M::Jrcxz => (None, self.register(register) == 0),
            _ => (None, self.condition(instr.condition_code())),
        }
    }

    fn condition(&self, code: ConditionCode) -> bool {
        use ConditionCode as C;
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

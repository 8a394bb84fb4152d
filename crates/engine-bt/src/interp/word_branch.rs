//! Near branches with a 16-bit operand size in 64-bit code: RIP is cut to 16 bits. AMD's CPUs have them; Intel's ignore the
//! prefix there.

use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};
use ring3_engine::GprName;

use super::{Next, Step};
use crate::dispatch::BtVcpu;

impl BtVcpu {
    /// Executes the branch. None if the instruction is another.
    pub(super) fn word_branch(&mut self, instr: &Instruction) -> Option<Step> {
        crate::translate::is_word_branch(instr).then(|| self.word_branch_step(instr))
    }

    fn word_branch_step(&mut self, instr: &Instruction) -> Step {
        use Mnemonic as M;
        let target = match instr.op0_kind() {
            OpKind::NearBranch16 => u64::from(instr.near_branch16()),
            OpKind::Register => self.register(instr.op0_register()),
            OpKind::Memory => {
                self.stack_operand = crate::translate::is_stack_operand(instr);
                let address = self.operand(instr, 0, 2, false)?;
                self.read_element(address, 2)?
            }
            _ => 0,
        };
        let is_taken = match instr.mnemonic() {
            M::Jmp => true,
            M::Call => {
                let rsp = self.gpr(GprName::Rsp).wrapping_sub(2);
                self.stack_operand = true;
                self.write_element(rsp, instr.next_ip() & 0xffff, 2)?;
                self.set_gpr(GprName::Rsp, rsp);
                true
            }
            M::Ret => {
                let rsp = self.gpr(GprName::Rsp);
                let target = self.read_element(rsp, 2)?;
                let extra = if instr.op_count() > 0 { u64::from(instr.immediate16()) } else { 0 };
                let rsp = rsp.wrapping_add(2 + extra);
                self.set_gpr(GprName::Rsp, rsp);
                return Ok(Next::Jump(target));
            }
            M::Jcxz => self.gpr(GprName::Rcx) & 0xffff == 0,
            M::Jecxz => self.gpr(GprName::Rcx) & 0xffff_ffff == 0,
            M::Jrcxz => self.gpr(GprName::Rcx) == 0,
            M::Loop | M::Loope | M::Loopne => self.count_down(instr),
            _ => self.holds(instr.condition_code()),
        };
        Ok(if is_taken { Next::Jump(target) } else { Next::Advance })
    }

    /// `loop` and kin: whether they branch.
    fn count_down(&mut self, instr: &Instruction) -> bool {
        use iced_x86::Code as C;
        let rcx = self.gpr(GprName::Rcx);
        let (count, kept) = match instr.code() {
            C::Loop_rel8_16_CX | C::Loope_rel8_16_CX | C::Loopne_rel8_16_CX => {
                (rcx.wrapping_sub(1) & 0xffff, rcx & !0xffff)
            }
            C::Loop_rel8_16_ECX | C::Loope_rel8_16_ECX | C::Loopne_rel8_16_ECX => {
                (rcx.wrapping_sub(1) & 0xffff_ffff, 0)
            }
            _ => (rcx.wrapping_sub(1), 0),
        };
        self.set_gpr(GprName::Rcx, kept | count);
        let is_zero = self.state().flags >> 8 & 0x40 != 0;
        count != 0
            && match instr.mnemonic() {
                Mnemonic::Loope => is_zero,
                Mnemonic::Loopne => !is_zero,
                _ => true,
            }
    }

    /// Whether a condition holds for the saved flags.
    fn holds(&self, condition: ConditionCode) -> bool {
        use ConditionCode as C;
        let flags = self.state().flags;
        let bit = |n: u16| flags >> (8 + n) & 1 != 0;
        let (carry, parity, zero, sign, overflow) = (bit(0), bit(2), bit(6), bit(7), flags & 1 != 0);
        match condition {
            C::o => overflow,
            C::no => !overflow,
            C::b => carry,
            C::ae => !carry,
            C::e => zero,
            C::ne => !zero,
            C::be => carry || zero,
            C::a => !(carry || zero),
            C::s => sign,
            C::ns => !sign,
            C::p => parity,
            C::np => !parity,
            C::l => sign != overflow,
            C::ge => sign == overflow,
            C::le => zero || sign != overflow,
            C::g => !zero && sign == overflow,
            C::None => false,
        }
    }
}

//! 32-bit code (compatibility mode), made into 64-bit code; and single instructions of 16-bit code.
//!
//! The upper halves of all registers that 32-bit code sees are clear on entry, and stay so: 32-bit results clear them, and
//! 8 and 16-bit ones leave them alone. So most instructions are copied, or encoded anew, as in 64-bit code; the others
//! are given here. Addresses are cut to 32 bits where they are computed.

use iced_x86::{Code, CodeSize, Decoder, DecoderOptions, EncodingKind, Instruction, Mnemonic, OpKind, Register};
use ring3_engine::SegmentName;

use super::classify::Kind;
use super::emitter::Emitter;
use super::memory::hardware;
use super::{Variant, segment_name};
use crate::emit::asm::{Mem, S1};
use crate::host_unsafe::decoder_options;

/// Whether the decoder ran in 32-bit or 16-bit mode.
pub fn is_compat(instr: &Instruction) -> bool {
    matches!(instr.code_size(), CodeSize::Code32 | CodeSize::Code16)
}

/// Whether an instruction's memory operand goes through a segment that translated code does not check. `step` does.
pub fn needs_segment_check(instr: &Instruction, variant: Variant) -> bool {
    let has_operand = (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory);
    let name = segment_name(instr.memory_segment());
    let has_base = matches!(name, SegmentName::Fs | SegmentName::Gs);
    has_operand && (!variant.may_access_by(name) || has_base && ends_beyond(instr))
}

/// Whether the operand has a constant address that wraps at 4 GiB.
fn ends_beyond(instr: &Instruction) -> bool {
    let is_constant = instr.memory_base() == Register::None && instr.memory_index() == Register::None;
    is_constant && instr.memory_displacement64() + instr.memory_size().size() as u64 > 1 << 32
}

/// Treatment of what 64-bit code does not have, or has otherwise.
pub fn classify(instr: &Instruction) -> Option<Kind> {
    use Mnemonic as M;
    let interpreted = match instr.mnemonic() {
        M::Aaa | M::Aad | M::Aam | M::Aas | M::Daa | M::Das | M::Salc => true,
        M::Arpl | M::Bound | M::Into | M::Lds | M::Les | M::Xlatb => true,
        M::Pusha | M::Pushad | M::Popa | M::Popad | M::Pushfd | M::Popfd => true,
        M::Jcxz | M::Vzeroall | M::Vzeroupper => true,
        _ => {
            matches!(instr.code(), Code::Loop_rel8_32_CX | Code::Loope_rel8_32_CX | Code::Loopne_rel8_32_CX)
        }
    };
    interpreted.then_some(Kind::Interpret)
}

/// Whether the host's CPU takes these bytes for no instruction of 32-bit code: where Intel's CPUs ignore VEX.W, AMD's have no
/// VPEXTRQ and VPINSRQ.
pub fn is_refused(instr: &Instruction, bytes: &[u8]) -> bool {
    const VEX3: u8 = 0xc4;
    const W: u8 = 0x80;
    let is_wide = || bytes.iter().skip_while(|&&byte| byte != VEX3).nth(2).is_some_and(|third| third & W != 0);
    matches!(instr.code(), Code::VEX_Vpextrd_rm32_xmm_imm8 | Code::VEX_Vpinsrd_xmm_xmm_rm32_imm8)
        && is_compat(instr)
        && decoder_options() == DecoderOptions::AMD
        && is_wide()
}

/// Replaces opcodes that 64-bit mode lacks by others that do the same.
pub fn lower(instr: &mut Instruction) {
    let code = match instr.code() {
        Code::Inc_r16 => Code::Inc_rm16,
        Code::Inc_r32 => Code::Inc_rm32,
        Code::Dec_r16 => Code::Dec_rm16,
        Code::Dec_r32 => Code::Dec_rm32,
        Code::Add_rm8_imm8_82 => Code::Add_rm8_imm8,
        Code::Or_rm8_imm8_82 => Code::Or_rm8_imm8,
        Code::Adc_rm8_imm8_82 => Code::Adc_rm8_imm8,
        Code::Sbb_rm8_imm8_82 => Code::Sbb_rm8_imm8,
        Code::And_rm8_imm8_82 => Code::And_rm8_imm8,
        Code::Sub_rm8_imm8_82 => Code::Sub_rm8_imm8,
        Code::Xor_rm8_imm8_82 => Code::Xor_rm8_imm8,
        Code::Cmp_rm8_imm8_82 => Code::Cmp_rm8_imm8,
        _ => return,
    };
    instr.set_code(code);
}

/// Whether the bytes of an instruction without a memory operand say something else in 64-bit mode. Code that was not asked
/// about here must not be copied: it could be anything there. VEX is never copied: 32-bit mode ignores its W and its upper
/// register bits.
pub fn needs_encoding(instr: &Instruction, bytes: &[u8]) -> bool {
    if instr.encoding() == EncodingKind::VEX {
        return true;
    }
    let there = Decoder::new(64, bytes, DecoderOptions::NONE).decode();
    there.code() != instr.code() || there.len() != instr.len() || there.len() != bytes.len()
}

/// Whether the bytes of a `lea` say the same in 64-bit mode: not those of 16-bit code, nor with a 16-bit address, nor a
/// constant one, which would be relative to RIP.
pub fn is_lea_portable(instr: &Instruction) -> bool {
    let is_address32 = instr.memory_base().is_gpr32() || instr.memory_index().is_gpr32();
    is_address32 && instr.code_size() == CodeSize::Code32
}

/// Whether the operand's address is made of 16-bit registers.
pub fn has_address16(instr: &Instruction) -> bool {
    instr.memory_base().is_gpr16() || instr.memory_index().is_gpr16()
}

impl Emitter<'_> {
    /// S1 = effective address made of 16-bit registers.
    pub fn effective_address16(&mut self, instr: &Instruction) {
        let host = |register: Register| if register == Register::None { None } else { Some(hardware(register)) };
        let (base, index) = (host(instr.memory_base()), host(instr.memory_index()));
        let disp = i32::from(instr.memory_displacement64() as i16);
        self.asm.lea(false, S1, Mem { base, index: index.map(|r| (r, 0)), disp, gs: false });
        self.cut_address16();
    }

    /// Cuts S1 to 16 bits.
    pub fn cut_address16(&mut self) {
        self.asm.op_reg(false, &[0x0f, 0xb7], S1, S1);
    }
}

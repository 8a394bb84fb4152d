//! The 32-bit form of what `block` puts around straight code.

use iced_x86::{Code, Instruction, OpKind, Register};

use crate::operand::{gpr32, number};

/// The instruction of 32-bit code that does the same; straight code comes back as it is.
pub fn narrow(instr: &Instruction) -> Option<Instruction> {
    let register = || gpr32(number(instr.op0_register()) as u64);
    let code = instr.code();
    Some(match code {
        Code::Push_r64 => Instruction::with1(Code::Push_r32, register()).ok()?,
        Code::Pop_r64 => Instruction::with1(Code::Pop_r32, register()).ok()?,
        Code::Jmp_rm64 => Instruction::with1(Code::Jmp_rm32, register()).ok()?,
        Code::Pushq_imm32 => Instruction::with1(Code::Pushd_imm32, instr.immediate(0) as i32).ok()?,
        Code::Mov_r64_imm64 => Instruction::with2(Code::Mov_r32_imm32, register(), instr.immediate64() as u32).ok()?,
        // A label.
        Code::Lea_r64_m => Instruction::with2(Code::Mov_r32_imm32, register(), 0u32).ok()?,
        Code::Pushfq => Instruction::with(Code::Pushfd),
        Code::Popfq => Instruction::with(Code::Popfd),
        Code::Retnq => Instruction::with(Code::Retnd),
        Code::Loop_rel8_64_RCX => Instruction::with_branch(Code::Loop_rel8_32_ECX, 0).ok()?,
        Code::Movsq_m64_m64 => with_code(instr, Code::Movsd_m32_m32),
        Code::Stosq_m64_RAX => {
            let mut instr = with_code(instr, Code::Stosd_m32_EAX);
            instr.set_op1_register(Register::EAX);
            instr
        }
        Code::Push_rm64 => with_code(instr, Code::Push_rm32),
        Code::Dec_rm64 => Instruction::with1(Code::Dec_rm32, register()).ok()?,
        _ if instr.op0_kind() == OpKind::NearBranch64 => {
            // Each 32-bit form stands right before its 64-bit form in iced's list.
            let form = Code::try_from(code as usize - 1).ok()?;
            Instruction::with_branch(form, 0).ok()?
        }
        _ => *instr,
    })
}

fn with_code(instr: &Instruction, code: Code) -> Instruction {
    let mut other = *instr;
    other.set_code(code);
    other
}

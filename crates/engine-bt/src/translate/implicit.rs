//! Which instructions access memory that is not an explicit operand.
//!
//! A copied instruction must reach memory through its (rewritten) operand only. The answer is a property of the opcode;
//! it is computed once for each and kept.

use std::sync::atomic::{AtomicU8, Ordering};

use iced_x86::{Instruction, InstructionInfoFactory, InstructionInfoOptions, OpKind};

/// More than there are values of `iced_x86::Code`.
const NR_CODES: usize = 8192;
const UNKNOWN: u8 = 0;
const EXPLICIT: u8 = 1;
const IMPLICIT: u8 = 2;

static ANSWERS: [AtomicU8; NR_CODES] = [const { AtomicU8::new(UNKNOWN) }; NR_CODES];

/// Whether the instruction accesses memory other than by an explicit memory operand.
pub fn accesses_memory(instr: &Instruction) -> bool {
    let Some(answer) = ANSWERS.get(instr.code() as usize) else { return true };
    match answer.load(Ordering::Relaxed) {
        EXPLICIT => false,
        IMPLICIT => true,
        _ => {
            let implicit = compute(instr);
            answer.store(if implicit { IMPLICIT } else { EXPLICIT }, Ordering::Relaxed);
            implicit
        }
    }
}

fn compute(instr: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(instr, InstructionInfoOptions::NO_REGISTER_USAGE);
    let explicit = (0..instr.op_count()).filter(|&op| instr.op_kind(op) == OpKind::Memory).count();
    // A form of the same opcode without the operand (a register instead) would say 0 and 0.
    info.used_memory().len() > explicit
}

#[cfg(test)]
mod tests {
    use iced_x86::{Decoder, DecoderOptions};

    use super::accesses_memory;

    fn answer(bytes: &[u8]) -> bool {
        accesses_memory(&Decoder::new(64, bytes, DecoderOptions::NONE).decode())
    }

    #[test]
    fn test_implicit_accesses_are_found() {
        assert!(answer(&[0x66, 0x0f, 0xf7, 0xc1]), "maskmovdqu");
        assert!(answer(&[0xc8, 0, 0, 0]), "enter");
        assert!(answer(&[0xa4]), "movsb");
        assert!(!answer(&[0x48, 0x01, 0x03]), "add [rbx], rax");
        assert!(!answer(&[0x48, 0x01, 0xc3]), "add rbx, rax");
        assert!(!answer(&[0xf0, 0x48, 0x0f, 0xc7, 0x0b]), "lock cmpxchg16b [rbx]");
    }
}

//! Which codes can be compared.

use iced_x86::{Code, CodeSize, Instruction, Mnemonic as M, OpCodeOperandKind as O};
use ring3_engine_bt::{Kind, classify};

/// Why a code has no sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Excluded {
    /// Not for 64-bit mode, or no instruction.
    NotAnInstruction,
    /// The policy hides it.
    Hidden,
    /// The hypervisor emulates it.
    Privileged,
    /// Its results differ from run to run, or show what the policy hides.
    NotComparable,
}

/// Which codes can be compared.
pub fn excluded(code: Code) -> Option<Excluded> {
    excluded_in(code, CodeSize::Code64)
}

/// Which codes can be compared in 32-bit code.
pub fn excluded32(code: Code) -> Option<Excluded> {
    excluded_in(code, CodeSize::Code32)
}

pub fn excluded_in(code: Code, size: CodeSize) -> Option<Excluded> {
    let info = code.op_code();
    let narrow = size != CodeSize::Code64;
    let is_word_branch = code.op_code().op_count() > 0 && matches!(info.op_kind(0), O::br16_1 | O::br16_2);
    let name = format!("{code:?}");
    let is_word = is_word_branch || matches!(name.as_str(), "Call_rm16" | "Jmp_rm16" | "Retnw" | "Retnw_imm16");
    if is_word && size != CodeSize::Code16 {
        // With a 66h prefix: makers differ, and the 16-bit target is on a page that no program has.
        return Some(Excluded::NotComparable);
    }
    let exists = match size {
        CodeSize::Code16 => info.mode16(),
        CodeSize::Code32 => info.mode32(),
        _ => info.mode64(),
    };
    if !exists || !info.is_instruction() || code == Code::INVALID {
        return Some(Excluded::NotAnInstruction);
    }
    let mut instr = Instruction::default();
    instr.set_code(code);
    instr.set_code_size(size);
    match code.mnemonic() {
        M::Rdtsc | M::Rdtscp | M::Rdrand | M::Rdseed | M::Rdpid | M::Rdpmc | M::Xgetbv | M::Syscall => {
            return Some(Excluded::NotComparable);
        }
        M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64 | M::Xsaveopt | M::Xsaveopt64 | M::Xrstor | M::Xrstor64 => {
            return Some(Excluded::NotComparable);
        }
        M::Ud0 | M::Ud1 | M::Ud2 => return None,
        // Under some hypervisors RIP stays at it, against the manuals.
        M::Int1 => return Some(Excluded::NotComparable),
        M::Int => return Some(Excluded::Privileged),
        _ => {}
    }
    for op in 0..info.op_count() {
        if matches!(info.op_kind(op), O::cr_reg | O::dr_reg | O::tr_reg) {
            return Some(Excluded::Privileged);
        }
    }
    let loads_segment = info.op_count() > 0
        && (info.op_kind(0) == O::seg_reg
            || code.mnemonic() == M::Pop && matches!(info.op_kind(0), O::es | O::ss | O::ds | O::fs | O::gs));
    if loads_segment {
        return Some(Excluded::Privileged);
    }
    // AMD's CPUs read four bytes.
    if code == Code::Movsxd_r16_rm16 {
        return Some(Excluded::NotComparable);
    }
    // AMD raises #UD for the register form, Intel does nothing.
    if matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    ) {
        return Some(Excluded::NotComparable);
    }
    match classify(&instr) {
        Kind::Undefined => Some(Excluded::Hidden),
        Kind::Interpret if !(is_ours(code) || narrow && is_ours32(code)) => Some(Excluded::Privileged),
        // Mostly; tests/iret.rs and tests/system.rs test what the engine does itself.
        Kind::Iret | Kind::ReadMsr => Some(Excluded::Privileged),
        Kind::Syscall | Kind::Interrupt(_) => Some(Excluded::NotComparable),
        _ => None,
    }
}

/// Interpreted instructions that the engine executes itself.
fn is_ours(code: Code) -> bool {
    let mut instr = Instruction::default();
    instr.set_code(code);
    if matches!(code.mnemonic(), M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd) {
        return false;
    }
    if matches!(code, Code::Mov_Sreg_rm16 | Code::Mov_Sreg_r32m16 | Code::Mov_Sreg_r64m16 | Code::Enterw_imm16_imm8) {
        return false;
    }
    instr.is_string_instruction()
        || instr.is_vsib()
        || matches!(
            code.mnemonic(),
            M::Fxsave
                | M::Fxsave64
                | M::Fxrstor
                | M::Fxrstor64
                | M::Popf
                | M::Popfq
                | M::Pushf
                | M::Enter
                | M::Maskmovdqu
                | M::Maskmovq
                | M::Vmaskmovdqu
                | M::Vmaskmovps
                | M::Vmaskmovpd
                | M::Vpmaskmovd
                | M::Vpmaskmovq
                | M::Wrfsbase
                | M::Wrgsbase
                | M::Mov
        )
        || matches!(code, Code::Pushq_FS | Code::Pushq_GS | Code::Pushw_FS | Code::Pushw_GS)
}

/// As `is_ours`, what only 32-bit code has.
fn is_ours32(code: Code) -> bool {
    matches!(
        code.mnemonic(),
        M::Vzeroall
            | M::Vzeroupper
            | M::Aaa
            | M::Aad
            | M::Aam
            | M::Aas
            | M::Daa
            | M::Das
            | M::Salc
            | M::Into
            | M::Bound
            | M::Arpl
            | M::Xlatb
    ) || matches!(
        code.mnemonic(),
        M::Jcxz | M::Pusha | M::Pushad | M::Popa | M::Popad | M::Pushf | M::Pushfd | M::Popf | M::Popfd | M::Enter
    ) || matches!(
        code,
        Code::Retnw | Code::Retnw_imm16 | Code::Jmp_rm16 | Code::Call_rm16 | Code::Pushw_ES | Code::Pushd_ES
    ) || matches!(
        code,
        Code::Pushw_CS | Code::Pushd_CS | Code::Pushw_SS | Code::Pushd_SS | Code::Pushw_DS | Code::Pushd_DS
    ) || format!("{code:?}").starts_with("Loop")
}

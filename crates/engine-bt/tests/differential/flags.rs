//! Which flags of a sequence are comparable.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use crate::case::{Case, Placed, rflags};
use crate::state::{End, FLAGS};

/// Shifts, rotates and repeated comparisons that may leave the flags as they were.
pub fn may_keep_flags(instr: &Instruction) -> bool {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shld, Shr, Shrd};
    if instr.is_string_instruction() {
        return instr.has_rep_prefix() || instr.has_repne_prefix();
    }
    if !matches!(instr.mnemonic(), Rcl | Rcr | Rol | Ror | Sal | Sar | Shl | Shld | Shr | Shrd) {
        return false;
    }
    let last = instr.op_count().saturating_sub(1);
    match instr.op_kind(last) {
        OpKind::Immediate8 => instr.immediate8() & 0x1f == 0,
        _ => instr.op_register(last) == Register::CL,
    }
}

/// Flags that the manuals leave undefined after an instruction.
pub fn undefined(instr: &Instruction) -> u64 {
    match instr.mnemonic() {
        _ if shifts_by_zero(instr) => 0,
        // OF, but for a count of one; iced takes a full turn for none.
        Mnemonic::Rcl | Mnemonic::Rcr if instr.op1_kind() != OpKind::Immediate8 || instr.immediate8() & 0x1f != 1 => {
            1 << 11
        }
        _ => rflags(instr.rflags_undefined()),
    }
}

/// Shifts that certainly do nothing.
fn shifts_by_zero(instr: &Instruction) -> bool {
    let last = instr.op_count().saturating_sub(1);
    let wide = instr.op0_register().is_gpr64() || instr.memory_size().size() == 8;
    may_keep_flags(instr)
        && !instr.is_string_instruction()
        && instr.op_kind(last) == OpKind::Immediate8
        && instr.immediate8() & if wide { 0x3f } else { 0x1f } == 0
}

/// The flags to compare after the sequence ended at `rip`.
pub fn comparable(case: &Case, placed: &Placed, end: &End, rip: u64) -> u64 {
    let undefined = case.undefined_flags();
    let last = case.items.len();
    // `fstsw` and kin are two instructions in one item.
    let at = placed.addresses.iter().rposition(|&a| a <= rip).filter(|&n| n < last);
    match (end, at) {
        (End::Exception { .. }, Some(n)) => FLAGS & !undefined[n],
        (End::Trap, _) => FLAGS & !undefined[last],
        // A wild jump.
        _ => FLAGS & !undefined.iter().fold(0, |all, u| all | u),
    }
}

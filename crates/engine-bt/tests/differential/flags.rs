//! Which flags of a sequence are comparable.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register};
use ring3_engine_bt::recomputable;

use crate::case::{Case, Placed, rflags};
use crate::guest::Way;
use crate::state::{ARITHMETIC, End, FLAGS};

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
///
/// After a fault in mid-block, flags that the block overwrites later may be stale in the engine where they cannot be computed
/// again (see docs/engine-coverage.md): then only those that nothing from the faulting instruction on overwrites are compared.
pub fn comparable(case: &Case, placed: &Placed, end: &End, rip: u64, way: Way) -> u64 {
    let undefined = case.undefined_flags();
    let last = case.items.len();
    // `fstsw` and kin are two instructions in one item.
    let at = placed.addresses.iter().rposition(|&a| a <= rip).filter(|&n| n < last);
    match (end, at) {
        (End::Exception { .. }, Some(0)) if placed.addresses[0] == rip => FLAGS & !undefined[0],
        (End::Exception { .. }, Some(n)) => {
            let branches = case.items.iter().any(|i| i.target.is_some());
            if branches {
                return FLAGS & !ARITHMETIC;
            }
            // With a block from its start on, that is: a request may come in between.
            let is_fault = matches!(end, End::Exception { vector: 14, .. });
            let before = case.items[..n].iter().map(|i| &i.instr);
            if is_fault && way != Way::Interrupted && recomputable(&mut InstructionInfoFactory::new(), before).is_some()
            {
                return FLAGS & !undefined[n];
            }
            let overwritten = case.items[n..].iter().fold(0, |all, i| all | rflags(i.instr.rflags_modified()));
            FLAGS & !undefined[n] & !overwritten
        }
        (End::Trap, _) => FLAGS & !undefined[last],
        // A wild jump.
        _ => FLAGS & !undefined.iter().fold(0, |all, u| all | u),
    }
}

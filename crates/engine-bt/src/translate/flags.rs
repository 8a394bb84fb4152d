//! Liveness of the six arithmetic flags.
//!
//! Inserted code (the TLB check above all) clobbers the host's flags. Where a guest flag is live across it, the flags are
//! saved to `State::flags` first, and loaded back only where an instruction or a near jump's target reads them. At
//! far exits they are always saved (unless saved already): far entries load them if their block needs them.
//!
//! A fault in mid-block shows the handler the saved flags; those that the block overwrites before anything reads them are
//! computed again where they can be (`recompute.rs`).

use iced_x86::{Code, Decoder, FlowControl, Instruction, Mnemonic, OpKind, Register};

use super::MAX_INSTRUCTION_BYTES;
use super::classify::{Kind, classify};
use super::lines::{Lines, lines};
use crate::host_unsafe::decoder_options;

/// Set of flags, as `iced_x86::RflagsBits`: OF 1, SF 2, ZF 4, AF 8, CF 16, PF 32.
pub type FlagSet = u32;

pub const ALL: FlagSet = 0x3f;
pub const NONE: FlagSet = 0;

/// What an instruction does to the flags.
#[derive(Clone, Copy, Debug)]
pub struct Effect {
    pub read: FlagSet,
    /// Surely overwritten (or left undefined).
    pub kill: FlagSet,
    /// Possibly changed.
    pub touched: FlagSet,
}

/// Effect of an instruction that runs in translated code.
pub fn effect(instr: &Instruction) -> Effect {
    let read = instr.rflags_read() & ALL;
    let touched = instr.rflags_modified() & ALL;
    let kill = if may_shift_by_zero(instr) { NONE } else { touched };
    Effect { read, kill, touched }
}

/// Shifts and rotates leave the flags alone when the masked count is zero.
fn may_shift_by_zero(instr: &Instruction) -> bool {
    use Mnemonic::{Rcl, Rcr, Rol, Ror, Sal, Sar, Shl, Shld, Shr, Shrd};
    if !matches!(instr.mnemonic(), Rcl | Rcr | Rol | Ror | Sal | Sar | Shl | Shld | Shr | Shrd) {
        return false;
    }
    let last = instr.op_count().saturating_sub(1);
    match instr.op_kind(last) {
        // 0x1f where 0x3f would do for 64 bits: a count of 32 is then taken for zero, which only costs a save.
        OpKind::Immediate8 => instr.immediate8() & 0x1f == 0,
        OpKind::Register => instr.op_register(last) == Register::CL,
        _ => false,
    }
}

/// How far a lookahead goes.
const LOOKAHEAD: usize = 10;

/// Flags that code at `offset` of a page may read before it overwrites them, and the lines that say so.
pub fn live_at(page: &[u8], offset: usize, bitness: u32) -> (FlagSet, Lines) {
    let Some(bytes) = page.get(offset..) else { return (ALL, 0) };
    let mut decoder = Decoder::with_ip(bitness, bytes, offset as u64, decoder_options());
    let (mut live, mut undecided, mut seen) = (NONE, ALL, 0);
    let mut instr = Instruction::default();
    for _ in 0..LOOKAHEAD {
        if !decoder.can_decode() {
            break;
        }
        let at = decoder.ip() as usize;
        seen |= lines(at..at + MAX_INSTRUCTION_BYTES);
        decoder.decode_out(&mut instr);
        if instr.code() == Code::INVALID {
            break;
        }
        let plain = !matches!(classify(&instr), Kind::Interpret | Kind::Undefined | Kind::Interrupt(_) | Kind::Syscall);
        if !plain {
            break;
        }
        let effect = effect(&instr);
        live |= effect.read & undecided;
        undecided &= !effect.kill;
        if undecided == NONE {
            break;
        }
        match instr.flow_control() {
            FlowControl::Next => {}
            FlowControl::UnconditionalBranch if instr.near_branch_target() < page.len() as u64 => {
                let target = instr.near_branch_target() as usize;
                if target <= offset {
                    break;
                }
                let Some(bytes) = page.get(target..) else { break };
                decoder = Decoder::with_ip(bitness, bytes, target as u64, decoder_options());
            }
            _ => break,
        }
    }
    // Whatever the bytes are, no more flags can be live than all.
    if live | undecided == ALL { (ALL, 0) } else { (live | undecided, seen) }
}

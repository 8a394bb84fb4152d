//! A hot loop as one block.
//!
//! A loop of several blocks costs jumps between them, and each forgets what the others knew: of flags, of addresses that were
//! checked. When a vCPU is found in a loop (`dispatch::trace`), the path that it takes once around is made a block in the
//! place of the one at the loop's head: jumps that were taken are turned round, so that what came next comes next, and
//! leaving the path is a side exit. The last jump leads to the block's own entry.
//!
//! Nothing but speed depends on the path: another one would do as well, and the bytes that it was seen on may have changed.

use iced_x86::{Decoder, DecoderError, Instruction, OpKind};
use ring3_machine::PAGE_SIZE_BYTES;

use super::decode::{Block, End, decode_at};
use super::{Kind, Refusal, Request};
use crate::host_unsafe::decoder_options;

/// Of a loop's head, as processors want it.
pub const ALIGNMENT: usize = 32;

/// Decodes the instructions of a path.
pub fn decode(request: &Request<'_>) -> Result<Block, Refusal> {
    let mut block =
        Block { insns: Vec::with_capacity(request.path.len()), end: End::Fallthrough, next: request.offset };
    if request.single || request.code.len() != PAGE_SIZE_BYTES {
        return Err(Refusal::NoTrace);
    }
    let after = request.path.iter().skip(1).copied().map(usize::from).map(Some).chain([None]);
    for (offset, next) in request.path.iter().copied().map(usize::from).zip(after) {
        let bytes = request.code.get(offset..).unwrap_or_default();
        let mut decoder = Decoder::with_ip(request.bitness(), bytes, offset as u64, decoder_options());
        let (instr, kind) = decode_at(request, &mut decoder, offset);
        if decoder.last_error() != DecoderError::None {
            return Err(Refusal::NoTrace);
        }
        let (instr, kind) = match next {
            Some(next) => follow(request, instr, kind, next).ok_or(Refusal::NoTrace)?,
            None => (instr, kind),
        };
        block.push(instr, offset, kind);
    }
    let Some(last) = block.insns.last() else { return Err(Refusal::NoTrace) };
    // A loop is left for requests where it jumps back.
    let is_loop = matches!(last.kind, Kind::Jcc | Kind::CountedJump | Kind::Jmp)
        && request.near_target(&last.instr) == Some(request.offset)
        && request.offset <= last.offset;
    if !is_loop {
        return Err(Refusal::NoTrace);
    }
    if last.kind == Kind::Jmp {
        block.end = End::Terminated;
    }
    Ok(block)
}

/// An instruction after which the path goes on at `next`, such that what stands behind it is what comes next.
fn follow(request: &Request<'_>, mut instr: Instruction, kind: Kind, next: usize) -> Option<(Instruction, Kind)> {
    let behind = instr.next_ip();
    let is_behind = behind == next as u64;
    let is_taken = request.near_target(&instr) == Some(next);
    match kind {
        Kind::Jmp if is_taken => Some((instr, Kind::Nop)),
        Kind::Jcc if is_taken && !is_behind => {
            instr.negate_condition_code();
            match instr.op0_kind() {
                OpKind::NearBranch64 => instr.set_near_branch64(behind),
                OpKind::NearBranch32 => instr.set_near_branch32(u32::try_from(behind).ok()?),
                _ => return None,
            }
            Some((instr, kind))
        }
        _ => (is_behind && !kind.ends_block()).then_some((instr, kind)),
    }
}

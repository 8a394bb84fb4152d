//! The instructions of a block.

use iced_x86::{Code, Decoder, DecoderError, Instruction};
use ring3_engine::GuestMode;
use ring3_machine::PAGE_SIZE_BYTES;

use super::lines::{Lines, lines};
use super::{
    Demand, Insn, Kind, Neighbours, Refusal, Request, classify, compat, features, fpu, is_guarded, length, string,
};
use crate::host_unsafe::decoder_options;

/// Most instructions in a block.
const MAX_INSTRUCTIONS: usize = 48;

/// How a block ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Its last instruction leaves.
    Terminated,
    /// One instruction that does not transfer control, translated alone.
    Single,
    /// Goes on at `next`: another block, perhaps on the next page.
    Fallthrough,
}

#[derive(Debug)]
pub struct Block {
    pub insns: Vec<Insn>,
    pub end: End,
    pub next: usize,
}

impl Block {
    pub fn push(&mut self, instr: Instruction, offset: usize, kind: Kind) {
        self.insns.push(Insn {
            instr,
            offset,
            kind,
            after: Demand::ALL,
            is_read_after: false,
            writes: 0,
            member: None,
        });
        self.next = offset + instr.len();
    }

    /// The lines that its instructions are on.
    pub fn lines(&self) -> Lines {
        self.insns.iter().fold(0, |sum, insn| sum | lines(insn.offset..insn.offset + MAX_INSTRUCTION_BYTES))
    }
}

pub fn decode(request: &Request<'_>, neighbours: &dyn Neighbours) -> Result<Block, Refusal> {
    let bytes = request.code.get(request.offset..).unwrap_or_default();
    let mut decoder = Decoder::with_ip(request.bitness(), bytes, request.offset as u64, decoder_options());
    let mut block = Block { insns: Vec::with_capacity(16), end: End::Fallthrough, next: request.offset };
    let limit = if request.single { 1 } else { MAX_INSTRUCTIONS };
    while block.insns.len() < limit {
        let offset = block.next;
        if !block.insns.is_empty() && (offset >= PAGE_SIZE_BYTES || neighbours.block_at(offset).is_some()) {
            return Ok(block);
        }
        let (instr, kind) = decode_at(request, &mut decoder, offset);
        let cut_short = instr.code() == Code::INVALID && decoder.last_error() == DecoderError::NoMoreBytes;
        if cut_short && request.code.len() == PAGE_SIZE_BYTES {
            return if block.insns.is_empty() { Err(Refusal::NeedsSecondPage) } else { Ok(block) };
        }
        if !block.insns.is_empty() && offset + instr.len() > PAGE_SIZE_BYTES {
            return Ok(block);
        }
        block.push(instr, offset, kind);
        if let Some(target) = passable(request, neighbours, &block, &instr, kind) {
            if let Some(jump) = block.insns.last_mut() {
                jump.kind = Kind::Nop;
            }
            block.next = target;
            let bytes = request.code.get(target..).unwrap_or_default();
            decoder = Decoder::with_ip(request.bitness(), bytes, target as u64, decoder_options());
        } else if kind.ends_block() {
            block.end = End::Terminated;
            return Ok(block);
        }
    }
    if request.single {
        block.end = End::Single;
    }
    Ok(block)
}

/// The next instruction, which is at a page offset, as it is to be translated.
pub fn decode_at(request: &Request<'_>, decoder: &mut Decoder<'_>, offset: usize) -> (Instruction, Kind) {
    let mut instr = decoder.decode();
    let kind = treatment(request, &instr, offset);
    if request.is_compat() {
        compat::lower(&mut instr);
    }
    if !request.hidden.is_empty() {
        features::revert(&mut instr, request.hidden);
    }
    if matches!(kind, Kind::Undefined | Kind::TooLong | Kind::NoFpu) {
        instr.set_len(instr.len().max(1));
    }
    (instr, kind)
}

/// The treatment of the instruction at a page offset.
pub fn treatment(request: &Request<'_>, instr: &Instruction, offset: usize) -> Kind {
    match classify(instr) {
        Kind::Undefined if length::is_too_long(request, offset) => Kind::TooLong,
        Kind::Undefined => Kind::Undefined,
        _ if features::is_hidden(instr, request.hidden) => Kind::Undefined,
        _ if compat::is_refused(instr, request.code.get(offset..).unwrap_or_default()) => Kind::Undefined,
        _ if request.variant.avx_off && features::needs_avx_state(instr) => Kind::Undefined,
        _ if is_guarded(instr, request.variant.guards) => Kind::Interpret,
        _ if request.variant.fpu_off && fpu::uses_fpu(instr) => Kind::NoFpu,
        Kind::Interpret if !request.single => match string::inline_form(instr, request.variant) {
            Some(form) => Kind::String(form),
            None => Kind::Interpret,
        },
        Kind::ReadMsr if request.variant.mode != GuestMode::Kernel => Kind::Interpret,
        kind if kind.has_rare_case() && request.single => Kind::Interpret,
        kind if kind.may_access() && request.needs_step(instr) => Kind::Step,
        kind => kind,
    }
}

/// Longest instruction. Source: Intel SDM vol. 2, "Instruction Format".
pub const MAX_INSTRUCTION_BYTES: usize = 15;

/// How far a jump may go for its block to go on at its target.
const PASSABLE_BYTES: usize = 128;

/// The target of a jump that needs none: one a little ahead, where no block begins yet, may as well follow.
fn passable(
    request: &Request<'_>,
    neighbours: &dyn Neighbours,
    block: &Block,
    jump: &Instruction,
    kind: Kind,
) -> Option<usize> {
    if kind != Kind::Jmp || request.single || request.code.len() != PAGE_SIZE_BYTES {
        return None;
    }
    let target = usize::try_from(jump.near_branch_target()).ok()?;
    let is_near =
        target.checked_sub(block.next).is_some_and(|ahead| ahead < PASSABLE_BYTES) && target < PAGE_SIZE_BYTES;
    (is_near && neighbours.block_at(target).is_none()).then_some(target)
}

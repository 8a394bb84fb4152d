//! Translation of one block: decode, flag liveness, emission.
//!
//! A block is a run of instructions of one page, entered at its first and left at any. Conditional jumps do not end
//! it: their taken side is a side exit. It is position-independent within the address space: whatever depends on
//! its linear address is computed from `State::page_base`.

mod classify;
mod compat;
mod control;
mod decode;
mod emitter;
mod features;
mod flags;
mod fpu;
mod group;
mod implicit;
mod leave;
mod length;
mod lines;
mod memory;
pub use memory::{access_info, is_stack_operand};
mod plain;
mod recipe;
mod redo;
mod special;
mod stack;
mod string;
mod string_form;
mod system;
mod trace;

use std::mem::offset_of;

use iced_x86::{Instruction, InstructionInfoFactory};
use ring3_engine::{CodeSize, Features, Guards, GuestMode, SegmentName};
use ring3_machine::PAGE_SIZE_BYTES;

pub use classify::{Kind, classify, is_guarded, is_segment_push, is_word_branch};
pub use compat::is_compat;
pub use emitter::{FaultPoint, Given, Link};
pub use flags::Demand;
pub use lines::{LINE_BYTES, LineHashes, Lines, chosen_lines, sum_of};
pub use string_form::{Repeat, StringForm, StringOp, segment_name};

use crate::emit::asm::{Asm, Mem, S1};
use crate::emit::stubs::Stubs;
use crate::state::State;
use decode::{Block, End, MAX_INSTRUCTION_BYTES, decode, treatment};
use emitter::{Emitter, FlagLoc};
use flags::NONE;

/// What a block's code depends on beside the guest's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variant {
    pub mode: GuestMode,
    pub size: CodeSize,
    /// Instructions that use the FPU raise #NM.
    pub fpu_off: bool,
    /// XCR0.AVX is clear: instructions that need that state raise #UD.
    pub avx_off: bool,
    /// Instructions that exit to the hypervisor.
    pub guards: Guards,
    /// Of 32-bit code: segments by which translated code must not access, bits by [`SegmentName`].
    pub limited: u8,
}

impl Variant {
    /// 64-bit code of a mode, without anything special.
    pub const fn of(mode: GuestMode) -> Self {
        let guards = Guards { tsc: false, bases: false };
        Self { mode, size: CodeSize::Bits64, fpu_off: false, avx_off: false, guards, limited: 0 }
    }

    /// Whether translated code may access by the segment.
    pub fn may_access_by(self, name: SegmentName) -> bool {
        self.limited >> name as u32 & 1 == 0
    }

    /// A number of twelve bits for it. 16-bit code has no blocks.
    pub fn bits(self) -> u64 {
        u64::from(self.limited) << 6
            | u64::from(self.avx_off) << 5
            | u64::from(self.guards.bases) << 4
            | u64::from(self.guards.tsc) << 3
            | u64::from(self.fpu_off) << 2
            | u64::from(self.size.is_compat()) << 1
            | u64::from(self.mode == GuestMode::User)
    }
}

/// What a translation is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The page's bytes (4096), followed by those of the next page if the first instruction crosses into it.
    pub code: &'a [u8],
    /// Offset of the first instruction, below 4096.
    pub offset: usize,
    pub variant: Variant,
    /// What the domain's policy hides: its instructions raise #UD.
    pub hidden: Features,
    /// Translate one instruction whose memory operands go through `State::bounce` (see `dispatch::step`).
    pub single: bool,
    /// Let accesses share a check (see `group`).
    pub grouped: bool,
    /// Offsets of the instructions of a loop from its head on, in the order in which they were seen to be executed (see
    /// `trace`); none for a usual block.
    pub path: &'a [u16],
    /// Host address at which the code will stand.
    pub origin: u64,
    pub stubs: Stubs,
    /// Number of the block's first link in the cache's table.
    pub first_link: u32,
}

impl Request<'_> {
    /// Whether the code is that of compatibility mode.
    pub fn is_compat(&self) -> bool {
        self.variant.size.is_compat()
    }

    /// Whether an instruction must be stepped, because translated code does not check the segment of its operand.
    fn needs_step(&self, instr: &Instruction) -> bool {
        self.is_compat() && !self.single && compat::needs_segment_check(instr, self.variant)
    }

    /// As the decoder wants it.
    pub fn bitness(&self) -> u32 {
        self.variant.size.bits()
    }

    /// The bytes of the (first) page.
    fn page(&self) -> &[u8] {
        self.code.get(..PAGE_SIZE_BYTES).unwrap_or(self.code)
    }

    /// The target of a direct branch, if it lies in the page.
    fn near_target(&self, instr: &Instruction) -> Option<usize> {
        usize::try_from(instr.near_branch_target()).ok().filter(|&target| target < PAGE_SIZE_BYTES)
    }
}

/// What the translator asks about other blocks of the same page, mode and code size.
pub trait Neighbours {
    /// What the block at `offset` demands, if there is one, and what that depends on.
    fn block_at(&self, offset: usize) -> Option<(Demand, Lines)>;
}

/// Host addresses at which a block is entered.
#[derive(Clone, Copy, Debug)]
pub struct Entries {
    /// With the block's linear address in R11 and the flags in `State::flags`.
    pub far: u64,
    /// From the same page, with the flags in the CPU if one is live; if none is but they are shown, in `State::flags`, or
    /// there stands how to have them.
    pub near: u64,
    /// From the same page, with the flags in the CPU.
    pub native: u64,
}

/// A finished block.
#[derive(Debug)]
pub struct Translated {
    pub code: Vec<u8>,
    pub entries: Entries,
    pub demand: Demand,
    /// Lines of the (first) page that it depends on.
    pub lines: Lines,
    pub links: Vec<Link>,
    pub faults: Vec<FaultPoint>,
}

/// Why a block could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The first instruction continues on the next page, whose bytes are needed.
    NeedsSecondPage,
    /// The path is none that a block can follow.
    NoTrace,
}

/// A decoded instruction with its analysis.
#[derive(Clone, Copy, Debug)]
struct Insn {
    instr: Instruction,
    offset: usize,
    kind: Kind,
    /// What the code after it demands.
    after: Demand,
    /// Something after it in the block reads flags that it finds there, or leaves.
    is_read_after: bool,
    /// General-purpose registers that it may write.
    writes: u16,
    member: Option<group::Member>,
}

impl Insn {
    fn next_offset(&self) -> usize {
        self.offset + self.instr.len()
    }
}

/// Translates one block.
///
/// # Errors
/// [`Refusal::NeedsSecondPage`].
pub fn translate(request: &Request<'_>, neighbours: &dyn Neighbours, buffer: Vec<u8>) -> Result<Translated, Refusal> {
    let is_trace = !request.path.is_empty();
    let mut block = if is_trace { trace::decode(request)? } else { decode(request, neighbours)? };
    let (demand, flag_lines) = analyse(&mut block, request, neighbours);

    let mut asm = Asm::new(request.origin, buffer);
    let far_entry = asm.here();
    let start = request.offset as i32;
    // The form with 32 bits, which leaves room for a jump: see `Cache::drop_frame`.
    asm.lea_far(S1, S1, -start);
    asm.store(Mem::state(offset_of!(State, page_base)), S1);
    let enters_saved = demand.live != NONE && saves_first(&block, request);
    if demand.live != NONE && !enters_saved {
        asm.restore_flags(offset_of!(State, flags), crate::emit::asm::S0);
    }
    if is_trace {
        asm.align_code(trace::ALIGNMENT);
    }
    let near_entry = asm.here();
    let mut emitter = Emitter::new(asm, request, neighbours, (request.offset, near_entry, demand));
    emitter.lines = flag_lines
        | if is_trace { block.lines() } else { lines::lines(request.offset..block.next + MAX_INSTRUCTION_BYTES) };
    emitter.enters_saved = enters_saved;
    emitter.loc = match demand {
        _ if enters_saved => FlagLoc::Saved,
        Demand { live: NONE, shown: NONE, .. } => FlagLoc::Dead,
        Demand { live: NONE, .. } => FlagLoc::Given,
        _ => FlagLoc::Native,
    };
    if request.grouped && request.code.len() == PAGE_SIZE_BYTES {
        emitter.group(&mut block.insns);
    }
    for insn in &block.insns {
        emitter.instruction(insn);
    }
    match block.end {
        End::Terminated => {}
        End::Single => emitter.stepped(block.next),
        End::Fallthrough => emitter.near_or_far(block.next),
    }
    Ok(emitter.finish(far_entry))
}

/// Kinds that leave translated code with every flag of interest to somebody.
fn leaves_all_live(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Syscall
            | Kind::Interrupt(_)
            | Kind::Interpret
            | Kind::Step
            | Kind::Iret
            | Kind::Undefined
            | Kind::TooLong
            | Kind::NoFpu
            | Kind::PushFlags
    )
}

/// Whether a block that flags go through would save them before anything reads them: as functions' ends do, and short functions. It
/// is then entered with the flags saved.
fn saves_first(block: &Block, request: &Request<'_>) -> bool {
    let is_turn = |insn: &Insn| request.near_target(&insn.instr) == Some(request.offset);
    if block.insns.iter().any(is_turn) {
        return false;
    }
    for insn in &block.insns {
        let effect = flags::effect(&insn.instr);
        if effect.read != NONE || effect.touched != NONE {
            return false;
        }
        match insn.kind {
            Kind::Push | Kind::Pop | Kind::Leave | Kind::Ret | Kind::JmpIndirect | Kind::CallIndirect => return true,
            Kind::Jmp | Kind::Call => return request.near_target(&insn.instr).is_none(),
            Kind::Plain if flags::may_fault(&insn.instr, insn.kind) => return true,
            Kind::Plain | Kind::Nop | Kind::Lea => {}
            kind => return leaves_all_live(kind) && kind != Kind::PushFlags,
        }
    }
    false
}

/// What the code at a page offset demands, for a near jump, and what that depends on.
fn demand_at(
    request: &Request<'_>,
    neighbours: &dyn Neighbours,
    factory: &mut InstructionInfoFactory,
    offset: usize,
) -> (Demand, Lines) {
    if offset >= PAGE_SIZE_BYTES || request.single || request.variant.fpu_off {
        return (Demand::ALL, 0);
    }
    match neighbours.block_at(offset) {
        Some((demand, _)) if demand.live == flags::ALL => (Demand::ALL, 0),
        // A jump must have flags that are shown anywhere there where they belong.
        Some((demand, of)) => (Demand { shown_here: demand.shown, ..demand }, of),
        None => flags::ahead(request, offset, factory),
    }
}

/// Fills in what each instruction's successors demand, backwards. Returns what the block does, and on what that depends.
fn analyse(block: &mut Block, request: &Request<'_>, neighbours: &dyn Neighbours) -> (Demand, Lines) {
    let mut lines = 0;
    let mut factory = InstructionInfoFactory::new();
    // Where blocks of two pages, or of one instruction, go on is always far.
    let has_near = !request.single && request.code.len() == PAGE_SIZE_BYTES;
    let mut demand_at = |offset: Option<usize>, factory: &mut InstructionInfoFactory| match offset {
        Some(offset) if has_near => {
            let (demand, of) = demand_at(request, neighbours, factory, offset);
            lines |= of;
            demand
        }
        _ => Demand::ALL,
    };
    let mut demand = match block.end {
        End::Fallthrough => demand_at(Some(block.next), &mut factory),
        _ => Demand::ALL,
    };
    let mut is_read = false;
    for insn in block.insns.iter_mut().rev() {
        let target = request.near_target(&insn.instr);
        match insn.kind {
            Kind::Jcc | Kind::CountedJump => demand = demand.or(demand_at(target, &mut factory)),
            Kind::Jmp | Kind::Call => demand = demand_at(target, &mut factory),
            _ => {}
        }
        let is_jump = matches!(insn.kind, Kind::Jcc | Kind::CountedJump | Kind::Jmp);
        let is_backward = is_jump && target.is_some_and(|target| target <= insn.offset);
        if is_backward || insn.kind == Kind::Call {
            // Left for requests, and for a link to be made.
            (demand.shown, demand.shown_here) = (flags::ALL, flags::ALL);
        }
        insn.after = demand;
        insn.is_read_after = is_read;
        insn.writes = flags::writes(&insn.instr, &mut factory);
        if leaves_all_live(insn.kind) {
            (demand, is_read) = (Demand::ALL, false);
            continue;
        }
        let faults = flags::may_fault(&insn.instr, insn.kind);
        let effect = flags::effect(&insn.instr);
        is_read = effect.read != NONE || is_read && effect.kill != flags::ALL;
        demand = demand.before(effect, || insn.writes, faults);
    }
    (demand, lines)
}

/// Exit value for an exit at page offset `offset` (fits: below 8192).
fn offset_value(offset: usize) -> u32 {
    offset as u32
}

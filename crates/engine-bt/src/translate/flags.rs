//! What becomes of the six arithmetic flags.
//!
//! Inserted code (the TLB check above all) clobbers the host's flags. Where a guest flag is live across it, the flags are
//! saved to `State::flags` first, and loaded back only where an instruction or a near jump's target reads them. At
//! far exits they are always saved (unless saved already): far entries load them if their block needs them.
//!
//! A fault or an event shows the guest flags that nothing reads, too. For these it is enough to know how they could be
//! computed: see `recipe.rs`.

use iced_x86::{
    Code, CpuidFeature, Decoder, FlowControl, Instruction, InstructionInfoFactory, InstructionInfoOptions, Mnemonic,
    OpAccess, OpKind, Register,
};

use super::classify::Kind;
use super::lines::{Lines, lines};
use super::{MAX_INSTRUCTION_BYTES, Request, leaves_all_live, treatment};
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
    let is_wide = instr.op0_kind() == OpKind::Register && instr.op0_register().is_gpr64();
    match instr.op_kind(last) {
        // In memory 64 bits may count as fewer: a count of 32 is then taken for zero, which only costs a save.
        OpKind::Immediate8 => instr.immediate8() & if is_wide { 0x3f } else { 0x1f } == 0,
        OpKind::Register => instr.op_register(last) == Register::CL,
        _ => false,
    }
}

/// What code from some place on does with the flags that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// May be read before they are overwritten.
    pub live: FlagSet,
    /// May be there still where the block can be left by a fault or for an event.
    pub shown: FlagSet,
    /// The part of these that is so on the straight way, without a jump forward.
    pub shown_here: FlagSet,
    /// Registers that may be written before the last such place.
    pub clobbers: u16,
}

impl Demand {
    pub const NONE: Self = Self { live: NONE, shown: NONE, shown_here: NONE, clobbers: 0 };
    pub const ALL: Self = Self { live: ALL, shown: ALL, shown_here: ALL, clobbers: u16::MAX };

    /// The same before an instruction that this comes after. `faults` says that it may fault.
    pub fn before(self, effect: Effect, writes: impl FnOnce() -> u16, faults: bool) -> Self {
        let through = self.shown & !effect.kill;
        // What an instruction that changes only some flags lets through must be in the CPU with the others.
        let joined = if effect.touched == NONE { NONE } else { through };
        Self {
            live: self.live & !effect.kill | effect.read | joined,
            shown: if faults { ALL } else { through },
            shown_here: if faults { ALL } else { self.shown_here & !effect.kill },
            clobbers: if through == NONE { 0 } else { self.clobbers | writes() },
        }
    }

    /// Where control may also go on at a place that demands `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            live: self.live | other.live,
            shown: self.shown | other.shown,
            shown_here: self.shown_here,
            clobbers: self.clobbers | other.clobbers,
        }
    }

    /// As a number.
    pub fn pack(self) -> u32 {
        self.live | self.shown << 8 | u32::from(self.clobbers) << 16
    }

    /// The reverse.
    pub fn unpack(word: u32) -> Self {
        let shown = word >> 8 & ALL;
        Self { live: word & ALL, shown, shown_here: shown, clobbers: (word >> 16) as u16 }
    }
}

/// General-purpose registers that an instruction may write, as a set of numbers.
pub fn writes(instr: &Instruction, factory: &mut InstructionInfoFactory) -> u16 {
    use Mnemonic as M;
    let bit = |register: Register| 1u16 << (register.full_register().number() & 15);
    match instr.mnemonic() {
        M::Cmp | M::Test | M::Nop => return 0,
        M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Lea | M::Add | M::Sub | M::And | M::Or | M::Xor => {
            let to = instr.op0_register();
            return if instr.op0_kind() == OpKind::Register && to.is_gpr() { bit(to) } else { 0 };
        }
        _ => {}
    }
    let info = factory.info_options(instr, InstructionInfoOptions::NO_MEMORY_USAGE);
    let is_written =
        |access| !matches!(access, OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess);
    let written = info.used_registers().iter().filter(|used| used.register().is_gpr() && is_written(used.access()));
    written.fold(0, |set, used| set | bit(used.register()))
}

/// Whether a copied instruction may raise a host signal that belongs to the guest: whatever is not the basic integer ISA may
/// be missing on this host, or raise #XM, #MF or #GP; and some hosts refuse locked operations across cache lines.
pub fn may_trap(instr: &Instruction) -> bool {
    use CpuidFeature as F;
    use Mnemonic as M;
    let basic = |f: &F| {
        matches!(f, F::INTEL8086 | F::INTEL186 | F::INTEL286 | F::INTEL386 | F::INTEL486 | F::X64 | F::CMOV | F::TSC)
    };
    match instr.mnemonic() {
        M::Div | M::Idiv | M::Wait => true,
        _ if instr.has_lock_prefix() => true,
        M::Xchg if instr.op0_kind() == OpKind::Memory => true,
        M::Endbr64 | M::Endbr32 | M::Lfence | M::Mfence | M::Sfence | M::Pause => false,
        _ => !instr.cpuid_features().iter().all(basic),
    }
}

/// Whether the block may be left at an instruction before it has an effect.
pub fn may_fault(instr: &Instruction, kind: Kind) -> bool {
    match kind {
        Kind::Plain | Kind::StoreFpuEnvironment => {
            may_trap(instr) || (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory)
        }
        Kind::Nop
        | Kind::Lea
        | Kind::Jcc
        | Kind::CountedJump
        | Kind::Jmp
        | Kind::Direction(_)
        | Kind::Rdtscp
        | Kind::Rdpid
        | Kind::ReadBase
        | Kind::ReadSelector => false,
        _ => true,
    }
}

/// How far a lookahead goes.
const LOOKAHEAD: usize = 10;

/// What the code at `offset` of the page demands, as far as looking ahead shows, and the lines that say so.
pub fn ahead(request: &Request<'_>, offset: usize, factory: &mut InstructionInfoFactory) -> (Demand, Lines) {
    let page = request.page();
    let Some(bytes) = page.get(offset..) else { return (Demand::ALL, 0) };
    let mut decoder = Decoder::with_ip(request.bitness(), bytes, offset as u64, decoder_options());
    let mut path = [(Instruction::default(), Kind::Nop); LOOKAHEAD];
    let (mut len, mut undecided, mut seen) = (0, ALL, 0);
    for place in &mut path {
        if !decoder.can_decode() {
            break;
        }
        let at = decoder.ip() as usize;
        seen |= lines(at..at + MAX_INSTRUCTION_BYTES);
        let instr = &mut place.0;
        decoder.decode_out(instr);
        if instr.code() == Code::INVALID {
            break;
        }
        let kind = treatment(request, instr, at);
        if leaves_all_live(kind) {
            break;
        }
        place.1 = kind;
        len += 1;
        undecided &= !effect(&place.0).kill;
        if undecided == NONE {
            break;
        }
        match place.0.flow_control() {
            FlowControl::Next => {}
            FlowControl::UnconditionalBranch if kind == Kind::Jmp => {
                let Some(target) = request.near_target(&place.0).filter(|&target| target > at) else { break };
                let Some(bytes) = page.get(target..) else { break };
                decoder = Decoder::with_ip(request.bitness(), bytes, target as u64, decoder_options());
            }
            _ => break,
        }
    }
    let end = if undecided == NONE { Demand::NONE } else { Demand::ALL };
    let demand = path.iter().take(len).rev().fold(end, |demand, (instr, kind)| {
        demand.before(effect(instr), || writes(instr, factory), may_fault(instr, *kind))
    });
    // Whatever the bytes are, there can be no more than all.
    if demand.live == ALL { (Demand::ALL, 0) } else { (demand, seen) }
}

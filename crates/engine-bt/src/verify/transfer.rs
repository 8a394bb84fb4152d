//! What one instruction does to what is known, and whether it may.

use iced_x86::{
    Code, ConditionCode, Instruction, InstructionInfo, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
    UsedMemory,
};

use super::layout;
use super::value::{Kind, Known, RunHit, Value, name_at};
use super::{Verdict, Violation};
use crate::jumps;
use crate::translate::access_info;

const PAGE: u64 = 4096;
/// Largest operand that the slow path can give a buffer for.
const MAX_SLOW_OPERAND: u64 = 128;
pub const R10: usize = 10;
pub const R11: usize = 11;

fn wrong<T>(instr: &Instruction, what: &'static str) -> Verdict<T> {
    Err(Violation { at: instr.ip(), what })
}

/// Hardware number of a general-purpose register.
fn number(register: Register) -> Option<usize> {
    register.is_gpr().then(|| register.full_register().number())
}

fn is_forbidden(instr: &Instruction) -> bool {
    use Mnemonic as M;
    instr.is_privileged()
        || instr.is_stack_instruction()
        || instr.is_vsib()
        || (0..instr.op_count()).any(|op| {
            let register = instr.op_register(op);
            let is_special = register.is_segment_register() || register.is_cr() || register.is_dr() || register.is_tr();
            instr.op_kind(op) == OpKind::Register && is_special
        })
        || matches!(
            instr.mnemonic(),
            M::Wrfsbase | M::Wrgsbase | M::Rdfsbase | M::Rdgsbase | M::Swapgs | M::Std | M::Cld | M::Rdpid | M::Cpuid
        )
        || matches!(instr.mnemonic(), M::Xgetbv | M::Xsetbv | M::Xsave | M::Xsave64 | M::Xsavec | M::Xsavec64)
        || matches!(instr.mnemonic(), M::Xsaveopt | M::Xsaveopt64 | M::Xrstor | M::Xrstor64 | M::Xlatb | M::Int1)
        || matches!(instr.mnemonic(), M::Fxsave | M::Fxsave64 | M::Fxrstor | M::Fxrstor64 | M::Smsw | M::Str | M::Sldt)
        || matches!(instr.mnemonic(), M::Sgdt | M::Sidt | M::Lar | M::Lsl | M::Verr | M::Verw | M::Stac | M::Clac)
}

/// Executes an instruction that goes on to the next.
pub fn execute(
    instr: &Instruction,
    known: &mut Known,
    factory: &mut InstructionInfoFactory,
    mode: usize,
) -> Verdict<()> {
    if is_forbidden(instr) {
        return wrong(instr, "an instruction that blocks do not have");
    }
    if tlb_access(instr, known, mode)? {
        known.compared = None;
        return Ok(());
    }
    if instr.is_string_instruction() {
        return string(instr, known);
    }
    let info = factory.info(instr);
    for used in info.used_memory().iter().filter(|used| used.access() != OpAccess::NoMemAccess) {
        memory(instr, used, known)?;
    }
    let result = result(instr, known).or_else(|| word_load(instr, known));
    let is_secret = |n: usize| known.registers.get(n).is_some_and(Value::is_secret);
    let uses_secret = (0..16).any(|n| is_secret(n) && reads(instr, info, n));
    note_store(instr, known);
    if instr.rflags_modified() != 0 {
        known.compared = comparison(instr, known);
    }
    for used in info.used_registers() {
        if let Some(n) = number(used.register()).filter(|_| is_written(used.access())) {
            let name = name_at(instr.ip(), n);
            // What is made of a host address may show it, and what keeps a part of one does.
            let kept = used.register().size() < 4 && known.registers[n].is_secret();
            known.registers[n] =
                if uses_secret || kept { Value::of_kind(name, Kind::Spent) } else { Value::plain(name) };
        }
    }
    if let Some((n, value)) = result {
        known.registers[n] = value;
    }
    Ok(())
}

fn is_read(access: OpAccess) -> bool {
    use OpAccess as A;
    matches!(access, A::Read | A::CondRead | A::ReadWrite | A::ReadCondWrite)
}

fn is_written(access: OpAccess) -> bool {
    use OpAccess as A;
    matches!(access, A::Write | A::CondWrite | A::ReadWrite | A::ReadCondWrite)
}

/// Whether register `n` is read, but to address memory.
fn reads(instr: &Instruction, info: &InstructionInfo, n: usize) -> bool {
    let is_operand = |op: u32| {
        let is_this = instr.op_kind(op) == OpKind::Register && number(instr.op_register(op)) == Some(n);
        is_this && is_read(info.op_access(op))
    };
    let is_address = instr.mnemonic() == Mnemonic::Lea
        && [instr.memory_base(), instr.memory_index()].iter().any(|&r| number(r) == Some(n));
    let is_implicit = match instr.mnemonic() {
        // These name no register, or not all.
        Mnemonic::Mul | Mnemonic::Imul | Mnemonic::Div | Mnemonic::Idiv | Mnemonic::Cmpxchg => n == 0 || n == 2,
        Mnemonic::Mulx => n == 2,
        _ => false,
    };
    (0..instr.op_count()).any(is_operand) || is_address || is_implicit
}

/// Accesses to the TLB and comparisons with the jump cache, which are at variable offsets.
fn tlb_access(instr: &Instruction, known: &mut Known, mode: usize) -> Verdict<bool> {
    let is_access = instr.mnemonic() != Mnemonic::Lea && instr.op_kinds().any(|kind| kind == OpKind::Memory);
    if !is_access || instr.memory_segment() != Register::GS || instr.memory_base() == Register::None {
        return Ok(false);
    }
    let at = instr.memory_displacement64();
    let to = instr.op0_register();
    let is_plain = instr.memory_base() == Register::R10
        && instr.memory_index() == Register::None
        && instr.op0_kind() == OpKind::Register
        && to == Register::R11;
    let entry = known.registers[R10];
    let value = known.registers[R11];
    let name = name_at(instr.ip(), R11);
    if !is_plain {
        return wrong(instr, "an access to the state at a variable offset");
    }
    match instr.mnemonic() {
        Mnemonic::Cmp if layout::is_jump_rip(mode, at) => {
            check_jump_index(known, instr.ip())?;
            return Ok(true);
        }
        Mnemonic::Xor if layout::tag(mode, at).is_some() => {
            let write = layout::tag(mode, at) == Some(true);
            known.registers[R11] = match (value.kind, entry.kind) {
                (Kind::Difference { of, entry: e, write: w }, _) if e == entry.name && w == write => Value::plain(of),
                (_, Kind::Selects { of }) if of == value.name && !value.is_secret() => {
                    Value::of_kind(name, Kind::Difference { of, entry: entry.name, write })
                }
                _ => return wrong(instr, "a tag of an entry that the address does not select"),
            };
            return Ok(true);
        }
        Mnemonic::Add if layout::is_host_page(mode, at) => {
            let hit =
                |h: &&RunHit| matches!(value.kind, Kind::PageOffset { of } if of == h.of) && h.entry == entry.name;
            let kind = match value.kind {
                Kind::Difference { entry: e, write, .. } if e == entry.name && value.max < PAGE => {
                    Kind::Host { room: PAGE - value.max, write }
                }
                _ => match known.hits.iter().find(hit) {
                    Some(hit) => Kind::HostRun { count: hit.count, scale: hit.scale, write: hit.write },
                    None => return wrong(instr, "a host page without a hit"),
                },
            };
            known.registers[R11] = Value::of_kind(name, kind);
            return Ok(true);
        }
        _ => {}
    }
    wrong(instr, "an access to the state at a variable offset")
}

/// Any other access to memory.
fn memory(instr: &Instruction, used: &UsedMemory, known: &Known) -> Verdict<()> {
    let size = used.memory_size().size() as u64;
    let writes = is_written(used.access());
    if used.segment() == Register::GS {
        let at = used.displacement();
        let is_constant = used.base() == Register::None && used.index() == Register::None;
        let is_allowed = if writes { layout::may_store(at, size) } else { layout::may_load(at, size) };
        if !is_constant || !is_allowed || size == 0 {
            return wrong(instr, "an access to a part of the state that is not the block's");
        }
        return Ok(());
    }
    if used.segment() == Register::FS {
        return wrong(instr, "an access to the host's own data");
    }
    let base = number(used.base()).filter(|_| used.base().is_gpr64()).map(|n| known.registers[n]);
    let Some(Value { kind: Kind::Host { room, write }, .. }) = base else {
        return wrong(instr, "an access to memory at an address that was not checked");
    };
    let end = used.displacement().checked_add(size);
    if used.index() != Register::None || size == 0 || end.is_none_or(|end| end > room) {
        return wrong(instr, "an access to memory beyond what was checked");
    }
    if writes && !write {
        return wrong(instr, "a store where a load was checked");
    }
    let stores_secret = (0..instr.op_count()).any(|op| {
        let register = number(instr.op_register(op));
        instr.op_kind(op) == OpKind::Register && register.is_some_and(|n| known.registers[n].is_secret())
    });
    if writes && stores_secret {
        return wrong(instr, "a host address stored to the guest's memory");
    }
    bit_index(instr, known)
}

/// A bit index in a register reaches no further than the operand.
fn bit_index(instr: &Instruction, known: &Known) -> Verdict<()> {
    use Mnemonic::{Bt, Btc, Btr, Bts};
    if !matches!(instr.mnemonic(), Bt | Btc | Btr | Bts) || instr.op1_kind() != OpKind::Register {
        return Ok(());
    }
    let bits = 8 * instr.op1_register().size() as u64;
    match number(instr.op1_register()).map(|n| known.registers[n]) {
        Some(index) if index.max < bits => Ok(()),
        _ => wrong(instr, "a bit index that reaches beyond the operand"),
    }
}

/// `rep movs` and `rep stos` on runs that were checked for their count.
fn string(instr: &Instruction, known: &mut Known) -> Verdict<()> {
    use Code as C;
    const RCX: usize = 1;
    const RSI: usize = 6;
    const RDI: usize = 7;
    let (scale, loads) = match instr.code() {
        C::Movsb_m8_m8 => (1, true),
        C::Movsw_m16_m16 => (2, true),
        C::Movsd_m32_m32 => (4, true),
        C::Movsq_m64_m64 => (8, true),
        C::Stosb_m8_AL => (1, false),
        C::Stosw_m16_AX => (2, false),
        C::Stosd_m32_EAX => (4, false),
        C::Stosq_m64_RAX => (8, false),
        _ => return wrong(instr, "a string instruction that blocks do not have"),
    };
    let count = known.registers[RCX].name;
    let covers = |value: &Value, stored: bool| matches!(value.kind, Kind::HostRun { count: c, scale: s, write } if c == count && s == scale && (write || !stored));
    let is_64bit = instr.op_count() > 0
        && [instr.op0_kind(), instr.op1_kind()]
            .iter()
            .all(|kind| matches!(kind, OpKind::MemoryESRDI | OpKind::MemorySegRSI | OpKind::Register));
    let is_flat = instr.segment_prefix() == Register::None;
    let is_covered = covers(&known.registers[RDI], true) && (!loads || covers(&known.registers[RSI], false));
    if !is_64bit || !is_flat || !instr.has_rep_prefix() || !is_covered {
        return wrong(instr, "a string instruction on memory that was not checked");
    }
    if known.registers[0].is_secret() && !loads {
        return wrong(instr, "a host address stored to the guest's memory");
    }
    for n in [RSI, RDI].into_iter().skip(usize::from(!loads)) {
        known.registers[n] = Value::of_kind(name_at(instr.ip(), n), Kind::Spent);
    }
    known.registers[RCX] = Value::masked(name_at(instr.ip(), RCX), 0, Kind::Plain);
    Ok(())
}

/// Results that more is known of than that they are new.
fn result(instr: &Instruction, known: &Known) -> Option<(usize, Value)> {
    use Mnemonic as M;
    let to = number(instr.op0_register()).filter(|_| instr.op0_kind() == OpKind::Register)?;
    let (is_64bit, is_32bit) = (instr.op0_register().is_gpr64(), instr.op0_register().is_gpr32());
    let name = name_at(instr.ip(), to);
    let old = known.registers[to];
    let from = number(instr.op1_register()).filter(|_| instr.op1_kind() == OpKind::Register);
    let constant = instr.op_kinds().nth(1).filter(|kind| is_immediate(*kind)).map(|_| instr.immediate(1));
    let value = match instr.mnemonic() {
        M::Mov if is_64bit => known.registers[from?],
        M::Mov if is_32bit => {
            let source = known.registers[from?];
            if source.is_secret() {
                return None;
            }
            Value::masked(name, source.bits & 0xffff_ffff, Kind::Low { of: source.name })
        }
        M::Shr if is_64bit && !old.is_secret() && constant == Some(u64::from(layout::tlb_shift())) => {
            Value::of_kind(name, Kind::Shifted { of: old.name })
        }
        M::And if is_32bit => {
            let mask = constant? & 0xffff_ffff;
            let kind = match old.kind {
                Kind::Shifted { of } if mask == layout::tlb_mask() => Kind::Selects { of },
                Kind::Low { of } if mask == PAGE - 1 => Kind::PageOffset { of },
                _ if old.is_secret() => return None,
                _ => Kind::Plain,
            };
            Value::masked(name, mask & old.bits, kind)
        }
        M::Xor if is_32bit && constant == Some(layout::tlb_second()) => {
            // Of which entry a tag is does not matter: that it is the address's page does.
            let kind = if let Kind::Selects { .. } = old.kind { old.kind } else { return None };
            Value::masked(name, old.bits, kind)
        }
        M::Lea if is_64bit && instr.is_ip_rel_memory_operand() => {
            Value::of_kind(name, Kind::Code(instr.ip_rel_memory_address()))
        }
        M::Lea if is_64bit && number(instr.memory_base()) == Some(to) && instr.memory_displacement64() == 0 => {
            let count = known.registers[number(instr.memory_index())?];
            let scale = instr.memory_index_scale();
            // The sum does not wrap: an address differs from a tag in either place of its page in no more than two bits of
            // the set's number, which has twelve.
            match old.kind {
                Kind::Difference { of, entry, write } if count.max <= PAGE / u64::from(scale) => {
                    Value::of_kind(name, Kind::RunDifference { of, entry, write, count: count.name, scale })
                }
                _ => return None,
            }
        }
        _ => return None,
    };
    Some((to, value))
}

fn is_immediate(kind: OpKind) -> bool {
    use OpKind as K;
    matches!(
        kind,
        K::Immediate8 | K::Immediate8to32 | K::Immediate8to64 | K::Immediate32 | K::Immediate32to64 | K::Immediate64
    )
}

/// A load of a word that blocks keep values in.
fn word_load(instr: &Instruction, known: &Known) -> Option<(usize, Value)> {
    let is_load = instr.mnemonic() == Mnemonic::Mov
        && instr.op1_kind() == OpKind::Memory
        && instr.memory_segment() == Register::GS
        && instr.op0_register().is_gpr64();
    let at = instr.memory_displacement64();
    let word = layout::word(at).filter(|_| is_load && at.is_multiple_of(8))?;
    Some((number(instr.op0_register())?, known.words[word]))
}

/// Keeps track of what is stored to the state.
fn note_store(instr: &Instruction, known: &mut Known) {
    if instr.op0_kind() != OpKind::Memory || instr.memory_segment() != Register::GS {
        return;
    }
    let at = instr.memory_displacement64();
    let size = instr.memory_size().size() as u64;
    let is_mov = instr.mnemonic() == Mnemonic::Mov;
    if layout::is_access_info(at) {
        known.access_info = (is_mov && is_immediate(instr.op1_kind())).then(|| instr.immediate(1) as u32);
    }
    if let Some(word) = layout::word(at) {
        let source = number(instr.op1_register()).filter(|_| instr.op1_kind() == OpKind::Register);
        known.words[word] = match source {
            Some(n) if is_mov && size == 8 && at.is_multiple_of(8) => known.registers[n],
            _ => Value::of_kind(name_at(instr.ip(), 16 + word), Kind::Spent),
        };
    }
}

/// The comparison that the flags tell of after the instruction.
fn comparison(instr: &Instruction, known: &Known) -> Option<(u64, u64)> {
    let register = instr.op0_register();
    let is_compare = instr.mnemonic() == Mnemonic::Cmp
        && instr.op0_kind() == OpKind::Register
        && register.is_gpr64()
        && is_immediate(instr.op1_kind());
    let value = known.registers[number(register).filter(|_| is_compare)?];
    Some((value.name, instr.immediate(1)))
}

/// What is known where a conditional jump was not taken.
pub fn refine_not_taken(instr: &Instruction, known: &mut Known) {
    let Some((name, limit)) = known.compared.filter(|_| instr.condition_code() == ConditionCode::a) else { return };
    let mut hit = None;
    for value in known.registers.iter_mut().chain(&mut known.words).filter(|value| value.name == name) {
        value.max = value.max.min(limit);
        if let Kind::RunDifference { of, entry, write, count, scale } = value.kind
            && limit <= PAGE
        {
            hit = Some(RunHit { of, entry, write, count, scale });
        }
    }
    known.hits.extend(hit);
}

/// The offset in R10 lies in a jump cache, at an entry.
pub fn check_jump_index(known: &Known, at: u64) -> Verdict<()> {
    if known.registers[R10].bits & !u64::from(jumps::HASH_MASK) != 0 {
        return Err(Violation { at, what: "an offset that reaches beyond the jump cache" });
    }
    Ok(())
}

/// An indirect jump goes to what a jump cache entry says.
pub fn check_jump_entry(instr: &Instruction, known: &Known, mode: usize) -> Verdict<()> {
    let is_entry = instr.op0_kind() == OpKind::Memory
        && instr.memory_segment() == Register::GS
        && instr.memory_base() == Register::R10
        && instr.memory_index() == Register::None
        && layout::is_jump_host(mode, instr.memory_displacement64());
    if !is_entry {
        return wrong(instr, "an indirect jump by something else than the jump cache");
    }
    check_jump_index(known, instr.ip())
}

/// The slow path: what is known when it comes back, and where that is. `looked_up` says which TLB tags it tries first.
pub fn slow_access(known: &mut Known, at: u64, looked_up: Option<bool>) -> Verdict<u64> {
    let (Some(info), Kind::Code(back)) = (known.access_info, known.registers[R10].kind) else {
        return Err(Violation { at, what: "a slow access that does not say what and where to" });
    };
    let (room, write) = (u64::from(info & access_info::SIZE), info & access_info::WRITE != 0);
    let is_consistent = looked_up.is_none_or(|stores| stores == write);
    if room > MAX_SLOW_OPERAND || !is_consistent || known.registers[R11].is_secret() {
        return Err(Violation { at, what: "a slow access that does not fit" });
    }
    known.registers[R10] = Value::plain(name_at(at, R10));
    known.registers[R11] = Value::of_kind(name_at(at, R11), Kind::Host { room, write });
    // The stub uses the first scratch word.
    known.words[0] = Value::of_kind(name_at(at, 16), Kind::Spent);
    known.access_info = None;
    known.compared = None;
    Ok(back)
}

//! Sequences of code of 16 and 32 bits whose operands lie in segments of odd bases and limits, mostly inside of them.

use iced_x86::{Code, CodeSize, FlowControl, Instruction, Mnemonic, OpKind, Register};
use ring3_engine::SegmentName;
use ring3_engine_bt::segment_name;

use crate::case::{Case, Item};
use crate::exclude::excluded_in;
use crate::ldt::Ldt;
use crate::operand::{Draft, number};
use crate::prng::Prng;
use crate::single;
use crate::state::{DATA, MEMORY_END};
use crate::values;

/// Codes that sequences are made of.
pub struct Codes {
    in_16: bool,
    straight: Vec<Code>,
    branches: Vec<Code>,
    /// Those that use the stack, and string instructions: more often than their number says.
    favourites: Vec<Code>,
}

impl Codes {
    pub fn new(in_16: bool) -> Self {
        let size = if in_16 { CodeSize::Code16 } else { CodeSize::Code32 };
        let part = std::env::var("RING3_FUZZ_CODES").unwrap_or_default().to_lowercase();
        let is_wanted = |code: &Code| format!("{code:?}").to_lowercase().starts_with(&part);
        let all: Vec<_> = Code::values().filter(|&code| excluded_in(code, size).is_none()).filter(is_wanted).collect();
        let flow = |code: &Code| {
            let mut instr = Instruction::default();
            instr.set_code(*code);
            instr.flow_control()
        };
        let is_near = |code: &Code| {
            let kind = code.op_code().op_kinds().first().map(|kind| format!("{kind:?}")).unwrap_or_default();
            // A target of 32 bits in code whose IP has 16 is out of reach of a label.
            kind.starts_with("br16") || kind.starts_with("br32") && !in_16
        };
        let of = |wanted: &dyn Fn(&Code) -> bool| all.iter().copied().filter(|code| wanted(code)).collect::<Vec<_>>();
        let straight = of(&|code| flow(code) == FlowControl::Next);
        let branches = of(&|code| flow(code) != FlowControl::Next && is_near(code));
        let favourites = of(&|code| {
            let mut instr = Instruction::default();
            instr.set_code(*code);
            let is_simple = matches!(flow(code), FlowControl::Next | FlowControl::Return);
            is_simple && (instr.is_stack_instruction() || instr.is_string_instruction())
        });
        Self { in_16, straight, branches, favourites }
    }
}

/// A sequence of one to six instructions.
pub fn generate(rng: &mut Prng, codes: &Codes, ldt: &Ldt, memory: &[u8]) -> Option<Case> {
    let mut state = values::state32(rng);
    let base = ldt.load(rng, &mut state, codes.in_16);
    let mut draft = Draft { state, fixed: 1 << 4, written: 0 };
    let top = offset(rng, ldt, &draft, SegmentName::Ss);
    draft.state.gpr[4] = part(rng, top);
    let mut items: Vec<Item> = Vec::new();
    let mut last = Code::INVALID;
    for _ in 0..1 + rng.below(6) * rng.below(2) {
        let item = match rng.below(5) {
            0 if !codes.branches.is_empty() => branch(rng, codes, items.len())?,
            1 | 2 if !codes.favourites.is_empty() => straight(rng, codes, &codes.favourites, &mut draft, ldt, memory)?,
            _ if codes.straight.is_empty() => continue,
            _ => straight(rng, codes, &codes.straight, &mut draft, ldt, memory)?,
        };
        last = item.instr.code();
        items.push(item);
    }
    let nr = items.len();
    for item in &mut items {
        item.target = item.target.map(|target| target.min(nr));
    }
    let case = Case { items, state: draft.state, hidden: Vec::new(), code: last, base };
    (!case.items.is_empty() && !case.reads_undefined()).then_some(case)
}

/// A value for a register of which 16 bits count, perhaps.
fn part(rng: &mut Prng, value: u64) -> u64 {
    let high = if rng.one_in(2) { rng.next() & 0xffff_0000 } else { 0 };
    if value > 0xffff { value } else { value | high }
}

/// An offset that lies in the segment, mostly, and that has data there.
fn offset(rng: &mut Prng, ldt: &Ldt, draft: &Draft, name: SegmentName) -> u64 {
    let segment = ldt.segment_of(&draft.state, name);
    let inside = (DATA + rng.below(MEMORY_END - DATA)).wrapping_sub(u64::from(segment.base)) & 0xffff_ffff;
    match rng.below(12) {
        0 => u64::from(segment.limit).wrapping_sub(rng.below(16)).wrapping_add(4) & 0xffff_ffff,
        1 => 0xffff - rng.below(8),
        2 => rng.below(8),
        3 => 0xffff_ffff - rng.below(8),
        _ => inside,
    }
}

/// A branch to one of the next instructions.
fn branch(rng: &mut Prng, codes: &Codes, here: usize) -> Option<Item> {
    let instr = Instruction::with_branch(rng.pick(&codes.branches), 0).ok()?;
    Some(Item::to(instr, here + 1 + rng.below(3) as usize))
}

fn straight(rng: &mut Prng, codes: &Codes, from: &[Code], draft: &mut Draft, ldt: &Ldt, memory: &[u8]) -> Option<Item> {
    let mut instr = Instruction::default();
    instr.set_code(rng.pick(from));
    let has_vector_index = instr.is_vsib();
    single::operands(rng, &mut instr, draft, memory)?;
    if !has_vector_index && (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Memory) {
        operand(rng, codes, &mut instr, draft, ldt)?;
    }
    if instr.is_string_instruction() {
        string(rng, codes, &mut instr, draft, ldt);
    }
    use Mnemonic as M;
    let is_environment = matches!(instr.mnemonic(), M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave | M::Fxsave);
    // The engine does not show where the last x87 instruction was.
    (!is_environment).then(|| instr.into())
}

/// A memory operand by registers of 16 or 32 bits, in any segment.
fn operand(rng: &mut Prng, codes: &Codes, instr: &mut Instruction, draft: &mut Draft, ldt: &Ldt) -> Option<()> {
    use Register as R;
    const SEGMENTS: [R; 6] = [R::ES, R::CS, R::SS, R::DS, R::FS, R::GS];
    instr.set_segment_prefix(if rng.one_in(2) { rng.pick(&SEGMENTS) } else { R::None });
    instr.set_memory_index_scale(1);
    instr.set_memory_index(R::None);
    let is_absolute = instr.op0_kind() == OpKind::Memory && instr.memory_base() == R::None && rng.one_in(2);
    // Elements that wrap at 64 KiB do so on the CPU only where one of them faults.
    let is_masked = matches!(
        instr.mnemonic(),
        Mnemonic::Vmaskmovps | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovd | Mnemonic::Vpmaskmovq
    );
    let narrow = !is_masked && if codes.in_16 { !rng.one_in(4) } else { rng.one_in(4) };
    let mask = if narrow { 0xffff } else { 0xffff_ffff };
    let is_xlat = instr.mnemonic() == Mnemonic::Xlatb;
    let is_moffs = format!("{:?}", instr.code()).contains("moffs");
    let (base, index) = match (is_xlat, is_absolute || is_moffs, narrow) {
        (true, _, true) => (R::BX, R::AL),
        (true, _, false) => (R::EBX, R::AL),
        (_, true, _) => (R::None, R::None),
        (_, _, true) => rng.pick(&[
            (R::BX, R::SI),
            (R::BX, R::DI),
            (R::BP, R::SI),
            (R::BP, R::DI),
            (R::SI, R::None),
            (R::DI, R::None),
            (R::BP, R::None),
            (R::BX, R::None),
        ]),
        (_, _, false) => (rng.pick(&[R::EAX, R::EBX, R::ECX, R::EDX, R::ESI, R::EDI, R::EBP, R::ESP]), R::None),
    };
    instr.set_memory_base(base);
    instr.set_memory_index(index);
    let mut at = offset(rng, ldt, draft, segment_name(instr.memory_segment()));
    // What is accessed part by part wraps part by part.
    if instr.memory_size().size() > 32 && at > 0xffff_f000 {
        at = rng.below(0x1000);
    }
    let value = |draft: &Draft, register: Register| {
        if register == R::None || register == R::AL { 0 } else { draft.state.gpr[number(register)] }
    };
    let indexed = value(draft, index);
    let is_free = base != R::None && !draft.is_fixed(base) && number(base) != 4 && rng.one_in(2);
    let displacement = if is_free {
        let small = rng.below(64);
        let wanted = at.wrapping_sub(indexed).wrapping_sub(small) & mask;
        let wanted = if narrow { part(rng, wanted) } else { wanted };
        draft.fix(base.full_register(), wanted);
        small
    } else {
        at.wrapping_sub(indexed).wrapping_sub(value(draft, base)) & mask
    };
    let displacement = if is_xlat { 0 } else { displacement };
    instr.set_memory_displacement64(displacement);
    instr.set_memory_displ_size(if is_xlat {
        0
    } else if narrow {
        2
    } else {
        4
    });
    Some(())
}

/// Index registers of a string instruction, by 16 or 32 bits.
fn string(rng: &mut Prng, codes: &Codes, instr: &mut Instruction, draft: &mut Draft, ldt: &Ldt) {
    let narrow = if codes.in_16 { !rng.one_in(4) } else { rng.one_in(4) };
    if narrow {
        for op in 0..instr.op_count() {
            let kind = match instr.op_kind(op) {
                OpKind::MemorySegESI => OpKind::MemorySegSI,
                OpKind::MemoryESEDI => OpKind::MemoryESDI,
                OpKind::MemorySegEDI => OpKind::MemorySegDI,
                other => other,
            };
            instr.set_op_kind(op, kind);
        }
    }
    if rng.one_in(3) {
        let segments = [Register::ES, Register::CS, Register::SS, Register::FS, Register::GS];
        instr.set_segment_prefix(rng.pick(&segments));
    }
    let source = offset(rng, ldt, draft, segment_name(instr.memory_segment()));
    let target = offset(rng, ldt, draft, SegmentName::Es);
    for (register, value) in [(Register::RSI, source), (Register::RDI, target)] {
        let value = part(rng, value);
        draft.fix(register, value);
    }
    let count = rng.below(40);
    draft.fix(Register::RCX, part(rng, count));
}

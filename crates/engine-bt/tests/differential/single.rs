//! Sequences about one instruction, of any code that the policy shows.

use iced_x86::{Code, FlowControl, Instruction, Mnemonic as M, OpCodeOperandKind as O, OpKind, Register};

use crate::case::{Case, Item};
use crate::operand::{self, Draft, gpr32};
use crate::prng::Prng;
use crate::state::{CpuState, DATA, READ_ONLY};
use crate::values;

/// A sequence about `code`. None if the dice gave one that cannot be encoded.
pub fn generate(rng: &mut Prng, code: Code, memory: &[u8]) -> Option<Case> {
    let state = values::state(rng);
    generate_from(rng, code, memory, state)
}

/// As `generate`, for 32-bit code.
pub fn generate32(rng: &mut Prng, code: Code, memory: &[u8]) -> Option<Case> {
    let state = values::state32(rng);
    generate_from(rng, code, memory, state)
}

fn generate_from(rng: &mut Prng, code: Code, memory: &[u8], state: CpuState) -> Option<Case> {
    let mut draft = Draft { state, fixed: 1 << 4, written: 0 };
    let mut hidden = Vec::new();
    let items = match code.op_code().op_kinds().first() {
        _ if matches!(code.mnemonic(), M::Popf | M::Popfd | M::Popfq) => pop_flags(rng, code),
        Some(O::br64_1 | O::br64_4 | O::br32_1 | O::br32_4) => branch(rng, code)?,
        Some(O::br16_1 | O::br16_2) => return None,
        _ => {
            let mut instr = Instruction::default();
            instr.set_code(code);
            match instr.flow_control() {
                FlowControl::IndirectBranch | FlowControl::IndirectCall | FlowControl::Return => {
                    indirect(rng, code, &mut draft)?
                }
                _ => {
                    operands(rng, &mut instr, &mut draft, memory)?;
                    if let Some(range) = hidden_range(&instr, &draft) {
                        hidden.push(range);
                    }
                    vec![instr.into()]
                }
            }
        }
    };
    Some(Case { items, state: draft.state, hidden, code, base: 0 })
}

/// Fills in the operands of `instr` and the registers that they need.
pub fn operands(rng: &mut Prng, instr: &mut Instruction, draft: &mut Draft, memory: &[u8]) -> Option<()> {
    let code = instr.code();
    let info = code.op_code();
    implicit(rng, instr, draft);
    let mut nr_immediates = 0;
    let mut at_memory = None;
    for op in 0..info.op_count() {
        let kind = info.op_kind(op);
        let (may, must) = operand::is_memory(kind);
        if must || may && rng.one_in(2) {
            instr.set_op_kind(op, OpKind::Memory);
            at_memory = Some(kind);
        } else if let Some(register) = operand::register(rng, kind, draft.is_narrow()) {
            instr.set_op_kind(op, OpKind::Register);
            instr.set_op_register(op, register);
        } else if operand::immediate(rng, instr, op, kind, nr_immediates > 0).is_some() {
            nr_immediates += 1;
        } else {
            string_operand(rng, instr, op, kind, draft.is_narrow())?;
        }
    }
    if let Some(kind) = at_memory {
        memory_operand(rng, instr, draft, kind)?;
    }
    if info.can_use_lock_prefix() && instr.op0_kind() == OpKind::Memory && rng.one_in(3) {
        instr.set_has_lock_prefix(true);
    }
    if instr.is_string_instruction() {
        match rng.below(3) {
            0 if info.can_use_rep_prefix() => instr.set_has_rep_prefix(true),
            1 if info.can_use_repne_prefix() => instr.set_has_repne_prefix(true),
            _ => {}
        }
    }
    explicit(rng, instr, draft, memory);
    Some(())
}

fn string_operand(rng: &mut Prng, instr: &mut Instruction, op: u32, kind: O, in_32: bool) -> Option<()> {
    // All operands of one instruction have the same address size.
    let narrow = if op > 0 && instr.op0_kind() != OpKind::Register {
        matches!(instr.op0_kind(), OpKind::MemorySegESI | OpKind::MemoryESEDI | OpKind::MemorySegEDI)
    } else {
        in_32 || rng.one_in(8)
    };
    let op_kind = match kind {
        O::seg_rSI => {
            if narrow {
                OpKind::MemorySegESI
            } else {
                OpKind::MemorySegRSI
            }
        }
        O::es_rDI => {
            if narrow {
                OpKind::MemoryESEDI
            } else {
                OpKind::MemoryESRDI
            }
        }
        O::seg_rDI => {
            if narrow {
                OpKind::MemorySegEDI
            } else {
                OpKind::MemorySegRDI
            }
        }
        O::seg_rBX_al => {
            instr.set_op_kind(op, OpKind::Memory);
            instr.set_memory_base(if narrow { Register::EBX } else { Register::RBX });
            instr.set_memory_index(Register::AL);
            return Some(());
        }
        _ => return None,
    };
    instr.set_op_kind(op, op_kind);
    Some(())
}

/// Registers that an instruction uses without naming them.
fn implicit(rng: &mut Prng, instr: &Instruction, draft: &mut Draft) {
    let code = instr.code();
    if instr.is_string_instruction() {
        draft.fix(Register::RSI, values::address(rng, 64));
        let rdi = if rng.one_in(3) {
            draft.value(Register::RSI).wrapping_add(rng.below(40)).wrapping_sub(20)
        } else {
            values::address(rng, 64)
        };
        draft.fix(Register::RDI, rdi);
        let count = if rng.one_in(5) { rng.below(5000) } else { rng.below(40) };
        draft.fix(Register::RCX, count);
        return;
    }
    match code.mnemonic() {
        M::Maskmovdqu | M::Maskmovq | M::Vmaskmovdqu => draft.fix(Register::RDI, values::address(rng, 16)),
        M::Xlatb => draft.fix(Register::RBX, values::address(rng, 256)),
        M::Leave => draft.fix(Register::RBP, values::address(rng, 8)),
        M::Enter => {
            let rsp = draft.value(Register::RSP);
            draft.fix(Register::RBP, rsp + 8 * rng.below(8));
        }
        M::Div | M::Idiv if !rng.one_in(3) => {
            let high = if rng.one_in(2) { 0 } else { rng.below(4) };
            draft.fix(Register::RDX, high);
            if rng.one_in(2) {
                draft.fix(Register::RAX, rng.below(0x100));
            }
        }
        _ => {}
    }
    if instr.is_stack_instruction() && rng.one_in(3) {
        draft.fix(Register::RSP, values::address(rng, 16));
    }
}

fn memory_operand(rng: &mut Prng, instr: &mut Instruction, draft: &mut Draft, kind: O) -> Option<()> {
    let size = match instr.memory_size().size() {
        0 => 64,
        n => n.min(512),
    };
    let target = values::address(rng, size);
    if kind == O::mem_offs {
        instr.set_memory_displacement64(target);
        instr.set_memory_displ_size(if draft.is_narrow() { 4 } else { 8 });
        return Some(());
    }
    if matches!(kind, O::mem_vsib32x | O::mem_vsib64x | O::mem_vsib32y | O::mem_vsib64y) {
        return vector_index(rng, instr, draft, kind);
    }
    draft.memory(rng, instr, target)
}

fn vector_index(rng: &mut Prng, instr: &mut Instruction, draft: &mut Draft, kind: O) -> Option<()> {
    let index = rng.below(if draft.is_narrow() { 8 } else { 16 }) as u32;
    let first = if matches!(kind, O::mem_vsib32x | O::mem_vsib64x) { Register::XMM0 } else { Register::YMM0 };
    let base = draft.any_register(rng);
    if draft.is_fixed(base) {
        return None;
    }
    draft.fix(base, DATA + 0x1000 + rng.below(0x1000));
    instr.set_memory_base(if draft.is_narrow() { gpr32(operand::number(base) as u64) } else { base });
    instr.set_memory_index(first + index);
    instr.set_memory_index_scale(1 << rng.below(4));
    instr.set_memory_displacement64(rng.below(64));
    instr.set_memory_displ_size(1);
    let narrow = matches!(kind, O::mem_vsib32x | O::mem_vsib32y);
    let lanes = &mut draft.state.ymm[index as usize];
    for chunk in lanes.chunks_exact_mut(if narrow { 4 } else { 8 }) {
        let value = if rng.one_in(30) { rng.next() } else { rng.below(0x200).wrapping_sub(0x100) };
        let width = chunk.len();
        chunk.copy_from_slice(&value.to_le_bytes()[..width]);
    }
    Some(())
}

/// Values that make named operands interesting.
fn explicit(rng: &mut Prng, instr: &Instruction, draft: &mut Draft, memory: &[u8]) {
    match instr.mnemonic() {
        M::Bt | M::Bts | M::Btr | M::Btc
            if instr.op0_kind() == OpKind::Memory && instr.op1_kind() == OpKind::Register =>
        {
            let index = instr.op1_register();
            if !draft.is_fixed(index) {
                let garbage = if rng.one_in(2) { rng.next() << 32 } else { 0 };
                draft.fix(index, rng.below(4000).wrapping_sub(2000) ^ garbage);
            }
        }
        M::Wrfsbase | M::Wrgsbase => {
            let register = instr.op0_register();
            let value = draft.value(register);
            if !rng.one_in(4) {
                draft.fix(register, ((value << 17) as i64 >> 17) as u64 & 0x7fff_ffff_ffff);
            }
        }
        M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b if rng.one_in(2) => {
            if instr.op0_kind() == OpKind::Register {
                let value = draft.state.gpr[instr.op0_register().full_register().number()];
                draft.fix(Register::RAX, value);
                return;
            }
            let Some(at) = effective_address(instr, draft) else { return };
            let word = |n: u64| {
                let from = at.wrapping_add(n).wrapping_sub(DATA) as usize;
                memory.get(from..from.wrapping_add(8)).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
            };
            let high = if instr.mnemonic() == M::Cmpxchg8b { word(4) } else { word(8) };
            for (register, value) in [(Register::RAX, word(0)), (Register::RDX, high)] {
                if !draft.is_fixed(register) {
                    draft.fix(register, value);
                }
            }
        }
        _ => {}
    }
}

/// Linear address of a memory operand in the draft's state.
fn effective_address(instr: &Instruction, draft: &Draft) -> Option<u64> {
    let segment = match instr.segment_prefix() {
        Register::FS => draft.state.fs_base,
        Register::GS => draft.state.gs_base,
        _ => 0,
    };
    if matches!(instr.memory_base(), Register::RIP | Register::EIP) {
        return Some(instr.memory_displacement64().wrapping_add(segment));
    }
    let mut address = instr.memory_displacement64();
    if instr.memory_base() != Register::None {
        address = address.wrapping_add(draft.value(instr.memory_base()));
    }
    if instr.memory_index() != Register::None {
        let index = draft.value(instr.memory_index());
        address = address.wrapping_add(index.wrapping_mul(u64::from(instr.memory_index_scale())));
    }
    if instr.memory_base().is_gpr32() || instr.memory_index().is_gpr32() {
        address &= 0xffff_ffff;
    }
    Some(address.wrapping_add(segment))
}

/// Where the x87 pointers go that the engine does not show.
fn hidden_range(instr: &Instruction, draft: &Draft) -> Option<(u64, usize)> {
    let (offset, len) = match instr.mnemonic() {
        M::Fnstenv | M::Fstenv | M::Fnsave | M::Fsave => {
            if matches!(instr.code(), Code::Fnstenv_m14byte | Code::Fnsave_m94byte) { (6, 8) } else { (12, 16) }
        }
        // The opcode and pointers, and the mask that says which MXCSR bits there are.
        M::Fxsave | M::Fxsave64 => (6, 26),
        _ => return None,
    };
    Some((effective_address(instr, draft)?.wrapping_add(offset), len))
}

fn pop_flags(rng: &mut Prng, code: Code) -> Vec<Item> {
    let value = rng.next() as i32 & 0x7fff_ffff;
    let push = if code == Code::Popfw {
        Instruction::with1(Code::Push_imm16, value as i16 as i32)
    } else if code == Code::Popfd {
        Instruction::with1(Code::Pushd_imm32, value)
    } else {
        Instruction::with1(Code::Pushq_imm32, value)
    };
    let mut pop = Instruction::default();
    pop.set_code(code);
    let mut items = vec![Item::from(pop)];
    if let Ok(push) = push {
        items.insert(0, push.into());
    }
    items
}

/// A near branch over an `int3`.
fn branch(rng: &mut Prng, code: Code) -> Option<Vec<Item>> {
    let instr = Instruction::with_branch(code, 0).ok()?;
    let _ = rng;
    Some(vec![Item::to(instr, 2), Instruction::with(Code::Int3).into()])
}

/// An indirect branch over an `int3`, with its target in a register or in memory.
fn indirect(rng: &mut Prng, code: Code, draft: &mut Draft) -> Option<Vec<Item>> {
    let info = code.op_code();
    let narrow = draft.is_narrow();
    let full = draft.any_register(rng);
    if full == Register::RSP {
        return None;
    }
    let register = if narrow { gpr32(operand::number(full) as u64) } else { full };
    let far = Instruction::with(Code::Int3).into();
    // The target's address; 32-bit code has no addresses relative to EIP.
    let address = if narrow {
        Instruction::with2(Code::Mov_r32_imm32, register, 0i32)
    } else {
        Instruction::with2(Code::Lea_r64_m, register, iced_x86::MemoryOperand::with_base(Register::RIP))
    };
    let address = address.ok()?;
    let mut instr = Instruction::default();
    instr.set_code(code);
    if instr.flow_control() == FlowControl::Return {
        if !matches!(code, Code::Retnq | Code::Retnq_imm16 | Code::Retnd | Code::Retnd_imm16) {
            return None;
        }
        if rng.one_in(3) {
            draft.fix(Register::RSP, values::address(rng, 8));
        }
        if info.op_count() > 0 {
            operand::immediate(rng, &mut instr, 0, O::imm16, false)?;
        }
        let push = Instruction::with1(if narrow { Code::Push_r32 } else { Code::Push_r64 }, register).ok()?;
        return Some(vec![Item::to(address, 4), push.into(), instr.into(), far]);
    }
    if info.op_kind(0) != if narrow { O::r32_or_mem } else { O::r64_or_mem } {
        return None;
    }
    draft.fixed |= 1 << operand::number(full);
    if rng.one_in(2) {
        instr.set_op_kind(0, OpKind::Register);
        instr.set_op_register(0, register);
        return Some(vec![Item::to(address, 3), instr.into(), far]);
    }
    instr.set_op_kind(0, OpKind::Memory);
    let target = DATA + rng.below(READ_ONLY - DATA - 8);
    draft.memory(rng, &mut instr, target)?;
    let mut store = instr;
    store.set_code(if narrow { Code::Mov_rm32_r32 } else { Code::Mov_rm64_r64 });
    store.set_op1_kind(OpKind::Register);
    store.set_op1_register(register);
    Some(vec![Item::to(address, 4), store.into(), instr.into(), far])
}

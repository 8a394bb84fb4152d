//! Accesses off one base share one look into the TLB.
//!
//! Stack frames and structures are accessed several times in a block, off a register that does not change, or changes by
//! constants. The first access of such a group looks whether all bytes from the group's first to its last lie in one page
//! that the TLB knows, for writing if one of them is a store. If so, the host address of the group's first byte serves
//! them all: it stays in S1 as long as nothing else needs that, and is kept in `State::held` where something does. What
//! the TLB knows holds until the block is left, so nothing can change in between.
//!
//! If not (the group crosses a page, its page was never written), the block is left for another that begins at that
//! instruction and checks each access by itself.

use iced_x86::{Code, Instruction, InstructionInfoOptions, Mnemonic, OpAccess, OpKind, Register};

use super::emitter::{Cold, Emitter};
use super::flags::NONE;
use super::memory::{Access, in_memory, is_stack_operand};
use super::{Insn, Kind, control::ColdExit};
use crate::emit::asm::{Mem, S1};
use crate::state::{NR_HELD, State};

/// Most bytes from the first to the last of a group.
const MAX_SPAN: i64 = 512;

/// An instruction's part in a group.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    group: usize,
    /// Of its access, from the group's first byte.
    pub offset: i32,
    is_first: bool,
}

/// Accesses that share a check.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    span: usize,
    is_write: bool,
    /// Somebody else uses S1 between two of its members.
    is_held: bool,
}

/// What is known of a register: an unknown number, plus a constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Value {
    unknown: usize,
    offset: i64,
}

/// The unknown that is the linear address of the block's page.
const PAGE: usize = 16;
/// The first unknown that is no register's at the block's start.
const FIRST_NEW: usize = 17;

/// Follows the registers through a block.
struct Values {
    registers: [Value; 16],
    next: usize,
}

impl Values {
    fn new() -> Self {
        Self { registers: std::array::from_fn(|n| Value { unknown: n, offset: 0 }), next: FIRST_NEW }
    }

    fn get(&self, register: Register) -> Option<Value> {
        if !register.is_gpr() {
            return None;
        }
        self.registers.get(register.full_register().number()).copied()
    }

    fn set(&mut self, register: Register, value: Value) {
        if let Some(slot) = self.registers.get_mut(register.full_register().number()) {
            *slot = value;
        }
    }

    fn forget(&mut self, register: Register) {
        if register.is_gpr() {
            self.set(register, Value { unknown: self.next, offset: 0 });
            self.next += 1;
        }
    }

    fn add(&mut self, register: Register, by: i64) {
        if let Some(Value { unknown, offset }) = self.get(register) {
            self.set(register, Value { unknown, offset: offset.wrapping_add(by) });
        }
    }
}

/// A group in the making.
struct Draft {
    unknown: usize,
    low: i64,
    high: i64,
    is_write: bool,
    /// Instructions and the offsets of their accesses.
    members: Vec<(usize, i64)>,
}

impl Draft {
    /// Takes the access if it lies near enough.
    fn take(&mut self, n: usize, at: Value, access: Access) -> bool {
        let end = at.offset.wrapping_add(access.size as i64);
        let (low, high) = (self.low.min(at.offset), self.high.max(end));
        if self.unknown != at.unknown || high.wrapping_sub(low) > MAX_SPAN {
            return false;
        }
        (self.low, self.high) = (low, high);
        self.is_write |= access.write;
        self.members.push((n, at.offset));
        true
    }
}

impl Emitter<'_> {
    /// Finds the groups of a block.
    pub fn group(&mut self, insns: &mut [Insn]) {
        let nr_bases = insns.iter().filter(|insn| self.base_of(insn).is_some()).count();
        if nr_bases < 2 {
            return;
        }
        let mut values = Values::new();
        let mut drafts: Vec<Draft> = Vec::new();
        for (n, insn) in insns.iter().enumerate() {
            if let Some((base, displacement)) = self.base_of(insn)
                && let Some(access) = self.grouped_access(insn)
            {
                let page = Value { unknown: PAGE, offset: 0 };
                if let Some(value) = if base == Register::RIP { Some(page) } else { values.get(base) } {
                    let at = Value { offset: value.offset.wrapping_add(displacement), ..value };
                    // Only the latest of a base goes on: earlier ones are too far away.
                    let open = drafts.iter_mut().rev().find(|draft| draft.unknown == at.unknown);
                    if !open.is_some_and(|draft| draft.take(n, at, access)) {
                        let high = at.offset.wrapping_add(access.size as i64);
                        let members = vec![(n, at.offset)];
                        let (unknown, low, is_write) = (at.unknown, at.offset, access.write);
                        drafts.push(Draft { unknown, low, high, is_write, members });
                    }
                }
            }
            self.follow(&mut values, insn);
        }
        drafts.retain(|draft| draft.members.len() > 1);
        drafts.truncate(NR_HELD);
        for (group, draft) in drafts.iter().enumerate() {
            for (index, &(n, offset)) in draft.members.iter().enumerate() {
                let member = Member { group, offset: (offset - draft.low) as i32, is_first: index == 0 };
                if let Some(insn) = insns.get_mut(n) {
                    insn.member = Some(member);
                }
            }
        }
        for (group, draft) in drafts.iter().enumerate() {
            let (first, last) = (draft.members.first().map_or(0, |m| m.0), draft.members.last().map_or(0, |m| m.0));
            let between = insns.get(first..last).unwrap_or_default();
            let is_other = |insn: &Insn| insn.member.is_some_and(|member| member.group != group);
            // The target of an indirect call is loaded before its return address is pushed.
            let ends_in_call = insns.get(last).is_some_and(|insn| insn.kind == Kind::CallIndirect);
            let is_held = ends_in_call || between.iter().any(|insn| is_other(insn) || !self.keeps_pointer(insn));
            self.groups.push(Group { span: (draft.high - draft.low) as usize, is_write: draft.is_write, is_held });
        }
    }

    /// Base register and displacement of the access that an instruction may share.
    fn base_of(&self, insn: &Insn) -> Option<(Register, i64)> {
        let instr = &insn.instr;
        let word = self.word() as i64;
        let is_word = |by: i32| i64::from(by.unsigned_abs()) == word;
        match insn.kind {
            Kind::Push if instr.op0_kind() != OpKind::Memory && is_word(instr.stack_pointer_increment()) => {
                Some((Register::RSP, -word))
            }
            Kind::Pop
                if instr.op0_kind() == OpKind::Register
                    && is_word(instr.stack_pointer_increment())
                    && instr.op0_register().full_register() != Register::RSP =>
            {
                Some((Register::RSP, 0))
            }
            Kind::Call | Kind::CallIndirect => Some((Register::RSP, -word)),
            Kind::Ret => Some((Register::RSP, 0)),
            Kind::Leave if matches!(instr.code(), Code::Leaveq | Code::Leaved) => Some((Register::RBP, 0)),
            Kind::Plain => {
                let (base, index) = (instr.memory_base(), instr.memory_index());
                let is_flat = !matches!(instr.memory_segment(), Register::FS | Register::GS);
                let is_wide = base == Register::RIP || base.is_gpr() && base.size() as i64 == word;
                let displacement = instr.memory_displacement64() as i64;
                // In 32-bit code displacements are not sign-extended.
                let displacement = if word == 4 { i64::from(displacement as i32) } else { displacement };
                (is_wide && index == Register::None && is_flat).then_some((base, displacement))
            }
            _ => None,
        }
    }

    fn grouped_access(&mut self, insn: &Insn) -> Option<Access> {
        let word = self.word();
        let access = match insn.kind {
            Kind::Push | Kind::Call | Kind::CallIndirect => Access { size: word, write: true, stack: true },
            Kind::Pop | Kind::Ret | Kind::Leave => Access { size: word, write: false, stack: true },
            _ => self.access_of(&insn.instr)?,
        };
        (1..=64).contains(&access.size).then_some(access)
    }

    /// What an instruction does to the registers.
    fn follow(&mut self, values: &mut Values, insn: &Insn) {
        let instr = &insn.instr;
        let op0 = instr.op0_register();
        let is_word = |register: Register| register.is_gpr() && register.size() == self.word();
        match insn.kind {
            Kind::Nop | Kind::Touch | Kind::Direction(_) | Kind::Jcc | Kind::BitString => {}
            Kind::Push | Kind::PushFlags => values.add(Register::RSP, instr.stack_pointer_increment().into()),
            Kind::Pop => {
                values.add(Register::RSP, instr.stack_pointer_increment().into());
                if instr.op0_kind() == OpKind::Register {
                    values.forget(op0);
                }
            }
            Kind::Leave => {
                if let Some(frame) = values.get(Register::RBP) {
                    values.set(Register::RSP, frame);
                    values.add(Register::RSP, self.word() as i64);
                }
                values.forget(Register::RBP);
            }
            Kind::Lea => {
                let base = instr.memory_base();
                let displacement = instr.memory_displacement64() as i64;
                let known = is_word(op0) && instr.memory_index() == Register::None;
                let value = match base {
                    Register::RIP if known => Some(Value { unknown: PAGE, offset: 0 }),
                    _ if known && is_word(base) => values.get(base),
                    _ => None,
                };
                match value {
                    Some(value) => {
                        values.set(op0, value);
                        values.add(op0, if self.word() == 4 { i64::from(displacement as i32) } else { displacement });
                    }
                    None => values.forget(op0),
                }
            }
            Kind::Plain => self.follow_plain(values, instr),
            _ => self.forget_written(values, instr),
        }
    }

    fn follow_plain(&mut self, values: &mut Values, instr: &Instruction) {
        use Mnemonic as M;
        let (op0, op1) = (instr.op0_register(), instr.op1_register());
        let to_register = instr.op0_kind() == OpKind::Register;
        let is_word = |register: Register| register.is_gpr() && register.size() == self.word();
        let has_constant = instr.op_count() == 2 && !matches!(instr.op1_kind(), OpKind::Register | OpKind::Memory);
        match instr.mnemonic() {
            M::Cmp | M::Test => {}
            M::Mov if to_register && instr.op1_kind() == OpKind::Register && is_word(op0) && is_word(op1) => {
                if let Some(value) = values.get(op1) {
                    values.set(op0, value);
                }
            }
            M::Add if to_register && has_constant && is_word(op0) => values.add(op0, instr.immediate(1) as i64),
            M::Sub if to_register && has_constant && is_word(op0) => {
                values.add(op0, (instr.immediate(1) as i64).wrapping_neg());
            }
            M::Inc | M::Dec if to_register && is_word(op0) => {
                values.add(op0, if instr.mnemonic() == M::Inc { 1 } else { -1 });
            }
            M::Mov | M::Movzx | M::Movsx | M::Movsxd | M::Add | M::Sub | M::And | M::Or | M::Xor | M::Inc | M::Dec => {
                if to_register {
                    values.forget(op0);
                }
            }
            _ => self.forget_written(values, instr),
        }
    }

    fn forget_written(&mut self, values: &mut Values, instr: &Instruction) {
        let info = self.info.info_options(instr, InstructionInfoOptions::NO_MEMORY_USAGE);
        for used in info.used_registers() {
            if !matches!(used.access(), OpAccess::Read | OpAccess::CondRead | OpAccess::None | OpAccess::NoMemAccess) {
                values.forget(used.register());
            }
        }
    }

    /// Whether an instruction's host code leaves S1 as it finds it, or as its own group wants it.
    fn keeps_pointer(&self, insn: &Insn) -> bool {
        let instr = &insn.instr;
        let uses_moved = |instr: &Instruction| {
            (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Register && in_memory(instr.op_register(op)))
        };
        match insn.kind {
            Kind::Nop | Kind::Jcc | Kind::Direction(_) => true,
            Kind::Lea => self.is_lea_copied(instr),
            Kind::Plain if insn.member.is_some() => instr.mnemonic() != Mnemonic::Mulx,
            Kind::Plain => (0..instr.op_count()).all(|op| instr.op_kind(op) != OpKind::Memory) && !uses_moved(instr),
            Kind::Push | Kind::Pop | Kind::Leave => insn.member.is_some(),
            _ => false,
        }
    }

    /// After an instruction was emitted.
    pub fn forget_pointer(&mut self, insn: &Insn) {
        if !self.keeps_pointer(insn) {
            self.pointer = None;
        }
    }

    /// Makes S1 the host address of a member's group. `address` computes the linear address of the member's access plus a
    /// constant into S1. Clobbers S0; the flags are free to clobber only for the group's first.
    pub fn point(&mut self, insn: &Insn, member: Member, address: impl FnOnce(&mut Self, i32)) {
        let Some(&group) = self.groups.get(member.group) else { return };
        let slot = Mem::state(std::mem::offset_of!(State, held) + 8 * member.group);
        if member.is_first {
            self.clear_flags(insn);
            address(self, -member.offset);
            let from = self.check_or_jump(group.span, group.is_write);
            if group.is_held {
                self.asm.store(slot, S1);
            }
            let (dead, is_live) = (self.dead_flags(), self.live_before(insn) != NONE);
            let exit = ColdExit::Ungrouped { from, target: insn.offset, loc: self.loc, dead, is_live };
            self.cold.push(Cold::Exit(exit));
        } else if self.pointer != Some(member.group) {
            self.asm.load(S1, slot);
        }
        self.pointer = Some(member.group);
    }

    /// Makes S1 the host address of the memory operand less the returned offset.
    pub fn operand(&mut self, insn: &Insn, access: Access) -> i32 {
        if let Some(member) = insn.member {
            self.point(insn, member, |emitter, by| emitter.linear_address(&insn.instr, by));
            return member.offset;
        }
        self.clear_flags(insn);
        self.linear_address(&insn.instr, 0);
        self.check(insn, Access { stack: is_stack_operand(&insn.instr), ..access });
        0
    }

    /// The same for the stack element at `base + offset`.
    pub fn element(&mut self, insn: &Insn, base: crate::emit::asm::Reg, offset: i32, access: Access) -> i32 {
        let wide = !self.request.is_compat();
        if let Some(member) = insn.member {
            self.point(insn, member, |emitter, by| emitter.asm.lea(wide, S1, Mem::at(base, offset + by)));
            return member.offset;
        }
        self.clear_flags(insn);
        self.asm.lea(wide, S1, Mem::at(base, offset));
        self.check(insn, access);
        0
    }
}

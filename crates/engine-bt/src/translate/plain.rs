//! Instructions that run as they are, on checked operands.

use std::mem::offset_of;

use iced_x86::{CpuidFeature, Instruction, OpAccess, OpKind, Register};

use super::compat;
use super::emitter::Emitter;
use super::features::may_be_reverted;
use super::memory::{in_memory, use_host_address};
use super::{Insn, Kind, flags};
use crate::emit::asm::{Mem, RSI, Reg, S0, S1};
use crate::state::State;

/// A use of a guest register that lives in memory.
#[derive(Clone, Copy, Debug)]
struct Moved {
    operand: u32,
    register: Register,
    read: bool,
    write: bool,
}

impl Emitter<'_> {
    pub fn plain(&mut self, insn: &Insn) {
        let mut instr = insn.instr;
        let memory = (0..instr.op_count()).find(|&op| instr.op_kind(op) == OpKind::Memory);
        let moved = self.moved_registers(&instr);
        self.mark_vector(&instr);
        self.next_recipe = None;
        if memory.is_none() {
            self.next_recipe = self.keep_for(insn, &mut instr, 0);
        }
        if memory.is_none() && moved.iter().all(Option::is_none) {
            self.flags_for(insn);
            let bytes = self.request.code.get(insn.offset..insn.next_offset()).unwrap_or_default();
            let is_reverted = !self.request.hidden.is_empty() && may_be_reverted(&instr);
            if is_reverted || self.request.is_compat() && compat::needs_encoding(&instr, bytes) {
                self.encode(&instr);
                return self.after(insn);
            }
            self.asm.raw(bytes);
            self.after(insn);
            return;
        }
        let mut high_byte = false;
        if memory.is_some() {
            let Some(access) = self.access_of(&instr) else {
                // An operand form that is not accessed: no effect.
                return;
            };
            to_modrm_form(&mut instr);
            let offset = self.operand(insn, access);
            high_byte = uses_high_byte(&instr);
            use_host_address(&mut instr, if high_byte { Register::RSI } else { Register::R11 }, offset);
            self.next_recipe = self.keep_for(insn, &mut instr, offset);
        }
        if self.needs_flags(insn) {
            self.fill_flags();
        }
        // With a memory operand S1 is taken, and both moved registers share S0: at most one is a source then.
        for m in moved.iter().flatten() {
            let host = host_for(m.register, memory.is_some());
            if m.read {
                self.load_guest(if host == Register::R11 { S1 } else { S0 }, m.register);
            }
            let base = if host == Register::R11 { Register::R11 } else { Register::R10 };
            instr.set_op_register(m.operand, sized(base, m.register.size()));
        }
        if high_byte {
            self.asm.store(Mem::state(offset_of!(State, scratch) + 8), RSI);
            self.asm.mov(RSI, S1);
            self.encode(&instr);
            self.asm.load(RSI, Mem::state(offset_of!(State, scratch) + 8));
        } else {
            let two_results = two_moved_results(&moved) && memory.is_some();
            if two_results {
                // mulx with both results moved: the second may use S1, whose address is read first.
                if let Some(m) = moved.iter().flatten().find(|m| m.write && m.operand == 1) {
                    instr.set_op_register(1, sized(Register::R11, m.register.size()));
                }
            }
            self.encode(&instr);
            // The first operand last: it wins where both are one register.
            for m in moved.iter().rev().flatten().filter(|m| m.write) {
                let is_second = two_results && m.operand == 1;
                let host = if is_second || host_for(m.register, memory.is_some()) == Register::R11 { S1 } else { S0 };
                self.store_guest(m.register, host);
            }
        }
        if insn.kind == Kind::StoreFpuEnvironment {
            // FIP and FDP would show where translated code lies: bytes 12 to 27 of the 28-byte environment, 6 to 13 of
            // the 14-byte one.
            let fields: &[i32] = if is_short_environment(&instr) { &[6] } else { &[12, 20] };
            for &field in fields {
                self.asm.store64_imm(Mem::at(S1, field), 0);
            }
        }
        self.after(insn);
    }

    fn after(&mut self, insn: &Insn) {
        let before = self.flag_source();
        self.flags_written(insn);
        if flags::may_trap(&insn.instr) {
            self.may_fault(insn, before);
        }
    }

    /// Explicit register operands that live in memory.
    fn moved_registers(&mut self, instr: &Instruction) -> [Option<Moved>; 3] {
        let mut moved = [None; 3];
        let mut n = 0;
        let any =
            (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Register && in_memory(instr.op_register(op)));
        if !any {
            return moved;
        }
        let info = self.info.info(instr);
        for operand in 0..instr.op_count() {
            let register = instr.op_register(operand);
            if instr.op_kind(operand) != OpKind::Register || !in_memory(register) {
                continue;
            }
            let access = info.op_access(operand);
            let (read, write) = match access {
                OpAccess::Write => (register.size() < 4, true),
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::None | OpAccess::NoMemAccess => (false, false),
                _ => (true, true),
            };
            if let Some(slot) = moved.get_mut(n) {
                *slot = Some(Moved { operand, register, read, write });
            }
            n += 1;
        }
        moved
    }

    /// Marks x87 use.
    fn mark_vector(&mut self, instr: &Instruction) {
        use CpuidFeature as F;
        let features = instr.cpuid_features();
        let x87 = features.iter().any(|f| matches!(f, F::FPU | F::FPU287 | F::FPU387 | F::MMX))
            || (0..instr.op_count()).any(|op| instr.op_kind(op) == OpKind::Register && instr.op_register(op).is_mm());
        if x87 && !self.marked_x87 {
            self.asm.store32_imm(Mem::state(offset_of!(State, x87_used)), 1);
            self.marked_x87 = true;
        }
    }

    /// Whether the bytes of a `lea` will do.
    pub fn is_lea_copied(&self, instr: &Instruction) -> bool {
        let registers = [instr.op0_register(), instr.memory_base(), instr.memory_index()];
        let is_portable = !self.request.is_compat() || compat::is_lea_portable(instr);
        !registers.iter().any(|&r| in_memory(r)) && is_portable && !instr.is_ip_rel_memory_operand()
    }

    /// `lea`: an address computation without an access.
    pub fn lea(&mut self, insn: &Insn) {
        let instr = &insn.instr;
        let to = instr.op0_register();
        if self.is_lea_copied(instr) {
            let bytes = self.request.code.get(insn.offset..insn.next_offset()).unwrap_or_default();
            self.asm.raw(bytes);
            return;
        }
        self.effective_address(instr, 0);
        if in_memory(to) {
            if to.size() == 4 {
                self.asm.op_reg(false, &[0x8b], S1, S1);
            } else if to.size() == 2 {
                self.asm.load(S0, Mem::state(crate::state::gpr_index(to.full_register().number())));
                self.asm.raw(&[0x66, 0x45, 0x8b, 0xd3]); // mov r10w, r11w
                self.asm.mov(S1, S0);
            }
            self.store_guest(to, S1);
            return;
        }
        let to_reg = Reg(to.full_register().number() as u8);
        match to.size() {
            2 => {
                self.asm.raw(&[0x66]);
                self.asm.op_reg(false, &[0x8b], to_reg, S1);
            }
            4 => self.asm.op_reg(false, &[0x8b], to_reg, S1),
            _ => self.asm.mov(to_reg, S1),
        }
    }
}

/// The host register for a moved guest register: with a memory operand always R10, else itself.
fn host_for(register: Register, has_memory: bool) -> Register {
    if has_memory { Register::R10 } else { register.full_register() }
}

fn two_moved_results(moved: &[Option<Moved>; 3]) -> bool {
    moved.iter().flatten().filter(|m| m.write).count() == 2
}

/// `fnstenv` and `fnsave` with a 16-bit operand size.
fn is_short_environment(instr: &Instruction) -> bool {
    use iced_x86::Code as C;
    matches!(instr.code(), C::Fnstenv_m14byte | C::Fstenv_m14byte | C::Fnsave_m94byte | C::Fsave_m94byte)
}

/// The register with the hardware number of `base` (R10 or R11), of `size` bytes.
pub(super) fn sized(base: Register, size: usize) -> Register {
    let ten = base == Register::R10;
    match (size, ten) {
        (1, true) => Register::R10L,
        (1, false) => Register::R11L,
        (2, true) => Register::R10W,
        (2, false) => Register::R11W,
        (4, true) => Register::R10D,
        (4, false) => Register::R11D,
        (_, true) => Register::R10,
        (_, false) => Register::R11,
    }
}

/// AH, CH, DH and BH cannot be encoded beside R8 to R15.
fn uses_high_byte(instr: &Instruction) -> bool {
    (0..instr.op_count()).any(|op| {
        instr.op_kind(op) == OpKind::Register
            && matches!(instr.op_register(op), Register::AH | Register::CH | Register::DH | Register::BH)
    })
}

/// `mov` between the accumulator and an absolute offset has no ModRM; gives it the form that has.
fn to_modrm_form(instr: &mut Instruction) {
    use iced_x86::Code as C;
    let code = match instr.code() {
        C::Mov_AL_moffs8 => C::Mov_r8_rm8,
        C::Mov_AX_moffs16 => C::Mov_r16_rm16,
        C::Mov_EAX_moffs32 => C::Mov_r32_rm32,
        C::Mov_RAX_moffs64 => C::Mov_r64_rm64,
        C::Mov_moffs8_AL => C::Mov_rm8_r8,
        C::Mov_moffs16_AX => C::Mov_rm16_r16,
        C::Mov_moffs32_EAX => C::Mov_rm32_r32,
        C::Mov_moffs64_RAX => C::Mov_rm64_r64,
        _ => return,
    };
    instr.set_code(code);
}

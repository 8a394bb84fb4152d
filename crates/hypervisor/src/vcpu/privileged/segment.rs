//! Segment registers and far transfers, executed by guest kernels and users at ring 3.

#![allow(clippy::cast_possible_truncation, reason = "instructions take the low part of a register")]

use iced_x86::{Mnemonic, OpKind, Register};
use ring3_engine::{CodeSize, GprName, SegmentName, vector};

use super::super::bounce::Running;
use super::super::descriptor::{self, LoadError, LoadFault, is_null, load_code, load_data, load_stack};
use super::{Done, GP0, Insn, segment_name};
use crate::memory::{Fault, is_canonical};

fn fault_of(error: LoadError, selector: u16, is_stack: bool) -> Done {
    match error.fault(selector, is_stack) {
        LoadFault::Exception(number, code) => Done::Fault(number, Some(code)),
        LoadFault::Page(va) => Done::Page(Fault { va, error_code: 0 }, false),
    }
}

fn width(code: CodeSize) -> u64 {
    if code == CodeSize::Bits64 { u64::MAX } else { 0xffff_ffff }
}

/// How an instruction ends that loaded a segment register: the one after a load of SS belongs to it.
/// Source: Intel SDM vol. 3, "Masking Exceptions and Interrupts When Switching Stacks".
fn loaded(register: Register) -> Done {
    if register == Register::SS { Done::NextQuiet } else { Done::Next }
}

impl Running<'_> {
    /// Loads `selector` into a data or stack segment register; FS and GS take their base with it.
    pub(crate) fn load_segment(&mut self, register: Register, selector: u16) -> Result<(), Done> {
        let loaded = if is_null(selector) { selector } else { selector | 3 };
        if register == Register::SS {
            let stack = load_stack(self.state, self.domain, selector).map_err(|e| fault_of(e, selector, true))?;
            let regs = self.state.cpu.regs_mut();
            (regs.ss, regs.segments[SegmentName::Ss as usize]) = (loaded, stack);
            return Ok(());
        }
        let segment = load_data(self.state, self.domain, selector).map_err(|e| fault_of(e, selector, false))?;
        let base = u64::from(segment.base);
        let regs = self.state.cpu.regs_mut();
        match register {
            Register::DS => regs.ds = loaded,
            Register::ES => regs.es = loaded,
            Register::FS => (regs.fs, regs.fs_base) = (loaded, base),
            Register::GS => (regs.gs, regs.gs_base) = (loaded, base),
            _ => return Err(Done::Fault(vector::UD, None)),
        }
        regs.segments[segment_name(register) as usize] = segment;
        Ok(())
    }

    pub(super) fn mov_segment(&mut self, insn: &Insn) -> Done {
        let to = insn.insn.op0_register();
        let is_load = insn.insn.op0_kind() == OpKind::Register && to.is_segment_register();
        let result = if is_load {
            self.read_operand(insn, 1, 2).and_then(|value| self.load_segment(to, (value & 0xffff) as u16))
        } else {
            self.read_operand(insn, 1, 2).and_then(|value| self.write_operand(insn, 0, value, 2))
        };
        result.err().unwrap_or(if is_load { loaded(to) } else { Done::Next })
    }

    fn operand_bytes(insn: &Insn, in_64bit: u64) -> u64 {
        // The operand-size prefix alone changes the default here; iced has folded it into the stack increment.
        match insn.insn.stack_pointer_increment().unsigned_abs() {
            0 => in_64bit,
            n => u64::from(n),
        }
    }

    pub(super) fn push_pop_segment(&mut self, insn: &Insn) -> Done {
        let register = insn.insn.op0_register();
        if !register.is_segment_register() {
            return GP0;
        }
        let size = Self::operand_bytes(insn, 8);
        let sp = self.state.cpu.regs().sp(insn.code);
        // The stack pointer by the descriptor that the old SS had.
        let old_mask = self.state.cpu.regs().stack_mask(insn.code);
        let is_pop = insn.insn.mnemonic() == Mnemonic::Pop;
        let result = (|| {
            if is_pop {
                let value = self.read_linear(self.stack_at(sp, 0, 2, false)?, 2)?;
                let next = sp.wrapping_add(size) & old_mask;
                let rsp = self.state.cpu.regs().get(GprName::Rsp) & !old_mask | next;
                self.load_segment(register, (value & 0xffff) as u16)?;
                self.state.cpu.regs_mut().set(GprName::Rsp, rsp);
                return Ok(());
            }
            let next = sp.wrapping_sub(size);
            let value = super::operand::get(self.state.cpu.regs(), register).unwrap_or(0).to_le_bytes();
            let at = self.stack_at(next, 0, size, true)?;
            self.write_linear(at, value.get(..size as usize).unwrap_or_default())?;
            self.state.cpu.regs_mut().set_sp(insn.code, next);
            Ok(())
        })();
        result.err().unwrap_or(if is_pop { loaded(register) } else { Done::Next })
    }

    /// `lss`, `lfs`, `lgs` and, in 32-bit code, `lds` and `les`.
    pub(super) fn load_far_pointer(&mut self, insn: &Insn) -> Done {
        let segment = match insn.insn.mnemonic() {
            Mnemonic::Lds => Register::DS,
            Mnemonic::Les => Register::ES,
            Mnemonic::Lfs => Register::FS,
            Mnemonic::Lgs => Register::GS,
            _ => Register::SS,
        };
        let to = insn.insn.op0_register();
        let size = to.size();
        let result = self.read_memory(insn, 1, 0, size).and_then(|offset| {
            let selector = self.read_memory(insn, 1, size as u64, 2)?;
            self.load_segment(segment, (selector & 0xffff) as u16)?;
            super::operand::set(self.state.cpu.regs_mut(), to, offset);
            Ok(())
        });
        result.err().unwrap_or(Done::Next)
    }

    fn jump_far(&mut self, selector: u16, offset: u64) -> Result<(), Done> {
        let code = load_code(self.state, self.domain, selector).map_err(|e| fault_of(e, selector, false))?;
        let size = code.code_size();
        let offset = offset & width(size);
        let is_inside = if size.is_compat() { offset <= u64::from(code.limit) } else { is_canonical(offset) };
        if !is_inside {
            return Err(GP0);
        }
        let mode = self.state.cpu.mode();
        self.state.cpu.set_mode(mode, size);
        let regs = self.state.cpu.regs_mut();
        (regs.cs, regs.segments[SegmentName::Cs as usize]) = (selector | 3, code);
        regs.rip = offset;
        Ok(())
    }

    /// Far `jmp` and `call`, direct or through memory. Call gates have DPL 0, and fault as all that is no code.
    pub(super) fn far_branch(&mut self, insn: &Insn) -> Done {
        let target = match insn.insn.op0_kind() {
            OpKind::FarBranch16 => Ok((insn.insn.far_branch_selector(), u64::from(insn.insn.far_branch16()), 2u64)),
            OpKind::FarBranch32 => Ok((insn.insn.far_branch_selector(), u64::from(insn.insn.far_branch32()), 4)),
            OpKind::Memory => {
                let total = insn.insn.memory_size().size();
                let size = total.saturating_sub(2);
                if !matches!(size, 2 | 4 | 8) {
                    return GP0;
                }
                self.read_memory(insn, 0, 0, size).and_then(|offset| {
                    let selector = self.read_memory(insn, 0, size as u64, 2)?;
                    Ok(((selector & 0xffff) as u16, offset, size as u64))
                })
            }
            _ => return GP0,
        };
        let result = target.and_then(|(selector, offset, size)| {
            if insn.insn.mnemonic() == Mnemonic::Call {
                load_code(self.state, self.domain, selector).map_err(|e| fault_of(e, selector, false))?;
                let regs = self.state.cpu.regs();
                let sp = regs.sp(insn.code).wrapping_sub(2 * size);
                let next = (regs.rip.wrapping_add(insn.insn.len() as u64) & width(insn.code)).to_le_bytes();
                let cs = u64::from(regs.cs).to_le_bytes();
                let (at_cs, at_rip) = (self.stack_at(sp, size, size, true)?, self.stack_at(sp, 0, size, true)?);
                self.write_linear(at_cs, cs.get(..size as usize).unwrap_or_default())?;
                self.write_linear(at_rip, next.get(..size as usize).unwrap_or_default())?;
                self.jump_far(selector, offset)?;
                self.state.cpu.regs_mut().set_sp(insn.code, sp);
                return Ok(());
            }
            self.jump_far(selector, offset)
        });
        result.err().unwrap_or(Done::Jumped)
    }

    /// `retf` and `iret` at ring 3, to the same ring.
    pub(super) fn far_return(&mut self, insn: &Insn) -> Done {
        let is_iret = insn.insn.mnemonic() != Mnemonic::Retf;
        let size = match insn.insn.mnemonic() {
            Mnemonic::Iretq => 8u64,
            Mnemonic::Iretd => 4,
            Mnemonic::Iret => 2,
            // Twice the operand, plus an immediate.
            _ => {
                let total = insn.insn.stack_pointer_increment().unsigned_abs();
                let extra = if insn.insn.op_count() > 0 { u32::from(insn.insn.immediate16()) } else { 0 };
                u64::from(total.saturating_sub(extra) / 2)
            }
        };
        if !matches!(size, 2 | 4 | 8) {
            return GP0;
        }
        let sp = self.state.cpu.regs().sp(insn.code);
        let word = |running: &Self, index: u64| {
            let at = running.stack_at(sp, index * size, size, false)?;
            running.read_linear(at, size as usize)
        };
        let result = (|| {
            let (rip, cs) = (word(self, 0)?, (word(self, 1)? & 0xffff) as u16);
            // Returning to an inner ring is impossible.
            if cs & 3 != 3 {
                return Err(Done::Fault(vector::GP, Some(u32::from(cs & !3))));
            }
            let flags = if is_iret { Some(word(self, 2)?) } else { None };
            let mut next_sp = sp.wrapping_add(if is_iret { 3 * size } else { 2 * size });
            let mut stack = None;
            if is_iret && insn.code == CodeSize::Bits64 {
                next_sp = word(self, 3)?;
                let ss = (word(self, 4)? & 0xffff) as u16;
                let segment = load_stack(self.state, self.domain, ss).map_err(|e| fault_of(e, ss, true))?;
                stack = Some((ss, segment));
            } else if !is_iret && insn.insn.op_count() > 0 {
                next_sp = next_sp.wrapping_add(u64::from(insn.insn.immediate16()));
            }
            self.jump_far(cs, rip)?;
            let regs = self.state.cpu.regs_mut();
            regs.set_sp(insn.code, next_sp);
            if let Some((ss, segment)) = stack {
                (regs.ss, regs.segments[SegmentName::Ss as usize]) = (ss | 3, segment);
            }
            if let Some(flags) = flags {
                // A 16-bit frame holds the lower half only.
                let flags = if size == 2 { (regs.rflags & !0xffff) | (flags & 0xffff) } else { flags };
                regs.rflags = super::super::iret::sanitize_flags(flags);
            }
            Ok(())
        })();
        result.err().unwrap_or(Done::Jumped)
    }

    /// `sgdt` and its kin: unprivileged without UMIP. What a guest sees is the hypervisor's own, and harmless.
    pub(super) fn store_system_register(&mut self, insn: &Insn) -> Done {
        const GDT_BASE: u64 = 0xffff_8300_0000_0000;
        let result = match insn.insn.mnemonic() {
            Mnemonic::Sgdt | Mnemonic::Sidt => {
                let is_gdt = insn.insn.mnemonic() == Mnemonic::Sgdt;
                let (base, limit) = if is_gdt { (GDT_BASE, 0xefffu16) } else { (GDT_BASE + 0x1_0000, 0xfff) };
                let mut raw = [0u8; 10];
                raw[..2].copy_from_slice(&limit.to_le_bytes());
                raw[2..].copy_from_slice(&base.to_le_bytes());
                let len = if insn.code == CodeSize::Bits64 { 10 } else { 6 };
                self.operand_at(insn, 0, 0, len, true)
                    .and_then(|va| self.write_linear(va, raw.get(..len).unwrap_or_default()))
            }
            Mnemonic::Smsw => self.write_operand(insn, 0, self.state.cr0, 2),
            Mnemonic::Sldt => {
                let selector = if self.state.ldt_ents == 0 { 0 } else { 0xe048 };
                self.write_operand(insn, 0, selector, 2)
            }
            _ => self.write_operand(insn, 0, 0xe040, 2),
        };
        result.err().unwrap_or(Done::Next)
    }

    /// `lar`, `lsl`, `verr`, `verw`: ZF tells whether the selector is usable.
    pub(super) fn probe_descriptor(&mut self, insn: &Insn) -> Done {
        let is_verify = matches!(insn.insn.mnemonic(), Mnemonic::Verr | Mnemonic::Verw);
        let selector = match self.read_operand(insn, u32::from(!is_verify), 2) {
            Ok(value) => (value & 0xffff) as u16,
            Err(done) => return done,
        };
        let found = match descriptor::lookup(self.state, self.domain, selector) {
            _ if is_null(selector) => None,
            Ok(found) => found,
            Err(va) => return Done::Page(Fault { va, error_code: 0 }, false),
        };
        let value = found.and_then(|d| match insn.insn.mnemonic() {
            _ if d.dpl() != 3 => None,
            Mnemonic::Lar => (d.is_segment() || d.is_call_gate()).then(|| u64::from(d.access_rights())),
            Mnemonic::Lsl => d.is_segment().then(|| u64::from(d.segment().limit)),
            Mnemonic::Verr => d.is_readable().then_some(0),
            _ => d.is_writable_data().then_some(0),
        });
        let regs = self.state.cpu.regs_mut();
        match value {
            Some(value) => {
                regs.rflags |= ring3_engine::rflags::ZF;
                if !is_verify {
                    super::operand::set(regs, insn.insn.op0_register(), value);
                }
            }
            None => regs.rflags &= !ring3_engine::rflags::ZF,
        }
        Done::Next
    }
}

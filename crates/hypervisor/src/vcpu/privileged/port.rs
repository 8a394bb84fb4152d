//! Port I/O: who may try, by IOPL or bitmap. No guest owns a port; what answers is `domain/platform.rs`.

#![allow(clippy::cast_possible_truncation, reason = "instructions take the low part of a register")]

use iced_x86::{Mnemonic, OpKind};
use ring3_abi::xen::VMASST_TYPE_architectural_iopl;
use ring3_engine::{GprName, Regs, SegmentName, rflags};

use super::super::bounce::Running;
use super::{Done, GP0, Insn, segment_name};

/// Writes an index register as the CPU does, by the address size in bytes.
fn set_part(regs: &mut Regs, name: GprName, value: u64, size: u32) {
    let value = match size {
        2 => (regs.get(name) & !0xffff) | (value & 0xffff),
        4 => value & 0xffff_ffff,
        _ => value,
    };
    regs.set(name, value);
}

impl Running<'_> {
    /// Whether the virtual IOPL admits port access (and `cli`, `sti`) in the current mode.
    pub(super) fn has_iopl(&self) -> bool {
        let needed = match (self.state.is_kernel(), self.domain.has_assist(VMASST_TYPE_architectural_iopl)) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 3,
        };
        self.state.iopl >= needed
    }

    /// Whether ports `port` to `port + len - 1` may be accessed: by IOPL, else by the bitmap of set_iobitmap.
    fn may_access(&self, port: u16, len: usize) -> bool {
        if self.has_iopl() {
            return true;
        }
        if u64::from(port) + len as u64 > u64::from(self.state.iobmp_limit) {
            return false;
        }
        let va = self.state.iobmp.wrapping_add(u64::from(port / 8));
        let mask = [0u64, 1].map(|index| {
            let mut byte = [0xffu8];
            let read = self.domain.memory.read(&self.state.kernel_space(), va.wrapping_add(index), &mut byte);
            if read.is_ok() { byte[0] } else { 0xff }
        });
        u16::from_le_bytes(mask) & (((1 << len) - 1) << (port % 8)) == 0
    }

    fn read_port(&self, port: u16, len: usize) -> u32 {
        self.domain.platform.lock().read(port, len as u32, self.hv.clock.now_ns())
    }

    fn write_port(&self, port: u16, len: usize, value: u32) {
        self.domain.platform.lock().write(port, len as u32, value, self.hv.clock.now_ns());
    }

    pub(super) fn in_out(&mut self, insn: &Insn) -> Done {
        let is_in = insn.insn.mnemonic() == Mnemonic::In;
        let (data, port) = if is_in { (0, 1) } else { (1, 0) };
        let port = match insn.insn.op_kind(port) {
            OpKind::Immediate8 => u16::from(insn.insn.immediate8()),
            _ => self.state.cpu.regs().get(GprName::Rdx) as u16,
        };
        let register = insn.insn.op_register(data);
        let len = register.size();
        if !self.may_access(port, len) {
            return GP0;
        }
        self.state.io_hits = self.state.io_hits(u64::from(port), len as u64);
        if is_in {
            let value = self.read_port(port, len);
            super::operand::set(self.state.cpu.regs_mut(), register, u64::from(value));
        } else {
            let value = super::operand::get(self.state.cpu.regs(), register).unwrap_or(0);
            self.write_port(port, len, value as u32);
        }
        Done::Next
    }

    /// One element of `ins`/`outs`; a repeated one stays at RIP until its count is zero, so it can be interrupted.
    pub(super) fn string_io(&mut self, insn: &Insn) -> Done {
        let (len, is_in) = match insn.insn.mnemonic() {
            Mnemonic::Insb => (1usize, true),
            Mnemonic::Insw => (2, true),
            Mnemonic::Insd => (4, true),
            Mnemonic::Outsb => (1, false),
            Mnemonic::Outsw => (2, false),
            _ => (4, false),
        };
        let regs = self.state.cpu.regs();
        let is_repeated = insn.insn.has_rep_prefix() || insn.insn.has_repne_prefix();
        let kind = insn.insn.op_kind(u32::from(!is_in));
        let (size, mask) = match kind {
            OpKind::MemoryESDI | OpKind::MemorySegSI => (2, 0xffff),
            OpKind::MemoryESEDI | OpKind::MemorySegESI => (4, 0xffff_ffff),
            _ => (8, u64::MAX),
        };
        let count = regs.get(GprName::Rcx) & mask;
        if is_repeated && count == 0 {
            return Done::Next;
        }
        let port = regs.get(GprName::Rdx) as u16;
        if !self.may_access(port, len) {
            return GP0;
        }
        let hits = self.state.io_hits(u64::from(port), len as u64);
        let pointer = if is_in { GprName::Rdi } else { GprName::Rsi };
        let index = regs.get(pointer) & mask;
        let segment = if is_in { SegmentName::Es } else { segment_name(insn.insn.memory_segment()) };
        let at = match self.place(segment, index, len, is_in) {
            Ok(at) => at,
            Err(done) => return done,
        };
        if is_in {
            let value = self.read_port(port, len).to_le_bytes();
            if let Err(done) = self.write_linear(at, value.get(..len).unwrap_or_default()) {
                return done;
            }
        } else {
            match self.read_linear(at, len) {
                Ok(value) => self.write_port(port, len, value as u32),
                Err(done) => return done,
            }
        }
        self.state.io_hits = hits;
        let regs = self.state.cpu.regs_mut();
        let step = if regs.rflags & rflags::DF != 0 { (len as u64).wrapping_neg() } else { len as u64 };
        set_part(regs, pointer, index.wrapping_add(step), size);
        if is_repeated {
            set_part(regs, GprName::Rcx, count.wrapping_sub(1), size);
            if count > 1 {
                return Done::Jumped;
            }
        }
        Done::Next
    }
}

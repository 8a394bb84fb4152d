//! Guest memory operands: address computation and the inline TLB check.

use std::mem::offset_of;

use iced_x86::{Instruction, Mnemonic, OpAccess, OpKind, Register};
use ring3_machine::PAGE_SIZE_BYTES;

use super::Insn;
use super::compat::has_address16;
use super::emitter::{Cold, Emitter};
use super::recipe::Recipe;
use crate::emit::asm::{Asm, Fixup, Mem, RCX, Reg, S0, S1, cc};
use crate::emit::tlb;
use crate::state::{State, TlbEntry, gpr_index, regs_offset};

/// Layout of `State::access_info`.
pub mod access_info {
    pub const SIZE: u32 = 0xff;
    pub const WRITE: u32 = 1 << 8;
    /// Go through the bounce buffer whose number is in bits 12 and 13.
    pub const SINGLE: u32 = 1 << 9;
    /// A stack access: a non-canonical address raises #SS.
    pub const STACK: u32 = 1 << 10;
    /// Atomic: a LOCK prefix, or `xchg`.
    pub const LOCKED: u32 = 1 << 11;
    pub const BOUNCE_SHIFT: u32 = 12;
    /// Page offset of the instruction, 13 bits.
    pub const OFFSET_SHIFT: u32 = 16;
}

/// One access of one instruction.
#[derive(Clone, Copy, Debug)]
pub struct Access {
    pub size: usize,
    pub write: bool,
    pub stack: bool,
}

/// The out-of-line part of a TLB check.
#[derive(Debug)]
pub(super) struct ColdAccess {
    from: Fixup,
    back: u64,
    info: u32,
    tag: usize,
    dead: Option<Recipe>,
}

/// The out-of-line part of a lookup of a run.
#[derive(Debug)]
pub(super) struct ColdRun {
    from: Fixup,
    back: u64,
    pointer: Reg,
    log2: u8,
    write: bool,
}

/// Hardware number of a general-purpose register of any size (not the high bytes).
pub(super) fn hardware(register: Register) -> Reg {
    Reg(register.full_register().number() as u8)
}

/// Whether the guest's register lives in memory.
pub(super) fn in_memory(register: Register) -> bool {
    register.is_gpr() && matches!(register.full_register(), Register::R10 | Register::R11)
}

/// Whether a non-canonical address of the operand raises #SS: prefixes other than FS and GS do not count.
pub fn is_stack_operand(instr: &Instruction) -> bool {
    use Register as R;
    matches!(instr.memory_base(), R::RSP | R::RBP | R::ESP | R::EBP) && !matches!(instr.segment_prefix(), R::FS | R::GS)
}

impl Emitter<'_> {
    /// Loads a guest register that lives in memory into `to`.
    pub fn load_guest(&mut self, to: Reg, register: Register) {
        self.asm.load(to, Mem::state(gpr_index(usize::from(hardware(register).0))));
    }

    /// Stores `from` to a guest register that lives in memory.
    pub fn store_guest(&mut self, register: Register, from: Reg) {
        self.asm.store(Mem::state(gpr_index(usize::from(hardware(register).0))), from);
    }

    /// Computes the linear address of the memory operand plus `by` into S1. Clobbers S0, leaves the flags alone.
    pub fn linear_address(&mut self, instr: &Instruction, by: i32) {
        self.effective_address(instr, by);
        self.add_segment_base(instr);
    }

    /// Adds the operand's segment base, if it has one, to the effective address in S1. Clobbers S0. In stepped code of 16 or
    /// 32 bits that is left to who serves the access, and checks the limit.
    pub fn add_segment_base(&mut self, instr: &Instruction) {
        if self.request.single && self.request.is_compat() {
            return;
        }
        let base = match instr.memory_segment() {
            Register::FS => regs_offset!(fs_base),
            Register::GS => regs_offset!(gs_base),
            _ => return,
        };
        self.asm.load(S0, Mem::state(base));
        let wide = !self.request.is_compat();
        self.asm.lea(wide, S1, Mem { base: Some(S1), index: Some((S0, 0)), disp: 0, gs: false });
    }

    /// Computes the effective address (no segment base) plus `by` into S1. Clobbers S0, leaves the flags alone.
    pub fn effective_address(&mut self, instr: &Instruction, by: i32) {
        let (base, index) = (instr.memory_base(), instr.memory_index());
        let displacement = instr.memory_displacement64().wrapping_add(by as i64 as u64);
        if base == Register::RIP || base == Register::EIP {
            // The decoder ran at page offsets, so this is relative to the page's address.
            self.asm.load(S1, Mem::state(offset_of!(State, page_base)));
            self.add_constant(displacement);
            if base == Register::EIP {
                self.asm.op_reg(false, &[0x8b], S1, S1);
            }
            return;
        }
        if base == Register::None && index == Register::None {
            self.asm.mov64_imm(S1, displacement);
            return;
        }
        if has_address16(instr) {
            return self.effective_address16(instr);
        }
        let narrow = base.is_gpr32() || index.is_gpr32();
        let disp = displacement as i32;
        let host_base = match base {
            Register::None => None,
            r if in_memory(r) => {
                self.load_guest(S1, r);
                Some(S1)
            }
            r => Some(hardware(r)),
        };
        let host_index = match index {
            Register::None => None,
            r if in_memory(r) => {
                self.load_guest(S0, r);
                Some(S0)
            }
            r => Some(hardware(r)),
        };
        let scale = instr.memory_index_scale().trailing_zeros() as u8;
        if host_index.is_none() && disp == 0 && !narrow {
            if let Some(r) = host_base.filter(|&r| r != S1) {
                self.asm.mov(S1, r);
            }
            return;
        }
        let mem = Mem { base: host_base, index: host_index.map(|r| (r, scale)), disp, gs: false };
        self.asm.lea(!narrow, S1, mem);
    }

    /// Adds a constant to S1 without touching the flags. May clobber S0.
    pub fn add_constant(&mut self, value: u64) {
        if let Ok(small) = i32::try_from(value as i64) {
            if small != 0 {
                self.asm.lea(true, S1, Mem::at(S1, small));
            }
        } else {
            self.asm.mov64_imm(S0, value);
            self.asm.lea(true, S1, Mem { base: Some(S1), index: Some((S0, 0)), disp: 0, gs: false });
        }
    }

    /// Turns the linear address in S1 into a host address at which `access` may be done. Clobbers S0 and the flags.
    pub fn check(&mut self, insn: &Insn, access: Access) {
        let info = self.access_info(insn, access);
        if self.request.single {
            self.slow_access(info);
            return;
        }
        let (from, tag) = self.tlb_check(access.size, access.write);
        let back = self.asm.here();
        let dead = self.dead_flags();
        self.cold.push(Cold::Access(ColdAccess { from, back, info, tag, dead }));
    }

    /// As [`Emitter::check`] for a run of `size` bytes, but with a jump to code of the caller's where it fails.
    pub fn check_or_jump(&mut self, size: usize, write: bool) -> Fixup {
        let (from, _) = self.tlb_check(size, write);
        from
    }

    /// Looks up the run of `RCX << log2` bytes, at most a page, from the address in `pointer` on, in the first place of its
    /// page: S1 becomes its host address.
    pub fn check_run(&mut self, pointer: Reg, log2: u8, write: bool) -> ColdRun {
        self.asm.mov(S1, pointer);
        self.tlb_select(write);
        let from = self.run_at(pointer, log2, write);
        ColdRun { from, back: self.asm.here(), pointer, log2, write }
    }

    /// The same in the second place. Returns the jump that is taken where it is not there either.
    pub fn cold_run(&mut self, run: &ColdRun) -> Fixup {
        self.asm.bind(run.from);
        self.asm.mov(S1, run.pointer);
        tlb::select_second(&mut self.asm);
        let from = self.run_at(run.pointer, run.log2, run.write);
        self.asm.jmp(run.back);
        from
    }

    /// The address in S1, which is `pointer`'s, becomes a host address by the TLB entry at offset S0, or the jump is taken.
    fn run_at(&mut self, pointer: Reg, log2: u8, write: bool) -> Fixup {
        let (table, tag) = (tlb::offset(self.mode_index()), tlb::tag(self.mode_index(), write));
        let asm = &mut self.asm;
        asm.op_mem(true, &[0x33], S1, Mem::state_at(S0, tag));
        // The offset in the page plus the run's length. No tag is so far from an address of its set that this wraps.
        asm.lea(true, S1, Mem { base: Some(S1), index: Some((RCX, log2)), disp: 0, gs: false });
        asm.raw(&[0x49, 0x81, 0xfb]); // cmp r11, 4096
        asm.raw(&(PAGE_SIZE_BYTES as u32).to_le_bytes());
        let from = asm.jcc_forward(cc::A);
        asm.op_reg(false, &[0x8b], S1, pointer); // mov r11d, pointer
        asm.raw(&[0x41, 0x81, 0xe3]); // and r11d, 4095
        asm.raw(&(PAGE_SIZE_BYTES as u32 - 1).to_le_bytes());
        asm.add_mem(S1, Mem::state_at(S0, table + offset_of!(TlbEntry, host_page)));
        from
    }

    /// S0 = offset in the mode's TLB of the entry for the address in S1. Returns the offsets in the state of the TLB and
    /// of its tags.
    fn tlb_select(&mut self, write: bool) -> (usize, usize) {
        let mode = self.mode_index();
        (tlb::offset(mode), tlb::select(&mut self.asm, mode, write))
    }

    /// The inline check: S1 becomes a host address, or the returned jump is taken with S1 clobbered.
    fn tlb_check(&mut self, size: usize, write: bool) -> (Fixup, usize) {
        let (tlb, tag) = self.tlb_select(write);
        let asm = &mut self.asm;
        asm.op_mem(true, &[0x33], S1, Mem::state_at(S0, tag)); // xor r11, gs:[r10 + tag]
        asm.raw(&[0x49, 0x81, 0xfb]); // cmp r11, 4096 - size
        asm.raw(&((PAGE_SIZE_BYTES - size.min(PAGE_SIZE_BYTES)) as u32).to_le_bytes());
        let from = asm.jcc_forward(cc::A);
        asm.add_mem(S1, Mem::state_at(S0, tlb + offset_of!(TlbEntry, host_page)));
        (from, tag)
    }

    fn access_info(&mut self, insn: &Insn, access: Access) -> u32 {
        let mut info = access.size.min(255) as u32 | (insn.offset as u32) << access_info::OFFSET_SHIFT;
        if access.write {
            info |= access_info::WRITE;
        }
        if access.stack {
            info |= access_info::STACK;
        }
        if insn.instr.has_lock_prefix() || insn.instr.mnemonic() == Mnemonic::Xchg {
            info |= access_info::LOCKED;
        }
        if self.request.single {
            info |= access_info::SINGLE | (self.nr_accesses & 3) << access_info::BOUNCE_SHIFT;
        }
        self.nr_accesses += 1;
        info
    }

    /// Calls the slow path for the linear address in S1.
    fn slow_access(&mut self, info: u32) {
        let asm: &mut Asm = &mut self.asm;
        asm.store32_imm(Mem::state(offset_of!(State, access_info)), info);
        let back = asm.lea_forward(S0);
        asm.jmp(self.stubs.slow_access);
        asm.bind(back);
    }

    pub fn cold_access(&mut self, cold: &ColdAccess) {
        let is_write = cold.info & access_info::WRITE != 0;
        let tlb_miss = self.stubs.tlb_miss[self.mode_index()][usize::from(is_write)];
        let asm = &mut self.asm;
        asm.bind(cold.from);
        asm.op_mem(true, &[0x33], S1, Mem::state_at(S0, cold.tag));
        self.leave_recipe(cold.dead);
        let asm = &mut self.asm;
        asm.store32_imm(Mem::state(offset_of!(State, access_info)), cold.info);
        asm.lea_to(S0, cold.back);
        asm.jmp(tlb_miss);
    }

    /// The access of an instruction with one explicit memory operand, by its decoder tables.
    pub fn access_of(&mut self, instr: &Instruction) -> Option<Access> {
        let size = instr.memory_size().size();
        let stack = is_stack_operand(instr);
        let operand = (0..instr.op_count()).find(|&op| instr.op_kind(op) == OpKind::Memory)?;
        let write = match self.info.info(instr).op_access(operand) {
            OpAccess::NoMemAccess | OpAccess::None => return None,
            OpAccess::Read | OpAccess::CondRead => false,
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => true,
        };
        Some(Access { size, write, stack })
    }
}

/// Makes the memory operand `[base + offset]`, which the check produced.
pub(super) fn use_host_address(instr: &mut Instruction, base: Register, offset: i32) {
    instr.set_memory_base(base);
    instr.set_memory_index(Register::None);
    instr.set_memory_index_scale(1);
    instr.set_memory_displacement64(offset as i64 as u64);
    instr.set_memory_displ_size(u32::from(offset != 0));
    instr.set_segment_prefix(Register::None);
}

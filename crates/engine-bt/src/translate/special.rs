//! Unprivileged instructions that need a sequence of their own.

use std::mem::offset_of;

use iced_x86::{Mnemonic, Register};
use ring3_engine::rflags;

use super::Insn;
use super::compat::has_address16;
use super::emitter::Emitter;
use super::flags::ALL;
use super::memory::{Access, hardware, in_memory, is_stack_operand, use_host_address};
use super::plain::sized;
use crate::emit::asm::{Mem, RAX, RBX, RCX, RSP, Reg, S0, S1, cc};
use crate::state::{State, regs_offset};

impl Emitter<'_> {
    /// Cache-line flushes: the address is checked as for a read, and that is all.
    pub fn touch(&mut self, insn: &Insn) {
        let live = self.live_before(insn);
        self.spill_flags(live);
        self.linear_address(&insn.instr, 0);
        let stack = is_stack_operand(&insn.instr);
        self.check(insn, Access { size: 1, write: false, stack });
    }

    /// `bt` and kin with a register index: bits beyond the operand lie in neighbouring words.
    pub fn bit_string(&mut self, insn: &Insn) {
        let mut instr = insn.instr;
        let index = instr.op1_register();
        let bits = index.size() as u8 * 8;
        let log2_bits = bits.trailing_zeros() as u8;
        let slot = Mem::state(offset_of!(State, scratch) + 8);
        let live = self.live_before(insn);
        self.spill_flags(live);
        self.effective_address(&instr, 0);
        self.signed_index(index);
        self.asm.raw(&[0x41, 0x83, 0xe2, bits - 1]); // and r10d, bits - 1
        self.asm.store(slot, S0);
        self.signed_index(index);
        self.asm.raw(&[0x49, 0xc1, 0xfa, log2_bits]); // sar r10, log2
        self.asm.lea(true, S1, Mem { base: Some(S1), index: Some((S0, log2_bits - 3)), disp: 0, gs: false });
        // The address is cut to 32 bits after the index was added.
        let registers = [instr.memory_base(), instr.memory_index()];
        let absolute = if registers == [Register::None; 2] { instr.memory_displ_size() } else { 0 };
        if absolute == 4 || registers.iter().any(|r| r.is_gpr32() || *r == Register::EIP) {
            self.asm.op_reg(false, &[0x8b], S1, S1);
        } else if absolute == 2 || has_address16(&instr) {
            self.cut_address16();
        }
        self.add_segment_base(&instr);
        let write = instr.mnemonic() != Mnemonic::Bt;
        let stack = is_stack_operand(&insn.instr);
        self.check(insn, Access { size: usize::from(bits / 8), write, stack });
        self.next_recipe = None;
        self.flags_for(insn);
        self.asm.load(S0, slot);
        use_host_address(&mut instr, Register::R11, 0);
        instr.set_op1_register(sized(Register::R10, index.size()));
        self.encode(&instr);
        self.flags_written(insn);
    }

    /// S0 = the register, sign-extended from its size.
    fn signed_index(&mut self, register: Register) {
        let from = if in_memory(register) {
            self.load_guest(S0, register);
            S0
        } else {
            hardware(register)
        };
        match register.size() {
            2 => self.asm.op_reg(true, &[0x0f, 0xbf], S0, from),
            4 => self.asm.op_reg(true, &[0x63], S0, from),
            _ if from == S0 => {}
            _ => self.asm.mov(S0, from),
        }
    }

    /// `xlatb`: AL = [RBX + AL].
    pub fn xlat(&mut self, insn: &Insn) {
        let live = self.live_before(insn);
        self.spill_flags(live);
        self.asm.op_reg(true, &[0x0f, 0xb6], S0, RAX); // movzx r10, al
        self.asm.lea(true, S1, Mem { base: Some(RBX), index: Some((S0, 0)), disp: 0, gs: false });
        if insn.instr.memory_base() == Register::EBX {
            self.asm.op_reg(false, &[0x8b], S1, S1);
        }
        let base = match insn.instr.memory_segment() {
            Register::FS => Some(regs_offset!(fs_base)),
            Register::GS => Some(regs_offset!(gs_base)),
            _ => None,
        };
        if let Some(base) = base {
            self.asm.load(S0, Mem::state(base));
            self.asm.lea(true, S1, Mem { base: Some(S1), index: Some((S0, 0)), disp: 0, gs: false });
        }
        self.check(insn, Access { size: 1, write: false, stack: false });
        self.asm.op_mem(false, &[0x8a], RAX, Mem::at(S1, 0));
    }

    /// `pushfq`: the arithmetic flags and DF from their places, the rest from `regs.rflags`; RF and VM read as 0.
    pub fn push_flags(&mut self, insn: &Insn) {
        self.spill_flags(ALL);
        self.asm.lea(true, S1, Mem::at(RSP, -8));
        self.check(insn, Access { size: 8, write: true, stack: true });
        let slot = Mem::state(offset_of!(State, scratch) + 8);
        let flags = offset_of!(State, flags);
        let asm = &mut self.asm;
        asm.store(slot, RAX);
        asm.load(RAX, Mem::state(regs_offset!(rflags)));
        asm.raw(&[0x25]); // and eax, imm32
        asm.raw(&(0x00fc_ffffu32 & !0xcd5).to_le_bytes());
        asm.op_mem(false, &[0x0f, 0xb6], S0, Mem::state(flags + 1));
        asm.raw(&[0x41, 0x81, 0xe2, 0xd5, 0, 0, 0]); // and r10d, 0xd5
        asm.op_reg(false, &[0x0b], RAX, S0); // or eax, r10d
        asm.op_mem(false, &[0x0f, 0xb6], S0, Mem::state(flags));
        asm.raw(&[0x41, 0xc1, 0xe2, 11]); // shl r10d, 11
        asm.op_reg(false, &[0x0b], RAX, S0);
        asm.op_mem(false, &[0x0f, 0xb7], S0, Mem::state(offset_of!(State, direction)));
        asm.raw(&[0x41, 0xc1, 0xe2, 10]); // shl r10d, 10
        asm.op_reg(false, &[0x0b], RAX, S0);
        asm.raw(&[0x83, 0xc8, 2]); // or eax, 2
        asm.store(Mem::at(S1, 0), RAX);
        asm.load(RAX, slot);
        asm.lea(true, RSP, Mem::at(RSP, -8));
    }

    /// `cld`, `std`.
    pub fn direction(&mut self, value: u16) {
        self.asm.raw(&[0x65, 0x66, 0xc7, 0x04, 0x25]); // mov word gs:[direction], value
        self.asm.raw(&(offset_of!(State, direction) as u32).to_le_bytes());
        self.asm.raw(&value.to_le_bytes());
    }

    pub fn rdtscp(&mut self, _insn: &Insn) {
        self.asm.raw(&[0x0f, 0x01, 0xf9]);
        self.asm.load32(RCX, Mem::state(regs_offset!(tsc_aux)));
    }

    pub fn rdpid(&mut self, insn: &Insn) {
        self.asm.load32(S0, Mem::state(regs_offset!(tsc_aux)));
        self.set_register(insn.instr.op0_register(), S0);
    }

    /// `pause`: leaves when `State::pauses` runs out. With a REX prefix it may be an `xchg`, so that one is copied.
    pub fn pause(&mut self, insn: &Insn) {
        if self.request.single || insn.instr.len() != 2 {
            self.plain(insn);
            return;
        }
        self.asm.raw(&[0xf3, 0x90]);
        self.spill_flags(insn.after.live);
        self.asm.op_mem(false, &[0x83], Reg(5), Mem::state(offset_of!(State, pauses))); // sub dword gs:[pauses], 1
        self.asm.raw(&[1]);
        self.exit_if_spinning(insn.next_offset());
    }

    /// `iretq` to the same selectors, with no change of a flag that is not in `State::flags` or `State::direction`: how
    /// kernels serialize the CPU. Everything else is interpreted.
    pub fn iret(&mut self, insn: &Insn) {
        /// Those that ring 3 may change.
        const RARE_FLAGS: u64 = rflags::TF | rflags::NT | rflags::RF | rflags::VM | rflags::AC | rflags::ID;
        const WORD: i32 = 8;
        if self.request.single {
            return self.interpret(insn);
        }
        self.spill_flags(ALL);
        let frame = |index: i32| Mem::at(S1, WORD * index);
        self.asm.lea(true, S1, Mem::at(RSP, 0));
        self.check(insn, Access { size: 5 * WORD as usize, write: false, stack: true });
        let slot = Mem::state(offset_of!(State, scratch) + 8);
        let asm = &mut self.asm;
        asm.store(slot, RAX);
        // EAX collects the differences.
        asm.op_mem(false, &[0x0f, 0xb7], RAX, frame(1)); // movzx eax, word: CS
        asm.raw(&[0x66]);
        asm.op_mem(false, &[0x33], RAX, Mem::state(regs_offset!(cs)));
        asm.op_mem(false, &[0x0f, 0xb7], S0, frame(4));
        asm.raw(&[0x66]);
        asm.op_mem(false, &[0x33], S0, Mem::state(regs_offset!(ss)));
        asm.op_reg(false, &[0x0b], RAX, S0);
        asm.load32(S0, frame(2));
        asm.op_mem(false, &[0x33], S0, Mem::state(regs_offset!(rflags)));
        asm.raw(&[0x41, 0x81, 0xe2]); // and r10d, imm32
        asm.raw(&(RARE_FLAGS as u32).to_le_bytes());
        asm.op_reg(false, &[0x0b], RAX, S0);
        asm.load(S0, frame(0));
        asm.raw(&[0x49, 0xc1, 0xe2, 16]); // shl r10, 16
        asm.raw(&[0x49, 0xc1, 0xfa, 16]); // sar r10, 16
        asm.op_mem(true, &[0x33], S0, frame(0));
        asm.raw(&[0x49, 0xc1, 0xea, 48]); // shr r10, 48: not zero if RIP is not canonical
        asm.op_reg(false, &[0x0b], RAX, S0);
        let rare = asm.jcc_forward(cc::NE);
        asm.load32(RAX, frame(2));
        asm.op_reg(false, &[0x8b], S0, RAX);
        asm.raw(&[0x41, 0xc1, 0xea, 10]); // shr r10d, 10
        asm.raw(&[0x41, 0x83, 0xe2, 1]); // and r10d, 1
        asm.raw(&[0x66]);
        asm.op_mem(false, &[0x89], S0, Mem::state(offset_of!(State, direction)));
        asm.op_reg(false, &[0x8b], S0, RAX);
        asm.raw(&[0x41, 0xc1, 0xea, 11]); // shr r10d, 11
        asm.raw(&[0x41, 0x83, 0xe2, 1]); // and r10d, 1
        asm.raw(&[0x24, 0xd5, 0x0c, 0x02, 0x88, 0xc4]); // and al, 0xd5; or al, 2; mov ah, al
        asm.raw(&[0x44, 0x88, 0xd0]); // mov al, r10b
        asm.raw(&[0x66]);
        asm.op_mem(false, &[0x89], RAX, Mem::state(offset_of!(State, flags)));
        asm.load(RAX, slot);
        asm.load(RSP, frame(3));
        asm.load(S1, frame(0));
        self.far_exit();
        self.asm.bind(rare);
        self.asm.load(RAX, slot);
        self.interpret(insn);
    }

    pub(super) fn set_register(&mut self, register: Register, from: Reg) {
        if in_memory(register) {
            self.store_guest(register, from);
        } else {
            self.asm.mov(hardware(register), from);
        }
    }
}

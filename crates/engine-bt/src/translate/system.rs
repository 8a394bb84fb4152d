//! Segment registers, their bases, and the one MSR that reads such a base: what kernels do with them at each switch between
//! processes stays in translated code. Everything else of them is interpreted.

use iced_x86::{Mnemonic, Register};
use ring3_engine::Segment;

use super::Insn;
use super::emitter::{Cold, Emitter};
use super::leave::ColdLeave;
use super::memory::{hardware, in_memory};
use super::segment_name;
use crate::emit::asm::{Fixup, Mem, RAX, RDX, Reg, S0, S1, cc};
use crate::emit::stubs::reason;
use crate::state::{gpr_index, regs_offset};

/// Source: Intel SDM vol. 4, "IA32_KERNEL_GS_BASE".
const MSR_KERNEL_GS_BASE: u32 = 0xc000_0102;

/// Offset in the state of what a segment register's selector is in.
fn selector(register: Register) -> usize {
    match register {
        Register::CS => regs_offset!(cs),
        Register::SS => regs_offset!(ss),
        Register::DS => regs_offset!(ds),
        Register::ES => regs_offset!(es),
        Register::FS => regs_offset!(fs),
        _ => regs_offset!(gs),
    }
}

impl Emitter<'_> {
    /// Leaves for `interp` at `insn` where the jump is taken.
    fn else_interpret(&mut self, insn: &Insn, from: Fixup) {
        let dead = self.dead_flags();
        let (why, value) = (reason::INTERPRET, insn.offset as u32);
        self.cold.push(Cold::Leave(ColdLeave { from: vec![from], runs: Vec::new(), why, value, dead }));
    }

    /// `mov r16, ss` and kin, to a register of any size.
    pub fn read_selector(&mut self, insn: &Insn) {
        let to = insn.instr.op0_register();
        let from = Mem::state(selector(insn.instr.op1_register()));
        self.asm.op_mem(false, &[0x0f, 0xb7], S0, from); // movzx r10d, word
        if to.size() > 2 {
            return self.set_register(to, S0);
        }
        self.asm.raw(&[0x66]);
        if in_memory(to) {
            self.asm.op_mem(false, &[0x89], S0, Mem::state(gpr_index(usize::from(hardware(to).0))));
        } else {
            self.asm.op_reg(false, &[0x8b], hardware(to), S0);
        }
    }

    /// `mov fs, r32` and kin: of a null selector. Others have a descriptor to be looked at.
    pub fn load_selector(&mut self, insn: &Insn) {
        let (to, from) = (insn.instr.op0_register(), insn.instr.op1_register());
        let live = self.live_before(insn);
        self.spill_flags(live);
        self.copy_register(S1, from, false);
        self.asm.raw(&[0x41, 0xf7, 0xc3]); // test r11d, imm32: index and table
        self.asm.raw(&0xfffcu32.to_le_bytes());
        let rare = self.asm.jcc_forward(cc::NE);
        self.asm.raw(&[0x66]);
        self.asm.op_mem(false, &[0x89], S1, Mem::state(selector(to)));
        match to {
            Register::FS => self.asm.store64_imm(Mem::state(regs_offset!(fs_base)), 0),
            Register::GS => self.asm.store64_imm(Mem::state(regs_offset!(gs_base)), 0),
            _ => {}
        }
        // `Segment::NULL` is zeros.
        let at = regs_offset!(segments) + size_of::<Segment>() * segment_name(to) as usize;
        for word in 0..size_of::<Segment>() / 4 {
            self.asm.store32_imm(Mem::state(at + 4 * word), 0);
        }
        self.else_interpret(insn, rare);
    }

    /// `rdfsbase`, `rdgsbase`.
    pub fn read_base(&mut self, insn: &Insn) {
        let base =
            if insn.instr.mnemonic() == Mnemonic::Rdfsbase { regs_offset!(fs_base) } else { regs_offset!(gs_base) };
        let register = insn.instr.op0_register();
        if register.size() == 4 {
            self.asm.load32(S0, Mem::state(base));
        } else {
            self.asm.load(S0, Mem::state(base));
        }
        self.set_register(register, S0);
    }

    /// `wrfsbase`, `wrgsbase`: of a canonical address.
    pub fn write_base(&mut self, insn: &Insn) {
        let base =
            if insn.instr.mnemonic() == Mnemonic::Wrfsbase { regs_offset!(fs_base) } else { regs_offset!(gs_base) };
        let from = insn.instr.op0_register();
        if from.size() == 4 {
            self.copy_register(S1, from, false);
            return self.asm.store(Mem::state(base), S1);
        }
        let live = self.live_before(insn);
        self.spill_flags(live);
        self.copy_register(S1, from, true);
        self.asm.mov(S0, S1);
        self.asm.raw(&[0x49, 0xc1, 0xe2, 16]); // shl r10, 16
        self.asm.raw(&[0x49, 0xc1, 0xfa, 16]); // sar r10, 16
        self.asm.op_reg(true, &[0x3b], S0, S1); // cmp r10, r11
        let rare = self.asm.jcc_forward(cc::NE);
        self.asm.store(Mem::state(base), S1);
        self.else_interpret(insn, rare);
    }

    /// `rdmsr` of the GS base that is not in use, by a kernel. All other MSRs are the hypervisor's.
    pub fn read_msr(&mut self, insn: &Insn) {
        let live = self.live_before(insn);
        self.spill_flags(live);
        self.asm.raw(&[0x81, 0xf9]); // cmp ecx, imm32
        self.asm.raw(&MSR_KERNEL_GS_BASE.to_le_bytes());
        let rare = self.asm.jcc_forward(cc::NE);
        self.asm.load(RDX, Mem::state(regs_offset!(kernel_gs_base)));
        self.asm.op_reg(false, &[0x8b], RAX, RDX); // mov eax, edx
        self.asm.raw(&[0x48, 0xc1, 0xea, 32]); // shr rdx, 32
        self.else_interpret(insn, rare);
    }

    /// `to` = a guest register: all of it, or its low half.
    fn copy_register(&mut self, to: Reg, from: Register, wide: bool) {
        match (in_memory(from), wide) {
            (true, true) => self.load_guest(to, from),
            (true, false) => self.asm.load32(to, Mem::state(gpr_index(usize::from(hardware(from).0)))),
            (false, true) => self.asm.mov(to, hardware(from)),
            (false, false) => self.asm.op_reg(false, &[0x8b], to, hardware(from)),
        }
    }
}

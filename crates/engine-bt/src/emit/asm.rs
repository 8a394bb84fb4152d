//! A small assembler for the code that surrounds guest instructions.
//!
//! Guest instructions themselves are copied or re-encoded by `iced-x86`; what is emitted here are the fixed
//! sequences: state accesses (`gs:[disp32]`), address computation, the TLB check, jumps and their fixups.

/// A host register by hardware number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reg(pub u8);

pub const RAX: Reg = Reg(0);
pub const RCX: Reg = Reg(1);
pub const RDX: Reg = Reg(2);
pub const RBX: Reg = Reg(3);
pub const RSP: Reg = Reg(4);
pub const RBP: Reg = Reg(5);
pub const RSI: Reg = Reg(6);
pub const RDI: Reg = Reg(7);
/// First scratch register; the guest's R10 lives in memory.
pub const S0: Reg = Reg(10);
/// Second scratch register, which holds addresses; the guest's R11 lives in memory.
pub const S1: Reg = Reg(11);

/// Condition codes as in the opcode's low nibble.
pub mod cc {
    pub const NE: u8 = 5;
    pub const E: u8 = 4;
    pub const A: u8 = 7;
    pub const S: u8 = 8;
}

/// Memory operand `[base + index * scale + disp]`.
#[derive(Clone, Copy, Debug)]
pub struct Mem {
    pub base: Option<Reg>,
    /// Index and log2 of its scale.
    pub index: Option<(Reg, u8)>,
    pub disp: i32,
    /// Whether a GS prefix is wanted (state access).
    pub gs: bool,
}

impl Mem {
    /// `gs:[offset]`: a field of the vCPU state.
    pub fn state(offset: usize) -> Self {
        Self { base: None, index: None, disp: offset as i32, gs: true }
    }

    /// `gs:[register + offset]`: an element of a table in the vCPU state.
    pub fn state_at(register: Reg, offset: usize) -> Self {
        Self { base: Some(register), index: None, disp: offset as i32, gs: true }
    }

    /// `[register + disp]`.
    pub fn at(base: Reg, disp: i32) -> Self {
        Self { base: Some(base), index: None, disp, gs: false }
    }
}

/// A place in the buffer whose `rel32` is filled in later.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Fixup(usize);

/// An instruction buffer destined for one address.
#[derive(Debug)]
pub struct Asm {
    bytes: Vec<u8>,
    /// Host address of `bytes[0]` once placed.
    origin: u64,
}

impl Asm {
    pub fn new(origin: u64, bytes: Vec<u8>) -> Self {
        Self { bytes, origin }
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Host address of the next byte.
    pub fn here(&self) -> u64 {
        self.origin + self.bytes.len() as u64
    }

    /// Offset of the next byte from the origin.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Emits `opcode` with a ModRM memory operand. `wide` sets REX.W.
    pub fn op_mem(&mut self, wide: bool, opcode: &[u8], reg: Reg, mem: Mem) {
        if mem.gs {
            self.bytes.push(0x65);
        }
        let base = mem.base.map_or(0, |r| r.0);
        let index = mem.index.map_or(0, |(r, _)| r.0);
        let rex = u8::from(wide) << 3 | (reg.0 >> 3) << 2 | (index >> 3) << 1 | base >> 3;
        if rex != 0 {
            self.bytes.push(0x40 | rex);
        }
        self.raw(opcode);
        self.modrm_mem(reg, mem);
    }

    fn modrm_mem(&mut self, reg: Reg, mem: Mem) {
        let reg_field = (reg.0 & 7) << 3;
        let Some(base) = mem.base else {
            // No base: SIB with base 101 and disp32.
            let sib = mem.index.map_or(0x25, |(r, scale)| scale << 6 | (r.0 & 7) << 3 | 5);
            self.raw(&[reg_field | 4, sib]);
            self.raw(&mem.disp.to_le_bytes());
            return;
        };
        let needs_sib = mem.index.is_some() || base.0 & 7 == 4;
        let (mode, disp_bytes) = if mem.disp == 0 && base.0 & 7 != 5 {
            (0u8, 0)
        } else if i8::try_from(mem.disp).is_ok() {
            (1, 1)
        } else {
            (2, 4)
        };
        let rm = if needs_sib { 4 } else { base.0 & 7 };
        self.bytes.push(mode << 6 | reg_field | rm);
        if needs_sib {
            let (index, scale) = mem.index.map_or((4, 0), |(r, scale)| (r.0 & 7, scale));
            self.bytes.push(scale << 6 | index << 3 | base.0 & 7);
        }
        let disp = mem.disp.to_le_bytes();
        self.raw(&disp[..disp_bytes]);
    }

    /// Emits `opcode` with a register as r/m.
    pub fn op_reg(&mut self, wide: bool, opcode: &[u8], reg: Reg, rm: Reg) {
        let rex = u8::from(wide) << 3 | (reg.0 >> 3) << 2 | rm.0 >> 3;
        if rex != 0 {
            self.bytes.push(0x40 | rex);
        }
        self.raw(opcode);
        self.bytes.push(0xc0 | (reg.0 & 7) << 3 | rm.0 & 7);
    }

    pub fn mov(&mut self, to: Reg, from: Reg) {
        self.op_reg(true, &[0x8b], to, from);
    }

    pub fn load(&mut self, to: Reg, mem: Mem) {
        self.op_mem(true, &[0x8b], to, mem);
    }

    pub fn store(&mut self, mem: Mem, from: Reg) {
        self.op_mem(true, &[0x89], from, mem);
    }

    /// 32-bit load, zero-extended.
    pub fn load32(&mut self, to: Reg, mem: Mem) {
        self.op_mem(false, &[0x8b], to, mem);
    }

    /// Stores an immediate of 32 bits.
    pub fn store32_imm(&mut self, mem: Mem, value: u32) {
        self.op_mem(false, &[0xc7], Reg(0), mem);
        self.raw(&value.to_le_bytes());
    }

    /// Stores a sign-extended immediate as 64 bits.
    pub fn store64_imm(&mut self, mem: Mem, value: i32) {
        self.op_mem(true, &[0xc7], Reg(0), mem);
        self.raw(&value.to_le_bytes());
    }

    /// `lea to, mem`; changes no flags. `wide` false truncates to 32 bits.
    pub fn lea(&mut self, wide: bool, to: Reg, mem: Mem) {
        self.op_mem(wide, &[0x8d], to, mem);
    }

    /// `lea to, [base + disp]` with a displacement of 32 bits, whatever it is: seven bytes. Not for RSP and R12.
    pub fn lea_far(&mut self, to: Reg, base: Reg, disp: i32) {
        self.raw(&[0x48 | (to.0 >> 3) << 2 | base.0 >> 3, 0x8d, 0x80 | (to.0 & 7) << 3 | base.0 & 7]);
        self.raw(&disp.to_le_bytes());
    }

    /// `mov to, imm32`, zero-extended.
    pub fn mov32_imm(&mut self, to: Reg, value: u32) {
        if to.0 >= 8 {
            self.bytes.push(0x41);
        }
        self.bytes.push(0xb8 | to.0 & 7);
        self.raw(&value.to_le_bytes());
    }

    /// `mov to, imm64`.
    pub fn mov64_imm(&mut self, to: Reg, value: u64) {
        self.raw(&[0x48 | to.0 >> 3, 0xb8 | to.0 & 7]);
        self.raw(&value.to_le_bytes());
    }

    /// `add to, mem`.
    pub fn add_mem(&mut self, to: Reg, mem: Mem) {
        self.op_mem(true, &[0x03], to, mem);
    }

    /// `lea to, [rip + target]` for a place known later.
    pub fn lea_forward(&mut self, to: Reg) -> Fixup {
        self.raw(&[0x48 | (to.0 >> 3) << 2, 0x8d, (to.0 & 7) << 3 | 5]);
        self.fixup()
    }

    /// `lea to, [rip + target]` for a known place.
    pub fn lea_to(&mut self, to: Reg, target: u64) {
        let fixup = self.lea_forward(to);
        self.patch(fixup, target);
    }

    fn fixup(&mut self) -> Fixup {
        let at = self.bytes.len();
        self.raw(&[0; 4]);
        Fixup(at)
    }

    pub fn jmp_forward(&mut self) -> Fixup {
        self.bytes.push(0xe9);
        self.fixup()
    }

    pub fn jcc_forward(&mut self, cond: u8) -> Fixup {
        self.raw(&[0x0f, 0x80 | cond]);
        self.fixup()
    }

    /// `jmp rel32` to a host address.
    pub fn jmp(&mut self, target: u64) {
        let fixup = self.jmp_forward();
        self.patch(fixup, target);
    }

    /// `jmp [mem]`.
    pub fn jmp_mem(&mut self, mem: Mem) {
        self.op_mem(false, &[0xff], Reg(4), mem);
    }

    /// Resolves a fixup to a host address.
    pub fn patch(&mut self, fixup: Fixup, target: u64) {
        let next = self.origin + fixup.0 as u64 + 4;
        let rel = target.wrapping_sub(next) as u32;
        if let Some(field) = self.bytes.get_mut(fixup.0..fixup.0 + 4) {
            field.copy_from_slice(&rel.to_le_bytes());
        }
    }

    /// Resolves a fixup to the next byte.
    pub fn bind(&mut self, fixup: Fixup) {
        let here = self.here();
        self.patch(fixup, here);
    }

    /// Gives the jump that follows prefixes without effect until its `rel32`, which `opcode_bytes` precede, will be
    /// 4-aligned, so that it can be patched by one atomic store. A no-op would take a slot of the decoders.
    pub fn align_rel32(&mut self, opcode_bytes: usize) {
        const CS_PREFIX: u8 = 0x2e;
        let misaligned = (self.here() as usize + opcode_bytes) & 3;
        self.raw(&[CS_PREFIX; 3][..(4 - misaligned) & 3]);
    }

    /// Goes to the next multiple of `to` bytes by instructions without effect.
    pub fn align_code(&mut self, to: usize) {
        const PREFIX: u8 = 0x66;
        let mut left = self.here().next_multiple_of(to as u64) - self.here();
        while left > 0 {
            let len = left.min(8);
            (1..len).for_each(|_| self.raw(&[PREFIX]));
            self.raw(&[0x90]);
            left -= len;
        }
    }

    /// Host address of a fixup's `rel32` field.
    pub fn site(&self, fixup: Fixup) -> u64 {
        self.origin + fixup.0 as u64
    }

    /// Saves the six arithmetic flags to `word` (AX form: LAHF in AH, OF in AL). Clobbers `scratch`.
    pub fn save_flags(&mut self, word: usize, scratch: Reg) {
        self.mov(scratch, RAX);
        self.raw(&[0x9f, 0x0f, 0x90, 0xc0]); // lahf; seto al
        self.raw(&[0x65, 0x66, 0x89, 0x04, 0x25]); // mov gs:[word], ax
        self.raw(&(word as u32).to_le_bytes());
        self.mov(RAX, scratch);
    }

    /// Loads the six arithmetic flags from `word`. Clobbers `scratch`.
    pub fn restore_flags(&mut self, word: usize, scratch: Reg) {
        self.mov(scratch, RAX);
        self.raw(&[0x65, 0x0f, 0xb7, 0x04, 0x25]); // movzx eax, word gs:[word]
        self.raw(&(word as u32).to_le_bytes());
        self.raw(&[0x04, 0x7f, 0x9e]); // add al, 0x7f; sahf
        self.mov(RAX, scratch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn emitted(f: impl FnOnce(&mut Asm)) -> Vec<u8> {
        let mut asm = Asm::new(0x1000, Vec::new());
        f(&mut asm);
        asm.into_bytes()
    }

    #[test]
    fn test_state_accesses_use_gs_and_absolute_disp32() {
        assert_eq!(
            emitted(|a| a.load(S1, Mem::state(0x123))),
            [0x65, 0x4c, 0x8b, 0x1c, 0x25, 0x23, 0x01, 0, 0],
            "mov r11, gs:[0x123]"
        );
        assert_eq!(
            emitted(|a| a.op_mem(true, &[0x33], S1, Mem::state_at(S0, 0x4000))),
            [0x65, 0x4d, 0x33, 0x9a, 0, 0x40, 0, 0],
            "xor r11, gs:[r10 + 0x4000]"
        );
    }

    #[test]
    fn test_lea_forms() {
        let mem = |base, index, disp| Mem { base, index, disp, gs: false };
        assert_eq!(emitted(|a| a.lea(true, S1, mem(Some(RSP), None, -8))), [0x4c, 0x8d, 0x5c, 0x24, 0xf8]);
        assert_eq!(emitted(|a| a.lea(true, S1, mem(Some(RBP), None, 0))), [0x4c, 0x8d, 0x5d, 0x00]);
        assert_eq!(emitted(|a| a.lea(true, S1, mem(Some(Reg(13)), None, 0))), [0x4d, 0x8d, 0x5d, 0x00]);
        assert_eq!(
            emitted(|a| a.lea(true, S1, mem(None, Some((RCX, 3)), 0x10))),
            [0x4c, 0x8d, 0x1c, 0xcd, 0x10, 0, 0, 0]
        );
        assert_eq!(emitted(|a| a.lea(true, S1, mem(Some(Reg(12)), Some((S0, 2)), 0))), [0x4f, 0x8d, 0x1c, 0x94]);
    }

    #[test]
    fn test_fixups_are_relative_to_the_next_instruction() {
        let code = emitted(|a| {
            let over = a.jcc_forward(cc::NE);
            a.raw(&[0x90; 3]);
            a.bind(over);
            a.jmp(0x1000);
        });
        assert_eq!(code, [0x0f, 0x85, 3, 0, 0, 0, 0x90, 0x90, 0x90, 0xe9, 0xf2, 0xff, 0xff, 0xff]);
    }
}
